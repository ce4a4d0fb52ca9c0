"""Sources to pairs: training, evaluation, `stats` and `inspect` all read through here; no record is left uncounted."""

import heapq
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Literal

from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.formats import SAMPLE_RECORDS, Layout, NoSignalError, UnknownLabelError, detect, to_pair
from simpo_cli.data.formats.direction import reason_of
from simpo_cli.data.formats.layout import UnusedFields
from simpo_cli.data.formats.orders import shown_counts, values_of
from simpo_cli.data.hub import read_hub
from simpo_cli.data.pair import (
    BadRecord,
    PreferencePair,
    RawRecord,
    RecordError,
    RecordNote,
    Records,
    Tally,
    prompt_key,
)
from simpo_cli.data.records import read_records
from simpo_cli.data.sources import HubData, LocalFile, Role, locate, missing_shards
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataSource
from simpo_cli.recipe.values import has_control_characters

_SHOWN_BAD = 5
_SHOWN_TEXT = 40  # characters of each response of an example
_MOST_BAD = 100_000  # left out with `skip`; they are kept in memory, and a file with more is not what it seems
_LOOK_AHEAD = 10_000  # records that are looked at behind the first bad one, to show more of the trouble at once

NoSignalPolicy = Literal["drop", "error", "keep"]


def source_named(path: str) -> DataSource:
    """The source that a person names on the command line or in Python.

    Raises:
        UserError: nothing can have such a name.
    """
    try:
        return DataSource(path=path)
    except ValueError as error:
        reason = ": it holds a control character" if has_control_characters(path) else ""
        raise UserError(f"{path!r} names no data{reason}.", "Name a file, a folder or a hub id.") from error


