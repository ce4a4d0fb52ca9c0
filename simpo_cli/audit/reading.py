"""Pairs on their way through the audit: as read, with what their texts show, then measured."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from simpo_cli.audit.marked import Marked
from simpo_cli.audit.texts import trouble_in
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import BadRecord

_NOTED = {
    "scores order the pair against its label": "SCR001",
    "tied scores": "SCR002",
    "scores written as text": "SCR003",
}


@dataclass(frozen=True, slots=True)
class ReadPair:
    """A pair as it was read, with what its texts show.

    Attributes:
        pair: as text.
        number: its place among all pairs that were read, from 0.
        file: the number of the file that it is from.
        codes: findings that it belongs to.
    """

    pair: PreferencePair
    number: int
    file: int
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeasuredPair:
    """A pair that is measured: lengths in words or tokens, and all findings that it belongs to."""

    read: ReadPair
    prompt_len: int
    chosen_len: int
    rejected_len: int
    codes: tuple[str, ...]


@dataclass
class Account:
    """What became of pairs on their way to be measured.

    Attributes:
        no_signal: pairs that have no tokens to train on, by reason.
        left_out: the numbers of the pairs that are not measured, by code.
        refused: pairs that the template or the rules refuse.
        no_end: chosen and rejected responses without an end token.
        num_cut: how many of these the length limit has cut.
    """

    no_signal: Counter[str] = field(default_factory=Counter)
    left_out: Marked = field(default_factory=Marked)
    refused: list[BadRecord] = field(default_factory=list)
    no_end: list[int] = field(default_factory=lambda: [0, 0])
    num_cut: int = 0


def read_pairs(reader: PairReader, *, special_tokens: bool) -> Iterator[ReadPair]:
    """The pairs of the sources.

    Args:
        reader: gives the pairs.
        special_tokens: look for special tokens that are widely used; a tokenizer knows its own.
    """
    for number, pair in enumerate(reader):
        codes = [_NOTED[what] for what in reader.noted if what in _NOTED]
        if _is_blank(pair.chosen) or _is_blank(pair.rejected):
            codes.append("EMP001")
        elif pair.chosen == pair.rejected:
            codes.append("DUP003")
        codes += trouble_in(pair, special_tokens=special_tokens)
        yield ReadPair(pair, number, len(reader.files) - 1, tuple(codes))


def _is_blank(text: str) -> bool:
    return not text or text.isspace()
