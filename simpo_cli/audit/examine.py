"""The audit of preference pairs: one pass over the sources, in bounded memory, in words, in characters or in tokens.

The pairs come from the loader that training uses, and in tokens from the encoder that training uses, with the same cut.
Without a tokenizer every well-formed pair is measured, as the file has it; in tokens every pair that training would
see. Words are counted where the responses are in scripts with spaces between words, and else characters; what the
responses are written in is known at the end of the pass, so both are kept.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.catalogue import Needs
from simpo_cli.audit.columns import Column, Lengths, PlaceColumn
from simpo_cli.audit.duplicates import PairIdentities, Prompts, find_leaks, find_near_pairs
from simpo_cli.audit.findings import SHOWN_ROWS, Finding, PairsByCode, Positions, finding
from simpo_cli.audit.measures import FEATURES, Differences
from simpo_cli.audit.reading import (
    Account,
    Groups,
    MeasuredBatch,
    MeasuredPairs,
    Refused,
    in_tokens,
    measured_batches,
    read_batches,
)
from simpo_cli.audit.signatures import SIGNATURE_BYTES, Hashes, Signatures
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.text_notes import own_markers
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe
from simpo_cli.stages import stage

if TYPE_CHECKING:
    from simpo_cli.data.load import PromptSample
    from simpo_cli.data.tokenizer import TextTokenizer  # counting words needs no tokenizer library


NO_LIMIT = 2**31 - 1
UNSPACED = 0.25
"""Share of the responses' letters in scripts without spaces from which on lengths are in characters: a run of them that
counts as one word then says more than the words around it, as a character of Chinese says about as much as three
letters of Latin."""

Unit = Literal["words", "characters", "tokens"]


@dataclass(frozen=True)
class Tokens:
    """How pairs become tokens: the tokenizer, and the recipe's lengths and rules. NO_LIMIT as a length cuts nothing."""

    tokenizer: "TextTokenizer"
    data: DataRecipe


@dataclass
class Examination:
    """What one pass over the pairs saw."""

    reader: PairReader  # the account of the sources and their records
    tokens: Tokens | None  # how pairs became tokens; None without a tokenizer
    unit: Unit  # what lengths are counted in
    unspaced_share: float | None  # what share of the responses' letters is in scripts without spaces; None in tokens
    chosen_len: Lengths  # (count,) lengths
    rejected_len: Lengths  # the same
    prompt_len: Lengths  # the same
    prompts: Hashes  # (count,) a hash of each pair's prompt
    surface: Differences  # (count, features) what the surface of the two responses differs in
    file_of: NDArray[np.int32]  # (count,) the number of each pair's file in `reader.files`
    group_of: NDArray[np.uint8]  # (count,) the number of each pair's group in `groups`; 0 without any
    groups: Groups | None  # groups pairs by a field; None where files are enough
    numbers: Positions  # (count,) each pair's place among all pairs that were read
    no_signal: Counter[str]  # pairs that training drops, by reason; without a tokenizer they are among the lengths
    refused: Refused  # malformed records and pairs that the template refuses, left out
    left_out: PairsByCode  # by code, the numbers of pairs that were read and not measured
    evaluation: Prompts | None = None  # the prompts of the evaluation data that these were compared with
    findings: list[Finding] = field(default_factory=list)  # trouble that needs no statistics to be seen

    @property
    def count(self) -> int:
        """Pairs that were measured."""
        return len(self.chosen_len)

    @property
    def looked_for(self) -> set[Needs]:
        """What there was to look at, as the catalogue says it."""
        more: dict[Needs, object] = {"tokens": self.tokens, "evaluation": self.evaluation}
        return {"text", "near", *(needs for needs, given in more.items() if given is not None)}

    @property
    def num_prompts(self) -> int:
        """Different prompts."""
        return len(np.unique(self.prompts))


