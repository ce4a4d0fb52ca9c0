"""Pairs on their way through the audit: as read, then measured."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.findings import SHOWN_ROWS
from simpo_cli.audit.groups import Groups
from simpo_cli.audit.marked import Marked
from simpo_cli.audit.measures import Counts, TextMeasures
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import BadRecord

_BATCH = 512  # pairs that are measured and tokenized together: enough to keep processes and threads busy
_BATCH_CHARACTERS = 2**20

_NOTED = {
    "scores order the pair against its label": "SCR001",
    "tied scores": "SCR002",
    "scores written as text": "SCR003",
}


@dataclass(frozen=True, slots=True)
class ReadPair:
    """A pair as it was read.

    Attributes:
        pair: as text.
        number: its place among all pairs that were read, from 0.
        file: the number of the file that it is from.
        group: the number of its group, where pairs are told apart by a field.
        codes: findings that it belongs to.
    """

    pair: PreferencePair
    number: int
    file: int
    group: int
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeasuredPairs:
    """Pairs of one batch that are measured.

    Attributes:
        pairs: those of the batch that are, in their order.
        codes: (k,) all findings that each belongs to.
        lengths: (k, units, 3) of prompt, chosen and rejected: in words and in characters, or in tokens alone.
        texts: what the texts of the batch show.
        rows: (k,) which rows of `texts` are theirs.
    """

    pairs: Sequence[ReadPair]
    codes: Sequence[tuple[str, ...]]
    lengths: Counts
    texts: TextMeasures
    rows: NDArray[np.int64]


@dataclass
class Refused:
    """Records and pairs that are left out: how many, and the first of them with their texts."""

    count: int = 0
    first: list[BadRecord] = field(default_factory=list)

    def add(self, bad: BadRecord) -> None:
        """Take in one more."""
        self.count += 1
        if len(self.first) < SHOWN_ROWS:
            self.first.append(bad)


@dataclass
class Account:
    """What became of pairs on their way to be measured.

    Attributes:
        no_signal: pairs that have no tokens to train on, by reason.
        left_out: the numbers of the pairs that are not measured, by code.
        refused: pairs that the template or the rules refuse; how many, and the first of them.
        no_end: chosen and rejected responses without an end token.
        num_cut: how many of these the length limit has cut.
        needed: what cut pairs would need to be whole, as `EncodedPairs.needed`.
    """

    no_signal: Counter[str] = field(default_factory=Counter)
    left_out: Marked = field(default_factory=Marked)
    refused: Refused = field(default_factory=Refused)
    no_end: list[int] = field(default_factory=lambda: [0, 0])
    num_cut: int = 0
    needed: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))


def read_batches(reader: PairReader, groups: Groups | None) -> Iterator[list[ReadPair]]:
    """The pairs of the sources, some hundred together.

    Args:
        reader: gives the pairs.
        groups: which group of pairs each belongs to; None where pairs are told apart by their files alone.

    Raises:
        UserError: a source or record is refused.
    """
    batch: list[ReadPair] = []
    held = 0
    for number, pair in enumerate(reader):
        codes = [_NOTED[what] for what in reader.noted if what in _NOTED]
        if _is_blank(pair.chosen) or _is_blank(pair.rejected):
            codes.append("EMP001")
        elif pair.chosen == pair.rejected:
            codes.append("DUP003")
        assert reader.record is not None, "every pair comes from a record"
        group = 0 if groups is None else groups.number_of(reader.record)
        batch.append(ReadPair(pair, number, len(reader.files) - 1, group, tuple(codes)))
        held += pair.num_characters
        if len(batch) == _BATCH or held >= _BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if groups is not None and reader.record is not None:
        groups.require_found(reader.record)
    if batch:
        yield batch


def _is_blank(text: str) -> bool:
    return not text or text.isspace()