class PairReader:
    """Pairs as a stream, each source once; what became of the records can be read from it afterwards.

    Args:
        sources: a file, folder, hub id or `builtin:guide`, or a list of sources.
        role: what the pairs are for; `builtin:guide` has other pairs for training than for evaluation.
        on_bad_record: stop at malformed records, or leave them out and count them.
        on_no_signal: leave out pairs that cannot teach, or stop, or keep them; they are counted in any case.

    Attributes:
        dropped: pairs without signal, by reason.
        warnings: things worth telling that stop nothing; of records as `RecordNote`, of files as sentences.
        record: what the pair last given was read from.
        noted: what is worth telling of that pair and stops nothing.
        examples: of each file in which a label, scores or ranks say the order its first pair, and what said it.
        layout: how the file that is being read was understood; None before the first.
    """

    def __init__(
        self,
        sources: str | Sequence[DataSource],
        *,
        role: Role,
        on_bad_record: Literal["error", "skip"] = "error",
        on_no_signal: NoSignalPolicy = "drop",
    ) -> None:
        self.sources = [source_named(sources)] if isinstance(sources, str) else list(sources)
        self._role: Role = role
        self._on_bad_record, self._on_no_signal = on_bad_record, on_no_signal
        self.bad_records: list[BadRecord] = []
        self.dropped, self.warnings = Tally(), Tally()
        self.records_read = self.pairs_read = 0
        self.files: list[FileReceipt] = []
        self.record: RawRecord | None = None
        self.noted: Counter[RecordNote] = Counter()
        self.examples: list[str] = []
        self.layout: Layout | None = None
        self._layouts: list[tuple[str, Layout, int]] = []

    def __iter__(self) -> Iterator[PreferencePair]:
        for source in self.sources:
            yield from self.read_source(source)
        self.require_pairs()

    def read_source(self, source: DataSource) -> Iterator[PreferencePair]:
        """The usable pairs of one source, at most its `max_pairs`, once.

        Raises:
            UserError: the source is missing or not readable, or a record is malformed.
        """
        located = locate(source, self._role)
        files: list[LocalFile | HubData] = [located] if isinstance(located, HubData) else [*located]
        for missing in missing_shards(file.name for file in files):
            self.warnings.add(missing, source.path)
        left = source.max_pairs
        for file in files:
            if left == 0:
                return
            receipt = FileReceipt(file.name)
            self.files.append(receipt)
            if isinstance(file, HubData):
                records, finish = read_hub(file.name, file.split, receipt), None
            else:
                records, finish = read_records(file.path, receipt)
            before = self.pairs_read
            yield from self._pairs(records, source, receipt, left)
            if finish is not None:
                finish()
            if left is not None:
                left -= self.pairs_read - before

    def require_pairs(self) -> None:
        """Refuse sources that gave no pair at all."""
        if self.pairs_read:
            return
        reasons = [f"{count:,} {reason}" for reason, count in sorted(self.dropped.counts.items())]
        reasons += [f"{len(self.bad_records):,} malformed"] if self.bad_records else []
        raise UserError(
            f"no usable pair in {self.records_read:,} records ({', '.join(reasons) or 'none'}).",
            self.bad_records[0].problem if self.bad_records else "Every pair needs two answers that differ.",
            where=", ".join(source.path for source in self.sources),
        )

    @property
    def decision(self) -> str:
        """How the files were understood, such as `conversational, implicit prompt, 1,000 pairs, response = ...`."""
        alike: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for name, layout, pairs in self._layouts:
            alike.setdefault((layout.described(), layout.response), []).append((name, pairs))
        parts = []
        for (described, response), files in alike.items():
            place = "" if len(alike) == 1 else f"{', '.join(name for name, _ in files)}: "
            count = sum(pairs for _, pairs in files)
            parts.append(f"{place}{described}, {count:,} pair{'s' if count != 1 else ''}, response = {response}")
        return "; ".join(parts)

    @property
    def remarks(self) -> list[str]:
        """What else is worth saying of how the files were understood: meanings of labels, fields that are not used."""
        remarks = dict.fromkeys(remark for _, layout, _ in self._layouts for remark in layout.remarks)
        unused = dict.fromkeys(field for _, layout, _ in self._layouts for field in layout.unused)
        return [*remarks, *([f"not used: {', '.join(unused)}"] if unused else [])]

    def _pairs(
        self, records: Records, source: DataSource, receipt: FileReceipt, most: int | None
    ) -> Iterator[PreferencePair]:
        sample = self._sample(records)
        records = chain(sample, records)
        good = [record.fields for record in sample if isinstance(record, RawRecord)]
        if not good:
            self._only_bad(sample, receipt)
            return
        self.layout = layout = detect(good, source.columns, receipt.path, source.labels, source.direction)
        unused = UnusedFields(layout)
        count, without_signal = 0, 0
        noted = self.noted = Counter()
        for record in records:
            if count == most:
                break
            if isinstance(record, BadRecord):
                self.records_read += 1
                self._refuse(record, records, layout)
                continue
            self.record = record
            for fields, outcome in _outcomes(record, layout, noted):
                if count == most:
                    break
                self.records_read += 1  # a tree counts as the records that it holds
                unused.look(fields)
                match outcome:
                    case PreferencePair():
                        if not count and (reason := reason_of(fields, layout)):
                            self.examples.append(_as_example(outcome, reason))
                        count += 1
                        self.pairs_read += 1
                        yield outcome
                    case UnknownLabelError():
                        raise _stopped_by_label(outcome, record.where, [*sample, record], records, layout)
                    case RecordError():
                        self._refuse(record.refused(outcome), records, layout)
                    case NoSignalError(pair=pair):
                        self._drop(outcome.reason, record.where)
                        without_signal += pair is not None
                        if pair is not None and self._on_no_signal == "keep":
                            self.pairs_read += 1
                            yield pair
            if noted:
                for note in noted:
                    self.warnings.add(note, record.where)
                noted.clear()
        self.warnings.counts.update(receipt.warnings)
        late = dict.fromkeys((*layout.unused, *unused.found))  # a field may be empty in all records of the sample
        self._layouts.append((receipt.path, replace(layout, unused=tuple(late)), count + without_signal))

    def _sample(self, records: Records) -> list[RawRecord | BadRecord]:
        """The first records, enough to see a file's layout: at least one that can be read, if there is any."""
        sample = list(islice(records, SAMPLE_RECORDS))
        if self._on_bad_record == "skip" and not any(isinstance(record, RawRecord) for record in sample):
            for record in islice(records, _MOST_BAD + 1 - len(sample)):
                sample.append(record)
                if isinstance(record, RawRecord):
                    break
        return sample

    def _only_bad(self, sample: Sequence[RawRecord | BadRecord], receipt: FileReceipt) -> None:
        """A file of which no record can be read."""
        bad = [record for record in sample if isinstance(record, BadRecord)]
        self.records_read += len(bad)
        if not bad:
            raise UserError("holds no records.", "Name a file with preference pairs.", where=receipt.path)
        if self._on_bad_record == "error":
            raise stopped_by(bad)
        self.bad_records += bad

    def _refuse(self, bad: BadRecord, rest: Records, layout: Layout) -> None:
        """Leave a malformed record out, or stop and show some of those behind it."""
        if self._on_bad_record == "skip":
            self.bad_records.append(bad)
            require_few(self.bad_records)
            return
        others = (_refused(record, layout) for record in islice(rest, _LOOK_AHEAD))
        raise stopped_by([bad, *islice(filter(None, others), _SHOWN_BAD - 1)])

    def _drop(self, reason: str, where: str) -> None:
        if self._on_no_signal == "error":
            raise UserError(
                f"the pair carries no signal: {reason}.",
                "Mend the record, or set data.on_no_signal: drop to leave such pairs out and count them.",
                where=where,
            )
        self.dropped.add(reason, where)