def examine(
    reader: PairReader,
    tokens: Tokens | None = None,
    *,
    evaluation: Prompts | None = None,
    groups: Groups | None = None,
    sample: "PromptSample | None" = None,
) -> Examination:
    """Read every pair once and measure it.

    Args:
        reader: gives the pairs, also those without signal (`on_no_signal="keep"`); it must not have been read before.
        sample: takes in the measured pairs as they come by; their texts are not kept otherwise.

    Raises:
        UserError: a source or record is refused, or no pair is left.
    """
    account, collected = Account(), _Collected(units=2 if tokens is None else 1)
    own = None if tokens is None else own_markers(tokens.tokenizer, rendered=tokens.data.rendered)
    batches = measured_batches(read_batches(reader, groups), own=own)
    with closing(batches), stage("measuring pairs") as measuring:  # type: ignore[type-var]
        in_units = in_tokens(batches, tokens.tokenizer, tokens.data, account) if tokens else map(_in_words, batches)
        for measured in in_units:
            collected.add(measured)
            measuring.advance(len(measured.pairs))
            if sample is not None:
                for read in measured.pairs:
                    sample.add(read.pair)
    no_signal = reader.dropped.counts + account.no_signal
    if not collected.count:
        reasons = ", ".join(f"{count} {reason}" for reason, count in no_signal.items())
        raise UserError(
            f"no pair is left after the cut ({reasons}).",
            "Raise data.max_length, or look at the pairs.",
            where=", ".join(source.path for source in reader.sources),
        )
    refused = Refused(
        len(reader.bad_records) + account.refused.count,
        [*reader.bad_records[:SHOWN_ROWS], *account.refused.first][:SHOWN_ROWS],
    )
    hashes = collected.hashes.rows
    with stage("looking for pairs that repeat or contradict others"):
        signatures = collected.take_signatures()
        labels = list(_label_findings(PairIdentities(hashes), signatures, evaluation, collected.places))
    share = None if tokens is not None else collected.unspaced_share
    unit: Unit = "tokens" if share is None else "characters" if share >= UNSPACED else "words"
    lengths = collected.lengths.rows[:, 1 if unit == "characters" else 0]
    return Examination(
        reader=reader,
        tokens=tokens,
        unit=unit,
        unspaced_share=share,
        prompt_len=lengths[:, 0],
        chosen_len=lengths[:, 1],
        rejected_len=lengths[:, 2],
        prompts=hashes[:, 0],
        surface=collected.surface.rows,
        file_of=collected.files.rows,
        group_of=collected.groups.rows,
        groups=groups,
        numbers=collected.numbers.rows,
        no_signal=no_signal,
        refused=refused,
        left_out=account.left_out,
        evaluation=evaluation,
        findings=[
            *labels,
            *_tallied_findings(reader, refused, collected.by_code),
            *_coded_findings(collected.by_code, account),
        ],
    )


# Measuring


def _in_words(batch: MeasuredBatch) -> MeasuredPairs:
    reads, texts = batch
    codes = [(*read.codes, *of_texts) for read, of_texts in zip(reads, texts.codes, strict=True)]
    lengths = np.stack((texts.words, texts.characters), axis=1)
    return MeasuredPairs(reads, codes, lengths, texts, np.arange(len(reads)))


class _Collected:
    """What is kept of every measured pair, about 300 bytes; the texts are not."""

    def __init__(self, units: int) -> None:
        self.lengths = Column(np.int32, (units, 3))
        self._letters = np.zeros(2, dtype=np.int64)
        self.hashes = Column(np.uint64, (3,))
        self.surface = Column(np.float32, (len(FEATURES),))
        self.signatures = Column(np.uint8, (3, SIGNATURE_BYTES))
        self.files, self.groups, self.numbers = Column(np.int32), Column(np.uint8), Column(np.int64)
        self.places, self.by_code = PlaceColumn(), PairsByCode()
        self.count = 0

    def add(self, measured: MeasuredPairs) -> None:
        """Append the pairs of a batch."""
        reads, texts = measured.pairs, measured.texts
        for position, (read, codes) in enumerate(zip(reads, measured.codes, strict=True), start=self.count):
            for code in codes:
                self.by_code.add(code, position, read.pair.where)
        self.places.add(read.pair.where for read in reads)
        self.lengths.add(measured.lengths)
        self._letters += texts.letters.sum(axis=0)
        self.hashes.add(texts.hashes[measured.rows])
        self.surface.add(texts.surface[measured.rows])
        self.signatures.add(texts.signatures[measured.rows])
        self.files.add([read.file for read in reads])
        self.groups.add([read.group for read in reads])
        self.numbers.add([read.number for read in reads])
        self.count += len(reads)

    @property
    def unspaced_share(self) -> float:
        """What share of the responses' letters is in scripts without spaces between words."""
        unspaced, letters = self._letters.tolist()
        return unspaced / max(1, letters)

    def take_signatures(self) -> Signatures:
        """(pairs, 3, 64) the signatures, which are kept no longer than the caller needs them."""
        signatures: Signatures = self.signatures.rows
        del self.signatures
        return signatures


