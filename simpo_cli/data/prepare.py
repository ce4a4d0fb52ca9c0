"""From recipe to tokenized pairs: what in the data can stop a run is found here, before any weight is read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from simpo_cli.data.encode import encode_pairs, prompt_key
from simpo_cli.data.holdout import split_by_prompt
from simpo_cli.data.load import LoadedPairs, load_pairs, stopped_by
from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.plan import Packing, Plan, microbatch_tokens
from simpo_cli.data.raw import BadRecord
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource, Recipe


@dataclass
class EncodedSource:
    """One side of the data, training or evaluation, as tokens, with the account of every record.

    Attributes:
        loaded: the pairs as text, and what became of the records.
        pairs: the pairs as tokens.
        dropped: pairs without signal, by reason, before and after tokenizing.
        refused: malformed records, each with the reason (only with on_bad_record: skip).
        counts: what else is worth telling, such as cut prompts.
    """

    loaded: LoadedPairs
    pairs: list[EncodedPair]
    dropped: Counter[str]
    refused: list[BadRecord]
    counts: Counter[str]


@dataclass
class PreparedData:
    """The pairs of a run.

    Attributes:
        tokenizer: the model's tokenizer with the recipe's template.
        train, held_out: pairs as tokens.
        train_source: account of the training records.
        eval_source: account of the evaluation records, or None when pairs were held out.
        shared_prompts: training pairs whose prompt is also held out (only with data.eval).
    """

    tokenizer: TextTokenizer
    train: list[EncodedPair]
    held_out: list[EncodedPair]
    train_source: EncodedSource
    eval_source: EncodedSource | None = None
    shared_prompts: int = 0
    texts: list[PreferencePair] = field(default_factory=list)

    @property
    def scored(self) -> list[EncodedPair]:
        """Every pair that the run puts through the model."""
        return [*self.train, *self.held_out]


def prepare_tokenizer(recipe: Recipe) -> TextTokenizer:
    """The tokenizer of the recipe's model, with the recipe's template.

    Raises:
        UserError: its files are missing or damaged, or it knows no end of a text.
    """
    tokenizer = load_tokenizer(
        recipe.model.path, revision=recipe.model.revision, chat_template=recipe.data.chat_template
    )
    require_end_token(tokenizer)
    return tokenizer


def prepare_data(recipe: Recipe) -> PreparedData:
    """Read, tokenize and split the pairs of a training run.

    Raises:
        UserError: a file or record is refused, or nothing is left to train on.
    """
    tokenizer = prepare_tokenizer(recipe)
    train_source = encode_source(recipe.data.train, "train", recipe.data, tokenizer)
    if recipe.data.eval is not None:
        eval_source = encode_source(recipe.data.eval, "eval", recipe.data, tokenizer)
        train, held_out = train_source.pairs, eval_source.pairs
        texts = eval_source.loaded.pairs
    else:
        eval_source = None
        train, held_out = split_by_prompt(train_source.pairs, recipe.data.holdout)
        texts = train_source.loaded.pairs
    if not train:
        raise UserError(
            f"no training pair is left: {train_source.loaded.records_read} records read, {len(held_out)} pairs held "
            f"out, {_account(train_source.dropped) or 'none dropped'}.",
            "Give more pairs, lower data.holdout, or raise the length limits.",
        )
    if recipe.data.eval is not None and not held_out:
        raise UserError("no evaluation pair is left after the filters.", "Check the file that data.eval names.")
    held_out_prompts = {pair.prompt_key for pair in held_out}
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        held_out=held_out,
        train_source=train_source,
        eval_source=eval_source,
        shared_prompts=sum(pair.prompt_key in held_out_prompts for pair in train),
        texts=[pair for pair in texts if prompt_key(pair) in held_out_prompts],
    )


def require_end_token(tokenizer: TextTokenizer) -> None:
    """Refuse a tokenizer that knows no end of a text, neither by EOS nor by padding, and whose template writes none.

    A response would stop where its tokens stop, nothing would be scored for stopping, and the model would not learn to.

    Raises:
        UserError: names the tokenizer.
    """
    if not tokenizer.end_ids and "pad_token" not in tokenizer.special_tokens:
        raise UserError(
            "has no end-of-text token: its tokenizer names neither eos_token nor pad_token.",
            "Name eos_token in tokenizer_config.json, or give a template that ends turns with data.chat_template.",
            where=tokenizer.where,
        )


def encode_source(
    sources: str | Sequence[DataSource],
    role: Literal["train", "eval"],
    data: DataRecipe,
    tokenizer: TextTokenizer,
) -> EncodedSource:
    """Load one side of the data and tokenize it.

    Args:
        sources: what data.train or data.eval names.
        role: `train` or `eval`, which `builtin:guide` goes by.
    """
    loaded = load_pairs(
        sources,
        role=role,
        on_bad_record=data.on_bad_record,
        on_no_signal=data.on_no_signal,
    )
    encoded = encode_pairs(loaded.pairs, tokenizer, data)
    if encoded.bad and data.on_bad_record == "error":
        raise stopped_by(encoded.bad)
    dropped = Counter(loaded.dropped) + encoded.dropped
    return EncodedSource(loaded, encoded.pairs, dropped, loaded.bad_records + encoded.bad, encoded.counts)


def _account(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} dropped: {reason}" for reason, count in sorted(dropped.items()))


def require_budget(pairs: Sequence[EncodedPair], budget: int, packing: Packing) -> None:
    """Refuse a micro-batch budget that the longest pair does not fit in.

    Raises:
        UserError: names the pair and the smallest budget that works.
    """
    longest = max(pairs, key=lambda pair: microbatch_tokens(pair, packing))
    needed = microbatch_tokens(longest, packing)
    if needed > budget:
        raise UserError(
            f"train.tokens_per_microbatch is {budget}, and this pair alone needs {needed}.",
            f"Set train.tokens_per_microbatch={needed} or more, or lower data.max_length.",
            where=longest.where,
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
    """What happened to the records, in words: dropped, refused, cut."""
    parts = [f"{sum(source.dropped.values())} dropped"]
    if source.dropped:
        parts[0] += " (" + ", ".join(f"{count} {reason}" for reason, count in sorted(source.dropped.items())) + ")"
    if source.refused:
        parts.append(f"{len(source.refused)} malformed, see rejected.jsonl")
    for what, count in sorted(source.loaded.warnings.items()):
        parts.append(what if " is " in what else f"{count} {what}")  # said of a file, or of records
    parts += [f"{count} {what}" for what, count in sorted(source.counts.items())]
    return " · ".join(parts)
