"""One side of a recipe's data, training or evaluation, as tokens with the account of every record."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simpo_cli.data.load import PairReader
from simpo_cli.data.sources import Role
from simpo_cli.data.store.account import Account
from simpo_cli.data.store.cache import Origin, fetch
from simpo_cli.data.store.key import Identities, identities_of, key_of
from simpo_cli.data.store.making import make_tokens
from simpo_cli.data.store.pairs import StoredPairs
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource


@dataclass(frozen=True)
class EncodedSource:
    """One side of the data as tokens.

    Attributes:
        pairs: the pairs, in the order of the sources, each source as often as it is to be repeated.
        repeated: how many of the pairs are repeats.
        account: what became of every record.
        origin: whether the tokens were cached or made, and what it took.
    """

    pairs: StoredPairs
    repeated: int
    account: Account
    origin: Origin


def encode_source(
    sources: str | Sequence[DataSource], role: Role, data: DataRecipe, tokenizer: TextTokenizer
) -> EncodedSource:
    """Tokenize one side of the data, or take its tokens from the cache.

    Args:
        sources: what data.train or data.eval names.
        role: `train` or `eval`, which `builtin:guide` goes by.
        data: lengths, template variables and what to do with trouble.
        tokenizer: the model's tokenizer with the template that the recipe chose.

    Raises:
        UserError: a file or record is refused, no usable pair is left, or the tokens cannot be written.
    """
    started = time.perf_counter()
    listed = data.sources(sources)
    identities = [identities_of(source, role) for source in listed]

    def make(folder: Path) -> Account:
        reader = PairReader(listed, role=role, on_bad_record=data.on_bad_record, on_no_signal=data.on_no_signal)
        account = make_tokens(reader, tokenizer, data, folder)
        _require_unchanged(account, identities)
        return account

    entry, origin = fetch(key_of(listed, identities, data, tokenizer), make, started)
    order, repeated = _order(listed, entry.account.pairs_of_source)
    pairs = entry.pairs.select(order) if repeated else entry.pairs
    return EncodedSource(pairs, repeated, entry.account, origin)


def _require_unchanged(account: Account, identities: Sequence[Identities]) -> None:
    """Refuse files that were written to between the look that gave the key and the reading."""
    expected = {file for files in identities for file in files}
    for path, identity, _ in account.files:
        if (path, identity) not in expected:
            raise UserError("was changed while it was read.", "Run again when nothing writes to it.", where=path)


def _order(sources: Sequence[DataSource], counts: Sequence[int]) -> tuple[np.ndarray, int]:
    """Positions of the pairs with each source repeated as it asks, and how many of them are repeats."""
    starts = np.cumsum([0, *counts])
    blocks = [
        np.tile(np.arange(start, start + count), source.repeat)
        for source, start, count in zip(sources, starts, counts, strict=False)
    ]
    order = np.concatenate(blocks)
    return order, len(order) - sum(counts)
