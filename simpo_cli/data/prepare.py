"""From recipe to tokenized pairs: what in the data can stop a run is found here, before any weight is read."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np

from simpo_cli.data.hub import require_obtainable
from simpo_cli.data.load import PairReader
from simpo_cli.data.model_files import require_startable
from simpo_cli.data.pair import EncodedPair, PreferencePair, record_note
from simpo_cli.data.plan import Packing, Plan, held_out_by_prompt, positions_of_part, tokens_of_each
from simpo_cli.data.sources import HubData, Role, locate
from simpo_cli.data.store import (
    EncodedSource,
    Origin,
    StoredPairs,
    encode_source,
    positions_of_prompts,
    prompt_keys_in_blocks,
    prompt_keys_of,
)
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer, read_template, require_model_name
from simpo_cli.errors import UserError, about
from simpo_cli.names import wrong_kind
from simpo_cli.recipe.schema import DataRecipe, DataSource, HeldOutPart, Recipe


@dataclass(frozen=True)
class PreparedData:
    """The pairs of a run."""

    tokenizer: TextTokenizer  # the model's tokenizer with the recipe's template
    train: StoredPairs  # pairs as tokens, read from the disk one by one
    held_out: StoredPairs  # the same, of the part that the run is evaluated on
    choosing: StoredPairs  # others, where the best checkpoint is chosen by those and not by `held_out`
    train_source: EncodedSource  # account of the training records
    eval_source: EncodedSource | None = None  # account of the evaluation records, or None when pairs were held out
    shared_prompts: int = 0  # training pairs whose prompt is also held out (only with data.eval)

    @property
    def scored(self) -> StoredPairs:
        """Every pair that the run puts through the model."""
        return self.train + self.held_out + self.choosing

    @property
    def sources(self) -> list[EncodedSource]:
        """The sides that were read: training, and evaluation where it has files of its own."""
        return [self.train_source] if self.eval_source is None else [self.train_source, self.eval_source]

    @property
    def texts(self) -> list[PreferencePair]:
        """A few pairs as text, with the lowest prompt hashes: those of the first held-out prompts that are not cut."""
        return self.sources[-1].account.samples

    @cached_property
    def identity(self) -> str:
        """Digest of the tokens to train on and of those held out, in their order: two runs with equal ones, and an
        equal plan, see equal batches. Where the files lie, and what they are called, plays no part."""
        content = [source.account.content for source in self.sources]
        parts = [hashlib.sha256(), hashlib.sha256()]
        for part, pairs in zip(parts, (self.train, self.held_out), strict=True):
            for keys in prompt_keys_in_blocks(pairs):
                part.update(keys.tobytes())
        return hashlib.sha256(json.dumps([content, [part.hexdigest() for part in parts]]).encode()).hexdigest()


def prepare_tokenizer(recipe: Recipe, moment: datetime | None = None) -> TextTokenizer:
    """The tokenizer of the recipe's model, with the recipe's template.

    Args:
        moment: what a template that writes today's date takes for now; this moment if not given.

    Raises:
        UserError: its files are missing or damaged, or it knows no end of a text.
    """
    with about("model.path"):
        tokenizer = load_tokenizer(
            recipe.model.path, revision=recipe.model.revision, chat_template=recipe.data.chat_template, moment=moment
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
        positions = held_out_by_prompt(train_source.pairs, recipe.data.holdout)
        train, held_out = train_source.pairs.without(positions), train_source.pairs.select(positions)
    if not train:
        account = train_source.account
        dropped = ", ".join(f"{count} dropped: {reason}" for reason, count in sorted(account.dropped.items()))
        raise UserError(
            f"no training pair is left: {account.records_read} records read, {len(held_out)} pairs held "
            f"out, {dropped or 'none dropped'}.",
            "Give more pairs, lower data.holdout, or raise the length limits.",
            key="data.holdout",
        )
    if recipe.data.eval is not None and not held_out:
        fix = "Check the file that data.eval names."
        raise UserError("no evaluation pair is left after the filters.", fix, key="data.eval")
    shared = 0
    if eval_source is not None:
        shared = sum(map(len, positions_of_prompts(train, np.unique(prompt_keys_of(held_out)))))
    is_chosen_apart = recipe.checkpoint.best and recipe.eval.part == "confirming"
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        held_out=part_of(held_out, recipe.eval.part),
        choosing=part_of(held_out, "choosing") if is_chosen_apart else held_out[:0],
        train_source=train_source,
        eval_source=eval_source,
        shared_prompts=shared,
    )


def part_of(held_out: StoredPairs, part: HeldOutPart) -> StoredPairs:
    """The held-out pairs of a part.

    Raises:
        UserError: there are held-out pairs, and none of them is in it.
    """
    positions = positions_of_part(held_out, part)
    if held_out and not len(positions):
        raise UserError(
            f"none of the {len(held_out):,} held-out pairs is in the {part} half.",
            "Hold out more pairs, or set eval.part=all.",
            key="eval.part",
        )
    return held_out.select(positions)


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


# Whether what a recipe names is here at all: asked before torch is imported, because most first mistakes are these

_READ = 100  # pairs of each source, to see that it can be read as the recipe says


def require_inputs(recipe: Recipe) -> None:
    """Refuse a model folder, pairs or a template that do not exist, and ids of the hub that cannot be fetched.

    Raises:
        UserError: names the key.
    """
    for check in _checks(recipe, are_read=False):
        check()
    if not Path(recipe.model.path).expanduser().is_dir() and not recipe.model.path.startswith("builtin:"):
        with about("model.path"):
            require_obtainable(recipe.model.path, "model")


def faults_of_inputs(recipe: Recipe) -> Iterator[UserError]:
    """What is wrong with the model folder, the files of pairs and the template; ids of the hub are left to the run.

    The first pairs of every file are read as the run reads them.
    """
    for check in _checks(recipe, are_read=True):
        try:
            check()
        except UserError as error:
            yield error


def _checks(recipe: Recipe, *, are_read: bool) -> Iterator[Callable[[], object]]:
    """One check of each thing that a recipe names; of sources that `are_read` the first pairs are read."""
    yield partial(_require_model, recipe)
    if recipe.data.chat_template not in (None, "none"):
        yield partial(read_template, recipe.data.chat_template)
    sides: tuple[tuple[Role, list[DataSource] | None], ...] = (("train", recipe.data.train), ("eval", recipe.data.eval))
    for role, named in sides:
        for source in recipe.data.sources(named or []):
            yield partial(_require_source, source, role, recipe.data, is_read=are_read)


def _require_source(source: DataSource, role: Role, data: DataRecipe, *, is_read: bool) -> None:
    try:
        located = locate(source, role)
        if isinstance(located, HubData) and not is_read:
            require_obtainable(located.name, "dataset")
    except UserError as error:
        raise _about(f"data.{role}", error) from error
    if is_read and not isinstance(located, HubData):
        reader = PairReader([source], role=role, on_bad_record=data.on_bad_record, on_no_signal=data.on_no_signal)
        if not list(islice(reader.read_source(source), _READ)):
            reader.require_pairs()


@about("model.path")
def _require_model(recipe: Recipe) -> None:
    path = recipe.model.path
    if wrong := wrong_kind(path, "model"):
        raise _about("model.path", wrong)
    if Path(path).expanduser().is_dir():
        require_startable(path, Path(path).expanduser())
    elif not path.startswith("builtin:"):
        require_model_name(path)


def _about(key: str, error: UserError) -> UserError:
    subject = f"{key}: {error.where} " if error.where else f"{key}: "
    return UserError(f"{subject}{error.problem}", error.fix, key=key, exit_code=error.exit_code)
