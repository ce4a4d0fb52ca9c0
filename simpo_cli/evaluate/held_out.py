"""The pairs that a target is scored on, as training would see them, and what the records say of them beside that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.measures import surface_differences
from simpo_cli.audit.surface import TIE, fit
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.prepare import describe_origin, part_of, prepare_data, prepare_tokenizer
from simpo_cli.data.sources import Role
from simpo_cli.data.store import StoredPairs, encode_source, prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataSource, Recipe
from simpo_cli.stages import stage
from simpo_cli.statistics import Measured, proportion

_SHOWN_COLUMNS = 8
_MOST_FITTED = 5_000  # training pairs: more hardly move fourteen weights


@dataclass(frozen=True)
class HeldOut:
    """Pairs to score.

    Attributes:
        name: what people call them.
        sources, role: where the records are.
        key: equal for equal tokens.
        cache: whether the tokens were in the cache: hit, miss or off.
        origin: the same in words, with the seconds.
        train: the training pairs, where they had to be read to know which are held out.
    """

    pairs: StoredPairs
    name: str
    tokenizer: TextTokenizer
    sources: Sequence[DataSource]
    role: Role
    key: tuple[str, int]
    cache: str
    origin: str
    train: StoredPairs | None


def held_out_of(recipe: Recipe, moment: datetime | None = None) -> HeldOut:
    """The pairs that training holds out: those of data.eval, or the same share of the training pairs.

    Args:
        recipe: of the training.
        moment: what a template that writes today's date takes for now; this moment if not given.

    Raises:
        UserError: a file or record is refused, or no pair is left.
    """
    role: Role
    if recipe.data.eval is None:
        data = prepare_data(recipe, moment)
        pairs, source, train, tokenizer = data.held_out, data.train_source, data.train, data.tokenizer
        sources, role = recipe.data.train, "train"
    else:
        tokenizer = prepare_tokenizer(recipe, moment)
        source = encode_source(recipe.data.eval, "eval", recipe.data, tokenizer)
        pairs, train = part_of(source.pairs, recipe.eval.part), None
        sources, role = recipe.data.eval, "eval"
    if not pairs:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(source.account.dropped.items()))
        raise UserError(
            f"there are no pairs to score: {source.account.records_read:,} records read, {dropped or 'none held out'}.",
            "Name a file of pairs with --data, or set data.holdout above 0.",
            key="data.holdout",
        )
    names = ", ".join(one.path for one in sources)
    return HeldOut(
        pairs=pairs,
        name=names if role == "eval" else f"held out of {names}",
        tokenizer=tokenizer,
        sources=recipe.data.sources(sources),
        role=role,
        key=(f"{source.account.content} {recipe.eval.part}", len(pairs)),
        cache=source.origin.cache,
        origin=describe_origin([source]),
        train=train,
    )


def training_pairs(recipe: Recipe, held: HeldOut) -> StoredPairs | None:
    """The pairs that the model was trained on; None where their files are not here any more, or are not as they were.

    They are wanted for the surface classifier alone, so nothing else fails with them.
    """
    if held.train is not None:
        return held.train
    try:
        return encode_source(recipe.data.train, "train", recipe.data, held.tokenizer).pairs
    except UserError:
        return None


@stage("fitting a classifier of surface features")
def surface_accuracy(
    train: Sequence[EncodedPair], held_out: Sequence[EncodedPair], tokenizer: TextTokenizer
) -> Measured:
    """Accuracy on held-out pairs of a classifier that sees only counts of list items, letters and the like.

    It is fitted on at most 5,000 of the training pairs, taken at equal distances, and sees the responses as they were
    trained on, that is, cut where they are too long; see `audit.surface`. There is at least one pair of each kind.
    """
    seen = map(train.__getitem__, range(0, len(train), -(-len(train) // _MOST_FITTED)))
    differences = [
        surface_differences((_text(pair.chosen, tokenizer), _text(pair.rejected, tokenizer)) for pair in pairs)
        for pairs in (seen, held_out)
    ]
    margins = fit(differences[0]).margins(differences[1])
    right = np.where(np.abs(margins) < TIE, 0.5, margins > 0)
    return proportion(right, prompt_keys_of(held_out))


def _text(response: NDArray[np.int32], tokenizer: TextTokenizer) -> str:
    """A response without its end token, which a cut one lacks."""
    ids = response.tolist()
    return tokenizer.decode(ids[:-1] if ids[-1] in tokenizer.end_ids else ids)


def column_of(held: HeldOut, column: str, recipe: Recipe) -> list[str | None]:
    """What the record of each pair has in a column; nested ones are named with dots, such as `metadata.source`.

    Raises:
        UserError: no record has the column.
    """
    reader = PairReader(
        held.sources, role=held.role, on_bad_record=recipe.data.on_bad_record, on_no_signal=recipe.data.on_no_signal
    )
    found: dict[str, str | None] = {}
    known: dict[str, None] = {}
    for pair in reader:
        assert reader.record is not None, "a pair comes from a record"
        known.update(dict.fromkeys(reader.record.fields))
        found[pair.where] = _value(reader.record.fields, column)
    if not any(value is not None for value in found.values()):
        near = get_close_matches(column, known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UserError(
            f"--by {column}: no record has such a column.",
            f"{hint}Columns are {', '.join(list(known)[:_SHOWN_COLUMNS])}; a nested one is named with dots.",
        )
    return [found.get(pair.where) for pair in held.pairs]


def files_of(held: HeldOut) -> list[str | None]:
    """The file of each pair's record, as places name it."""
    return [pair.where.rsplit(", record ", 1)[0].rsplit(":", 1)[0] for pair in held.pairs]


def _value(fields: Mapping[str, Any], column: str) -> str | None:
    value: Any = fields.get(column)
    if value is None and "." in column:
        value = fields
        for part in column.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return None if value is None else str(value)