# Findings


def _label_findings(
    identities: PairIdentities, signatures: Signatures, evaluation: Prompts | None, places: PlaceColumn
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
        found_by_code["LEK001"], found_by_code["LEK002"] = find_leaks(identities.prompts, signatures[:, 0], evaluation)
    for code, found in found_by_code.items():
        if len(found):
            yield finding(code, len(found), rows=places.at(found[:SHOWN_ROWS].tolist()), pairs=found)


def _tallied_findings(reader: PairReader, refused: Refused, by_code: PairsByCode) -> Iterator[Finding]:
    """Findings that the reader has counted; some of their records are no pairs and have no position."""
    if refused.count:
        yield finding("FMT001", refused.count, rows=[bad.where for bad in refused.first])
    dropped = reader.dropped
    for code, reasons in (
        ("EMP001", ("empty response",)),
        ("DUP003", ("identical responses",)),
        ("SCR004", ("tied scores", "tied label")),
    ):
        if count := sum(dropped.counts[reason] for reason in reasons):
            rows = [row for reason in reasons for row in dropped.places.get(reason, ())][:SHOWN_ROWS]
            yield finding(code, count, rows=rows, pairs=by_code.positions(code))


def _coded_findings(by_code: PairsByCode, account: Account) -> Iterator[Finding]:
    """Findings about pairs that got their codes on the way, measured or left out."""
    left_out = account.left_out
    for code in sorted({*by_code, *left_out} - {"FMT001", "EMP001", "DUP003"}):
        pairs = by_code.positions(code)
        rows = [*by_code.places(code), *left_out.places(code)][:SHOWN_ROWS]
        detail = account.details.get(code, "")
        if code == "EOS001":
            chosen, rejected = account.no_end
            detail = f"Of the chosen ones {chosen:,}, of the rejected ones {rejected:,}; {account.num_cut:,} were cut."
        yield finding(code, len(pairs) + len(left_out.positions(code)), detail=detail, rows=rows, pairs=pairs)


# Examples

NUM_EXAMPLES = 3


def collect_examples(
    examination: Examination, read_again: Callable[[], PairReader]
) -> Mapping[str, Sequence[PreferencePair]]:
    """The first pairs of each finding that is about pairs, by code; those of one prompt, perhaps at odds, are together.

    `read_again` opens the same sources once more, as they were read for the examination.
    """
    wanted: defaultdict[int, list[str]] = defaultdict(list)
    for found in examination.findings:
        of_measured: Positions = examination.numbers[_by_prompt(found.pairs, examination)[:NUM_EXAMPLES]]
        of_others = examination.left_out.positions(found.code)
        for number in [*of_measured.tolist(), *of_others.tolist()][:NUM_EXAMPLES]:
            if found.code != "FMT001":  # refused; each of these is shown with its own reason
                wanted[number].append(found.code)
    examples: defaultdict[str, list[PreferencePair]] = defaultdict(list)
    last = max(wanted, default=-1)
    if last >= 0:
        for number, pair in enumerate(read_again()):
            for code in wanted.get(number, ()):
                examples[code].append(pair)
            if number == last:
                break
    return examples


def _by_prompt(pairs: Positions, examination: Examination) -> Positions:
    """The pairs in order of their prompts' first appearance among them."""
    _, first, prompt = np.unique(examination.prompts[pairs], return_index=True, return_inverse=True)
    ordered: Positions = pairs[np.argsort(first[prompt], kind="stable")]
    return ordered
