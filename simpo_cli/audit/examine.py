"""The audit of preference pairs: one pass over the sources, in bounded memory, in words or in tokens.

The pairs come from the loader that training uses, and in tokens from the encoder that training uses, with the same cut.
In words every well-formed pair is measured, as the file has it; in tokens every pair that training would see.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.catalogue import Needs
from simpo_cli.audit.findings import SHOWN_ROWS, Finding, Positions, finding
from simpo_cli.audit.identity import Hashes, PairIdentities, PlaceList, Places
from simpo_cli.audit.leaks import Prompts, asked_text, find_leaks
from simpo_cli.audit.lengths import Lengths
from simpo_cli.audit.marked import Marked
from simpo_cli.audit.near import find_near_pairs
from simpo_cli.audit.reading import Account, MeasuredPair, ReadPair, read_pairs
from simpo_cli.audit.signatures import SIGNATURE_BYTES, SignatureList, Signatures
from simpo_cli.data.load import PairReader, prompt_messages
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import BadRecord, Tally
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe

if TYPE_CHECKING:
    from simpo_cli.audit.surface import Differences
    from simpo_cli.data.tokenizer import TextTokenizer  # counting words needs no tokenizer library

NO_LIMIT = 2**31 - 1


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
        surface: (count, features) what the surface of the two responses differs in.
        file_of: (count,) the number of each pair's file in `reader.files`.
        numbers: (count,) each pair's place among all pairs that were read.
        no_signal: pairs that training drops, by reason; in words they are among the lengths.
        refused: malformed records and pairs that the template refuses, left out.
        left_out: by code, the numbers of pairs that were read and not measured.
        looked_for: what there was to look at, as the catalogue says it.
        evaluation: the prompts of the evaluation data that these were compared with.
        findings: trouble that needs no statistics to be seen.
    """

    reader: PairReader
    tokens: Tokens | None
    chosen_len: Lengths
    rejected_len: Lengths
    prompt_len: Lengths
    prompts: Hashes
    surface: "Differences"
    file_of: NDArray[np.int32]
    numbers: Positions
    no_signal: Counter[str]
    refused: list[BadRecord]
    left_out: Marked
    looked_for: frozenset[Needs]
    evaluation: Prompts | None = None
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


def examine(reader: PairReader, tokens: Tokens | None = None, *, evaluation: Prompts | None = None) -> Examination:
    """Read every pair once and measure it.

    Args:
        reader: gives the pairs, also those without signal (`on_no_signal="keep"`); it must not have been read before.
        tokens: how pairs become tokens; None counts words.
        evaluation: prompts of the evaluation data, which are looked for among these; None looks for none.

    Raises:
        UserError: a source or record is refused, or no pair is left.
    """
    from simpo_cli.audit.surface import SurfaceDifferences  # scipy, which counting words for the library does without

    chosen_len, rejected_len, prompt_len = array("q"), array("q"), array("q")
    file_of, numbers = array("i"), array("q")
    identities, places, surface = PairIdentities(), PlaceList(), SurfaceDifferences()
    signatures = SignatureList()  # of prompt, chosen and rejected, in turn
    account, marked = Account(), Marked()
    for measured in _measured(reader, tokens, account):
        pair = measured.read.pair
        for code in measured.codes:
            marked.add(code, len(numbers), pair.where)
        identities.add(pair)
        places.add(pair.where)
        surface.add(pair.chosen, pair.rejected)
        file_of.append(measured.read.file)
        numbers.append(measured.read.number)
        prompt_len.append(measured.prompt_len)
        chosen_len.append(measured.chosen_len)
        rejected_len.append(measured.rejected_len)
        signatures.add(asked_text(pair), pair.chosen, pair.rejected)
    no_signal = reader.dropped.counts + account.no_signal
    if not chosen_len:
        reasons = ", ".join(f"{count} {reason}" for reason, count in no_signal.items())
        raise UserError(
            f"no pair is left after the cut ({reasons}).",
            "Raise data.max_length, or look at the pairs.",
            where=", ".join(source.path for source in reader.sources),
        )
    looked_for: set[Needs] = {"text", "near"}
    looked_for |= set() if tokens is None else {"tokens"}
    looked_for |= set() if evaluation is None else {"evaluation"}
    return Examination(
        reader=reader,
        tokens=tokens,
        chosen_len=np.frombuffer(chosen_len, dtype=np.int64),
        rejected_len=np.frombuffer(rejected_len, dtype=np.int64),
        prompt_len=np.frombuffer(prompt_len, dtype=np.int64),
        prompts=identities.prompts,
        surface=surface.rows,
        file_of=np.frombuffer(file_of, dtype=np.int32),
        numbers=np.frombuffer(numbers, dtype=np.int64),
        no_signal=no_signal,
        refused=reader.bad_records + account.refused,
        left_out=account.left_out,
        looked_for=frozenset(looked_for),
        evaluation=evaluation,
        findings=[
            *_label_findings(identities, signatures.rows.reshape(-1, 3, SIGNATURE_BYTES), evaluation, places),
            *_tallied_findings(reader, account, marked),
            *_marked_findings(marked, account),
        ],
    )


