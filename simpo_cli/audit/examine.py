"""The audit of preference pairs: one pass over the sources, in bounded memory, in words or in tokens.

The pairs come from the loader that training uses, and in tokens from the encoder that training uses, with the same cut.
In words every well-formed pair is measured, as the file has it; in tokens every pair that training would see.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from simpo_cli.audit.findings import SHOWN_ROWS, Finding, Severity
from simpo_cli.audit.identity import Hashes, PairIdentities, PlaceList, Places
from simpo_cli.audit.lengths import Lengths
from simpo_cli.data.load import PairReader, prompt_messages, stopped_by
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import BadRecord, Tally
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe

if TYPE_CHECKING:
    from simpo_cli.data.tokenizer import TextTokenizer  # counting words needs no tokenizer library

NO_LIMIT = 2**31 - 1
_BATCH = 512  # pairs tokenized at a time


@dataclass(frozen=True)
class Tokens:
    """How pairs become tokens: the tokenizer, and the recipe's lengths and rules. NO_LIMIT as a length cuts nothing."""

    tokenizer: "TextTokenizer"
    data: DataRecipe


@dataclass
class Examination:
    """What one pass over the pairs saw.

    Attributes:
        reader: the account of the sources and their records.
        tokens: how pairs became tokens; None when words were counted.
        chosen_len, rejected_len, prompt_len: (count,) lengths.
        prompts: (count,) a hash of each pair's prompt.
        no_signal: pairs that training drops, by reason; in words they are among the lengths.
        refused: malformed records and pairs that the template refuses, left out.
        findings: trouble that needs no statistics to be seen, worst first.
    """

    reader: PairReader
    tokens: Tokens | None
    chosen_len: Lengths
    rejected_len: Lengths
    prompt_len: Lengths
    prompts: Hashes
    no_signal: Counter[str]
    refused: list[BadRecord]
    findings: list[Finding] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Pairs that were measured."""
        return len(self.chosen_len)

    @property
    def num_prompts(self) -> int:
        """Different prompts."""
        return len(np.unique(self.prompts))


def num_words(text: str) -> int:
    """Words as people count them: what stands between blanks."""
    return len(text.split())


def prompt_text(pair: PreferencePair) -> str:
    """The prompt's turns one after the other, without their roles."""
    return "\n".join(turn.content for turn in prompt_messages(pair.prompt))


def examine(reader: PairReader, tokens: Tokens | None = None) -> Examination:
    """Read every pair once and measure it.

    Args:
        reader: gives the pairs; it must not have been read before.
        tokens: how pairs become tokens; None counts words.

    Raises:
        UserError: a source or record is refused, or no pair is left.
    """
    chosen_len, rejected_len, prompt_len = array("q"), array("q"), array("q")
    identities, places, account = PairIdentities(), PlaceList(), _Account()
    measured = _in_words(reader) if tokens is None else _in_tokens(reader, tokens, account)
    for pair, of_prompt, of_chosen, of_rejected in measured:
        identities.add(pair)
        places.add(pair.where)
        prompt_len.append(of_prompt)
        chosen_len.append(of_chosen)
        rejected_len.append(of_rejected)
    account.no_signal.update(reader.dropped)
    refused = reader.bad_records + account.refused
    if not chosen_len:
        reasons = ", ".join(f"{count} {reason}" for reason, count in account.no_signal.counts.items())
        raise UserError(
            f"no pair is left after the cut ({reasons}).",
            "Raise data.max_length, or look at the pairs.",
            where=", ".join(source.path for source in reader.sources),
        )
    return Examination(
        reader=reader,
        tokens=tokens,
        chosen_len=np.frombuffer(chosen_len, dtype=np.int64),
        rejected_len=np.frombuffer(rejected_len, dtype=np.int64),
        prompt_len=np.frombuffer(prompt_len, dtype=np.int64),
        prompts=identities.prompts,
        no_signal=account.no_signal.counts,
        refused=refused,
        findings=[
            *_label_findings(identities, places),
            *(tallied for tallied in _tallied_findings(reader, account) if tallied.count),
        ],
    )


# Lengths


