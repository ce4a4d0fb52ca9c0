"""From recipe to tokenized pairs: what in the data can stop a run is found here, before any weight is read."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.plan import Packing, Plan, tokens_of_each
from simpo_cli.data.raw import record_note
from simpo_cli.data.selection import split_by_prompt
from simpo_cli.data.store import EncodedSource, Origin, StoredPairs, encode_source, prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import UserError, about
from simpo_cli.recipe.schema import Recipe

__all__ = [
    "PreparedData",
    "describe_losses",
    "describe_origin",
    "encode_source",
    "make_plan",
    "prepare_data",
    "prepare_tokenizer",
    "require_budget",
    "require_end_token",
]


@dataclass(frozen=True)
class PreparedData:
    """The pairs of a run.

    Attributes:
        tokenizer: the model's tokenizer with the recipe's template.
        train, held_out: pairs as tokens, read from the disk one by one.
        train_source: account of the training records.
        eval_source: account of the evaluation records, or None when pairs were held out.
        shared_prompts: training pairs whose prompt is also held out (only with data.eval).
    """

    tokenizer: TextTokenizer
    train: StoredPairs
    held_out: StoredPairs
    train_source: EncodedSource
    eval_source: EncodedSource | None = None
    shared_prompts: int = 0

    @property
    def scored(self) -> StoredPairs:
        """Every pair that the run puts through the model."""
        return self.train + self.held_out

    @property
    def sources(self) -> list[EncodedSource]:
        """The sides that were read: training, and evaluation where it has files of its own."""
        return [self.train_source] if self.eval_source is None else [self.train_source, self.eval_source]

    @property
    def texts(self) -> list[PreferencePair]:
        """A few pairs as text, with the lowest prompt hashes: those of the first held-out prompts that are not cut."""
        return self.sources[-1].account.samples

    @property
    def identity(self) -> str:
        """Digest of the tokens to train on and of those held out, in their order: two runs with equal ones, and an
        equal plan, see equal batches. Where the files lie, and what they are called, plays no part."""
        content = [source.account.content for source in self.sources]
        parts = [
            hashlib.sha256(pairs.rows["prompt_key"].tobytes()).hexdigest() for pairs in (self.train, self.held_out)
        ]
        return hashlib.sha256(json.dumps([content, parts]).encode()).hexdigest()


def prepare_tokenizer(recipe: Recipe, moment: datetime | None = None) -> TextTokenizer:
    """The tokenizer of the recipe's model, with the recipe's template.

    Args:
        recipe: names both.
        moment: what a template that writes today's date takes for now; this moment if not given.

    Raises:
        UserError: its files are missing or damaged, or it knows no end of a text.
    """
    with about("model.path"):
        tokenizer = load_tokenizer(
            recipe.model.path,
            revision=recipe.model.revision,
            chat_template=recipe.data.chat_template,
            moment=moment,
        )
    require_end_token(tokenizer)
    return tokenizer


def prepare_data(recipe: Recipe, moment: datetime | None = None) -> PreparedData:
    """Read, tokenize and split the pairs of a training run; of a resumed one with the moment at which it began.

    Raises:
        UserError: a file or record is refused, or nothing is left to train on.
    """
    tokenizer = prepare_tokenizer(recipe, moment)
    train_source = encode_source(recipe.data.train, "train", recipe.data, tokenizer)
    if recipe.data.eval is not None:
        eval_source = encode_source(recipe.data.eval, "eval", recipe.data, tokenizer)
        train, held_out = train_source.pairs, eval_source.pairs
    else:
        eval_source = None
        positions = split_by_prompt(prompt_keys_of(train_source.pairs), recipe.data.holdout)
        train, held_out = map(train_source.pairs.select, positions)
    if not train:
        account = train_source.account
        raise UserError(
            f"no training pair is left: {account.records_read} records read, {len(held_out)} pairs held "
            f"out, {_account(account.dropped) or 'none dropped'}.",
            "Give more pairs, lower data.holdout, or raise the length limits.",
            key="data.holdout",
        )
    if recipe.data.eval is not None and not held_out:
        raise UserError(
            "no evaluation pair is left after the filters.", "Check the file that data.eval names.", key="data.eval"
        )
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        held_out=held_out,
        train_source=train_source,
        eval_source=eval_source,
        shared_prompts=int(np.isin(prompt_keys_of(train), prompt_keys_of(held_out)).sum()),
    )


def require_end_token(tokenizer: TextTokenizer) -> None:
    """Refuse (UserError) a tokenizer that knows no end of a text, by EOS, padding or its template.

    A response would stop where its tokens stop, nothing would be scored for stopping, and the model would not learn to.
    """
    if not tokenizer.end_ids and "pad_token" not in tokenizer.special_tokens:
        raise UserError(
            "has no end-of-text token: its tokenizer names neither eos_token nor pad_token.",
            "Name eos_token in tokenizer_config.json, or give a template that ends turns with data.chat_template.",
            where=tokenizer.where,
        )


def _account(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} dropped: {reason}" for reason, count in sorted(dropped.items()))


def require_budget(pairs: Sequence[EncodedPair], budget: int, packing: Packing) -> None:
    """Refuse (UserError) a micro-batch budget that the longest pair does not fit in, with the smallest that works."""
    tokens = tokens_of_each(pairs, packing)
    longest = int(tokens.argmax())
    needed = int(tokens[longest])
    if needed > budget:
        raise UserError(
            f"train.tokens_per_microbatch is {budget}, and this pair alone needs {needed}.",
            f"Set train.tokens_per_microbatch={needed} or more, or lower data.max_length.",
            where=pairs[longest].where,
        )


def make_plan(recipe: Recipe, num_pairs: int) -> Plan:
    """The steps of the run."""
    return Plan(
        num_pairs=num_pairs,
        pairs_per_step=recipe.train.pairs_per_step,
        num_epochs=recipe.train.num_epochs,
        max_steps=recipe.train.max_steps,
        seed=recipe.seed,
    )


def describe_losses(source: EncodedSource) -> str:
    """What happened to the records, in words: dropped, refused, cut, and what is odd about the files."""
    account = source.account
    parts = [f"{sum(account.dropped.values())} dropped"]
    if account.dropped:
        parts[0] += " (" + ", ".join(f"{count} {reason}" for reason, count in sorted(account.dropped.items())) + ")"
    if account.refused:
        parts.append(f"{len(account.refused)} malformed, see rejected.jsonl")
    parts += [f"{count} {what}" for what, count in sorted(account.counts.items())]
    for what, count in sorted(account.warnings.items()):
        of_file = what + (f" ({count})" if count > 1 else "")
        parts.append(of_file if record_note(what) is None else f"{count} {what}")
    return " · ".join(parts)


def describe_origin(sources: Sequence[EncodedSource]) -> str:
    """Where the tokens of the training and the evaluation side came from, how long that took, and what it saved."""
    origins = [source.origin for source in sources]
    if len({(origin.cache, origin.remark) for origin in origins}) == 1:
        return _describe(origins)
    sides = zip(("training", "evaluation"), origins, strict=True)
    return " · ".join(f"{side} pairs {_describe([origin])}" for side, origin in sides)


def _describe(origins: Sequence[Origin]) -> str:
    """One sentence for sides that came from the same place; their seconds are added."""
    first = origins[0]
    took = _seconds(sum(origin.seconds if origin.cache == "hit" else origin.seconds_made for origin in origins))
    match first.cache:
        case "hit":
            words = f"from the cache in {took}, {_seconds(sum(origin.seconds_saved for origin in origins))} saved"
        case "miss":
            words = f"made in {took}, kept for the next run in {first.place}"
        case "off":
            words = f"made in {took}, not kept"
    return f"{words} ({first.remark})" if first.remark else words


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