# Reading and measuring


def _measured(reader: PairReader, tokens: Tokens | None, account: Account) -> Iterator[MeasuredPair]:
    if tokens is None:
        return map(_in_words, read_pairs(reader, special_tokens=True))
    from simpo_cli.audit.tokenized import in_tokens

    return in_tokens(read_pairs(reader, special_tokens=False), tokens.tokenizer, tokens.data, account)


def _in_words(read: ReadPair) -> MeasuredPair:
    pair = read.pair
    lengths = num_words(prompt_text(pair)), num_words(pair.chosen), num_words(pair.rejected)
    return MeasuredPair(read, *lengths, codes=read.codes)


# Findings


def _label_findings(
    identities: PairIdentities, signatures: Signatures, evaluation: Prompts | None, places: PlaceList
) -> Iterator[Finding]:
    """Pairs that are the same as others or contradict them, exactly or nearly."""
    contradictory, repeated = identities.contradictions(), identities.duplicates()
    near = find_near_pairs(signatures, repeated=repeated, identical=identities.identical())
    found_by_code = {
        "LBL002": contradictory,
        "LBL003": identities.cycles(),
        "LBL004": np.setdiff1d(near.contradictions, contradictory),
        "DUP001": repeated,
        "DUP002": near.duplicates,
        "DUP004": near.same_responses,
    }
    if evaluation is not None:
        leaks = find_leaks(identities.prompts, signatures[:, 0], evaluation)
        found_by_code |= {"LEK001": leaks.same, "LEK002": leaks.near}
    for code, found in found_by_code.items():
        if len(found):
            yield finding(code, len(found), rows=_rows(found, places), pairs=found)


def _rows(found: Places, places: PlaceList) -> list[str]:
    return [places[i] for i in found[:SHOWN_ROWS].tolist()]


def _tallied_findings(reader: PairReader, account: Account, marked: Marked) -> Iterator[Finding]:
    """Findings that the reader has counted; some of their records are no pairs and have no position."""
    refused = reader.bad_records + account.refused
    if refused:
        yield finding("FMT001", len(refused), rows=[bad.where for bad in refused[:SHOWN_ROWS]])
    for code, reasons in (
        ("EMP001", ("empty response",)),
        ("DUP003", ("identical responses",)),
        ("SCR004", ("tied scores", "tied label")),
    ):
        if count := sum(reader.dropped.counts[reason] for reason in reasons):
            rows = _first_places(reader.dropped, reasons)
            yield finding(code, count, rows=rows, pairs=marked.positions(code))


def _first_places(tally: Tally, reasons: tuple[str, ...]) -> list[str]:
    return [row for reason in reasons for row in tally.places.get(reason, ())][:SHOWN_ROWS]


def _marked_findings(marked: Marked, account: Account) -> Iterator[Finding]:
    """Findings about pairs that were marked on the way, measured or left out."""
    left_out = account.left_out
    for code in sorted({*marked, *left_out} - {"FMT001", "EMP001", "DUP003"}):
        pairs = marked.positions(code)
        rows = [*marked.places(code), *left_out.places(code)][:SHOWN_ROWS]
        detail = ""
        if code == "EOS001":
            chosen, rejected = account.no_end
            detail = f"Of the chosen ones {chosen:,}, of the rejected ones {rejected:,}; {account.num_cut:,} were cut."
        yield finding(code, len(pairs) + len(left_out.positions(code)), detail=detail, rows=rows, pairs=pairs)