@dataclass
class _Account:
    """What became of pairs on their way to tokens."""

    no_signal: Tally = field(default_factory=Tally)
    cut: Tally = field(default_factory=Tally)
    refused: list[BadRecord] = field(default_factory=list)


Measured = tuple[PreferencePair, int, int, int]  # lengths of prompt, chosen, rejected


def _in_words(reader: PairReader) -> Iterator[Measured]:
    for pair in reader:
        yield pair, num_words(prompt_text(pair)), num_words(pair.chosen), num_words(pair.rejected)


def _in_tokens(reader: PairReader, tokens: Tokens, account: _Account) -> Iterator[Measured]:
    from simpo_cli.data.encode import encode_pairs

    pairs = iter(reader)
    while batch := list(islice(pairs, _BATCH)):
        encoded = encode_pairs(batch, tokens.tokenizer, tokens.data)
        if encoded.bad and tokens.data.on_bad_record == "error":
            raise stopped_by(encoded.bad)
        account.refused += encoded.bad
        account.no_signal.counts.update(encoded.dropped)
        texts = {pair.where: pair for pair in batch}
        for pair in encoded.pairs:
            if pair.chosen_cut or pair.rejected_cut:
                account.cut.add("TRU001" if pair.chosen_cut and pair.rejected_cut else "TRU002", pair.where)
            if pair.prompt_cut:
                account.cut.add("TRU003", pair.where)
            yield texts[pair.where], len(pair.prompt), len(pair.chosen), len(pair.rejected)


# Findings


def _label_findings(identities: PairIdentities, places: PlaceList) -> Iterator[Finding]:
    contradictory, repeated = identities.contradictions(), identities.duplicates()
    if len(contradictory):
        hint = "Decide which answer is the better one, or leave both pairs out: together they teach nothing."
        yield Finding("LBL002", "error", len(contradictory), hint, _rows(contradictory, places), contradictory)
    if len(repeated):
        hint = "Leave the repeats out, unless the pair is meant to count more."
        yield Finding("DUP001", "warning", len(repeated), hint, _rows(repeated, places), repeated)


def _rows(found: Places, places: PlaceList) -> list[str]:
    return [places[i] for i in found[:SHOWN_ROWS].tolist()]


def _tallied_findings(reader: PairReader, account: _Account) -> Iterator[Finding]:
    """Findings that were counted on the way."""
    refused = reader.bad_records + account.refused
    rows = [bad.where for bad in refused[:SHOWN_ROWS]]
    yield Finding("FMT001", "error", len(refused), "Mend the records; each is named with its trouble.", rows)
    counted: tuple[tuple[str, Severity, Tally, tuple[str, ...], str], ...] = (
        ("EMP001", "warning", account.no_signal, ("empty response",), "Find out why answers are empty."),
        ("DUP003", "warning", account.no_signal, _IDENTICAL, "Two equal answers teach nothing; sample again."),
        ("EMP002", "warning", account.no_signal, _SHORT, "Such answers have no mean log-probability to train."),
        ("TRU001", "warning", account.cut, ("TRU001",), _CUT),
        ("TRU002", "error", account.cut, ("TRU002",), f"Only one side keeps its end. {_CUT}"),
        ("TRU003", "warning", account.cut, ("TRU003",), "Raise data.max_prompt_length; the last tokens are kept."),
        ("SCR001", "warning", reader.warnings, ("scores order the pair against its label",), "Look at these pairs."),
        ("SCR002", "warning", reader.warnings, ("tied scores",), "Such pairs are a coin's toss; leave them out."),
        ("SCR004", "warning", account.no_signal, ("tied scores", "tied label"), "Leave them out, or decide."),
        ("SCR003", "warning", reader.warnings, ("scores written as text",), "Write numbers as numbers."),
        ("CHR001", "warning", reader.warnings, ("NUL characters in texts",), "Remove them; no model has seen any."),
    )
    for code, severity, tally, reasons, hint in counted:
        count = sum(tally.counts[reason] for reason in reasons)
        rows = [row for reason in reasons for row in tally.places.get(reason, ())]
        yield Finding(code, severity, count, hint, rows[:SHOWN_ROWS])


_IDENTICAL = ("identical responses", "responses identical after the cut")
_SHORT = ("response without tokens",)
_CUT = "Raise data.max_length, or set data.overlong: drop."