Outcome = PreferencePair | RecordError | NoSignalError
Fields = Mapping[str, Any]


def _outcomes(record: RawRecord, layout: Layout, notes: Counter[RecordNote]) -> Iterator[tuple[Fields, Outcome]]:
    """What a record gives, a tree several times: the fields that the layout is about, and their pair or why not."""
    try:
        found = layout.rewritten(record.fields)
    except RecordError as error:
        yield {}, error
        return
    if not found:
        yield {}, NoSignalError("no ranked replies")
    for fields in found:
        try:
            outcome: Outcome = to_pair(fields, layout, record.where, notes)
        except (RecordError, NoSignalError) as error:
            outcome = error
        yield fields, outcome


def _as_example(pair: PreferencePair, reason: str) -> str:
    texts = [textwrap.shorten(text, _SHOWN_TEXT, placeholder="…") for text in (pair.chosen, pair.rejected)]
    return f"{pair.where}: chosen by {reason}: {texts[0]!r} over {texts[1]!r}"


def _refused(record: RawRecord | BadRecord, layout: Layout) -> BadRecord | None:
    """A record if it is malformed."""
    if isinstance(record, BadRecord):
        return record
    outcomes = (outcome for _, outcome in _outcomes(record, layout, Counter()))
    return next((record.refused(outcome) for outcome in outcomes if isinstance(outcome, RecordError)), None)


def _stopped_by_label(
    unknown: UnknownLabelError, where: str, seen: list[RawRecord | BadRecord], rest: Records, layout: Layout
) -> UserError:
    """The error of a label without a meaning, with the values and counts of the records around it."""
    near = {record.where: record for record in [*seen, *islice(rest, _LOOK_AHEAD)] if isinstance(record, RawRecord)}
    fields = [one for record in near.values() for one, _ in _outcomes(record, layout, Counter())]
    counts = "; ".join(f"{name}: {shown_counts(values_of(fields, name))}" for name in unknown.fields)
    return UserError(f"{unknown.problem}. Its values: {counts}.", unknown.fix, where=where)


def require_few(bad: Sequence[BadRecord]) -> None:
    """Refuse data of which more is malformed than is kept in memory. Raises UserError: names the last of them."""
    if len(bad) > _MOST_BAD:
        last = bad[-1]
        raise UserError(f"more than {_MOST_BAD:,} malformed records: {last.problem}.", last.fix, where=last.where)


def stopped_by(bad: Sequence[BadRecord]) -> UserError:
    """The error that the first malformed record stops with; it shows up to five."""
    first, *others = bad[:_SHOWN_BAD]
    lines = [f"also {other.where}: {other.problem}." for other in others]
    return UserError(f"{first.problem}.", "\n  ".join([*lines, first.fix]), where=first.where)


# Some of the pairs


class PromptSample:
    """The first pairs by hash of their prompt: the same ones however the file is sorted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: list[tuple[int, int, PreferencePair]] = []  # a heap with the last one by hash and number in front
        self._number = 0

    def add(self, pair: PreferencePair) -> None:
        """Take in one more pair."""
        self._number += 1
        entry = (-int(prompt_key(pair), 16), -self._number, pair)
        if len(self._held) < self._most:
            heapq.heappush(self._held, entry)
        elif entry[:2] > self._held[0][:2]:
            heapq.heapreplace(self._held, entry)

    @property
    def pairs(self) -> list[PreferencePair]:
        """Those of the sample, in their own order."""
        return [pair for _, _, pair in sorted(self._held, key=lambda entry: -entry[1])]


def named_pairs(pairs: Iterable[PreferencePair], names: Sequence[str]) -> Iterator[tuple[int, PreferencePair]]:
    """The pairs that a person names, each with its number, in the order of the pairs.

    Nothing is read behind the last of them.

    Args:
        names: a pair's number (1 is the first), or its place as messages and findings write it: `prefs.jsonl:17`,
            `record 17`, `line 17`.

    Raises:
        UserError: there is no such pair.
    """
    wanted = list(dict.fromkeys(names))
    number = 0
    for number, pair in enumerate(pairs, start=1):
        meant = [name for name in wanted if _means(name, number, pair.where)]
        if meant:
            wanted = [name for name in wanted if name not in meant]
            yield number, pair
            if not wanted:
                return
    if wanted:
        raise UserError(
            f"there is no pair {wanted[0]} among the {number:,} that were read.",
            "Give a number from 1 on, or the place as simpo stats writes it, such as prefs.jsonl:17.",
        )


def _means(name: str, number: int, where: str) -> bool:
    digits = name.replace(",", "")
    if digits.isdigit():
        return int(digits) == number
    place = name.removeprefix("line ")
    ending = f":{place}" if place != name else f", {name}"
    return where == name or where.endswith((ending, f"/{name}"))
