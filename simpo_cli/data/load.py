"""Sources to pairs: training, evaluation, `stats` and `inspect` all read through here; no record is left uncounted."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Literal

from simpo_cli.data.formats import SAMPLE_RECORDS, Layout, NoSignalError, UnknownLabelError, detect, to_pair
from simpo_cli.data.formats.orders import shown_counts, values_of
from simpo_cli.data.formats.pairs import reason_of
from simpo_cli.data.formats.unused import UnusedFields
from simpo_cli.data.hub import read_hub
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.raw import BadRecord, FileReceipt, RawRecord, RecordError, RecordNote, Tally
from simpo_cli.data.records import read_records
from simpo_cli.data.sources import HubData, LocalFile, Role, locate, missing_shards
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataSource, FieldError, has_control_characters

__all__ = [
    "BadRecord",
    "FileReceipt",
    "LoadedPairs",
    "PairReader",
    "load_pairs",
    "prompt_messages",
    "require_few",
    "source_named",
    "stopped_by",
]

_SHOWN_BAD = 5
_SHOWN_TEXT = 40  # characters of each response of an example
_MOST_BAD = 100_000  # left out with `skip`; they are kept in memory, and a file with more is not what it seems
_LOOK_AHEAD = 10_000  # records that are looked at behind the first bad one, to show more of the trouble at once

Records = Iterator[RawRecord | BadRecord]
NoSignalPolicy = Literal["drop", "error", "keep"]


@dataclass
class LoadedPairs:
    """The pairs of all sources, and what became of every record.

    Attributes:
        pairs: the pairs, in the order of the sources, repeated as the sources say.
        bad_records: malformed records that were left out.
        dropped: pairs without signal, by reason.
        decision: how the files were understood, in words.
        records_read: records of any kind.
        files: what was read: path, sha256 or hub commit, size.
        warnings: things worth telling that stop nothing, with their number.
    """

    pairs: list[PreferencePair] = field(default_factory=list)
    bad_records: list[BadRecord] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    decision: str = ""
    records_read: int = 0
    files: list[tuple[str, str, int]] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)


def load_pairs(
    sources: str | Sequence[DataSource],
    *,
    role: Role,
    on_bad_record: Literal["error", "skip"] = "error",
    on_no_signal: NoSignalPolicy = "drop",
) -> LoadedPairs:
    """Read every pair of the sources into memory.

    Args:
        sources: a file, folder, hub id or `builtin:guide`, or a list of sources.
        role: what the pairs are for; `builtin:guide` has other pairs for training than for evaluation.
        on_bad_record: stop at malformed records, or leave them out and count them.
        on_no_signal: leave out pairs that cannot teach, or stop, or keep them; they are counted in any case.

    Raises:
        UserError: a source is missing or not readable, a record is malformed, or no usable pair is left.
    """
    reader = PairReader(sources, role=role, on_bad_record=on_bad_record, on_no_signal=on_no_signal)
    pairs: list[PreferencePair] = []
    for source in reader.sources:
        pairs += list(reader.read_source(source)) * source.repeat
    reader.require_pairs()
    return LoadedPairs(
        pairs=pairs,
        bad_records=reader.bad_records,
        dropped=reader.dropped.counts,
        decision=reader.decision,
        records_read=reader.records_read,
        files=[(file.path, file.identity, file.size) for file in reader.files],
        warnings=reader.warnings.counts,
    )


def source_named(path: str) -> DataSource:
    """The source that a person names on the command line or in Python.

    Raises:
        UserError: nothing can have such a name.
    """
    try:
        return DataSource(path=path)
    except FieldError as error:
        reason = ": it holds a control character" if has_control_characters(path) else ""
        raise UserError(f"{path!r} names no data{reason}.", error.fix) from error


def prompt_messages(prompt: tuple[Message, ...] | str) -> tuple[Message, ...]:
    """The prompt as turns: plain text is what a user says. Two prompts are the same if their turns are."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


class PairReader:
    """Pairs as a stream, each source once; what became of the records can be read from it afterwards.

    Args:
        sources, role, on_bad_record, on_no_signal: as for `load_pairs`.

    Attributes:
        record: what the pair last given was read from.
        noted: what is worth telling of that pair and stops nothing.
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
        self.dropped = Tally()
        self.warnings = Tally()
        self.records_read = 0
        self.pairs_read = 0
        self.files: list[FileReceipt] = []
        self.record: RawRecord | None = None
        self.noted: Counter[RecordNote] = Counter()
        self._layouts: list[tuple[str, Layout, int]] = []
        self.examples: list[str] = []
        """Of each file in which a label, scores or ranks say the order: its first pair, and what said it."""
        self.layout: Layout | None = None
        """How the file that is being read was understood; None before the first."""

    def __iter__(self) -> Iterator[PreferencePair]:
        for source in self.sources:
            yield from self.read_source(source)
        self.require_pairs()

    def read_source(self, source: DataSource) -> Iterator[PreferencePair]:
        """The usable pairs of one source, at most its `max_pairs`, once."""
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
        merged: dict[tuple[str, str], list[tuple[str, int]]] = {}
        for name, layout, pairs in self._layouts:
            merged.setdefault((layout.described(), layout.response), []).append((name, pairs))
        said = []
        for (layout_said, response), files in merged.items():
            place = "" if len(merged) == 1 else f"{', '.join(name for name, _ in files)}: "
            count = sum(pairs for _, pairs in files)
            pairs_said = f"{count:,} pair{'s' if count != 1 else ''}"
            said.append(f"{place}{layout_said}, {pairs_said}, response = {response}")
        return "; ".join(said)

    @property
    def remarks(self) -> list[str]:
        """What else is worth saying of how the files were understood: meanings of labels, fields that are not used."""
        said = dict.fromkeys(remark for _, layout, _ in self._layouts for remark in layout.remarks)
        unused = dict.fromkeys(field for _, layout, _ in self._layouts for field in layout.unused)
        return [*said, *([f"not used: {', '.join(unused)}"] if unused else [])]

    def _note_example(self, fields: Mapping[str, Any], layout: Layout, pair: PreferencePair) -> None:
        reason = reason_of(fields, layout)
        if reason:
            chosen, rejected = (
                textwrap.shorten(text, _SHOWN_TEXT, placeholder="…") for text in (pair.chosen, pair.rejected)
            )
            self.examples.append(f"{pair.where}: chosen by {reason}: {chosen!r} over {rejected!r}")

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
            self.records_read += 1
            if isinstance(record, BadRecord):
                self._refuse(record, records, layout)
                continue
            self.record = record
            try:
                found = layout.rewritten(record.fields)
            except RecordError as problem:
                self._refuse(BadRecord(record.where, problem.problem, problem.fix, record.shown()), records, layout)
                continue
            if not found:
                self._drop("no ranked replies", record.where)
            self.records_read += max(0, len(found) - 1)  # a tree counts as the records that it holds
            for fields in found:
                if count == most:
                    break
                unused.look(fields)
                try:
                    pair = to_pair(fields, layout, record.where, noted)
                except UnknownLabelError as unknown:
                    seen = [*sample, record]
                    raise _stopped_by_label(unknown, record.where, seen, records, layout) from unknown
                except RecordError as problem:
                    self._refuse(BadRecord(record.where, problem.problem, problem.fix, record.shown()), records, layout)
                except NoSignalError as no_signal:
                    self._drop(no_signal.reason, record.where)
                    without_signal += no_signal.pair is not None
                    if no_signal.pair is not None and self._on_no_signal == "keep":
                        self.pairs_read += 1
                        yield no_signal.pair
                else:
                    if not count:
                        self._note_example(fields, layout, pair)
                    count += 1
                    self.pairs_read += 1
                    yield pair
            if noted:
                for what in noted:
                    self.warnings.add(what, record.where)
                noted.clear()
        self.warnings.counts.update(receipt.warnings)
        late = dict.fromkeys((*layout.unused, *unused.found))  # a field may be empty in all records of the sample
        self._layouts.append((receipt.path, replace(layout, unused=tuple(late)), count + without_signal))

    def _sample(self, records: Records) -> list[RawRecord | BadRecord]:
        """The first records, enough to see a file's layout: at least one that can be read, if there is any."""
        sample: list[RawRecord | BadRecord] = []
        some_good = False
        for record in records:
            sample.append(record)
            some_good = some_good or isinstance(record, RawRecord)
            if len(sample) >= SAMPLE_RECORDS and (some_good or self._on_bad_record == "error"):
                break
            if len(sample) > _MOST_BAD:
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
        if self._on_bad_record == "skip":
            self.bad_records.append(bad)
            require_few(self.bad_records)
            return
        found = [bad]
        for _, record in zip(range(_LOOK_AHEAD), rest, strict=False):
            if isinstance(record, RawRecord):
                try:
                    for fields in layout.rewritten(record.fields):
                        to_pair(fields, layout, record.where, Counter())
                except RecordError as problem:
                    found.append(BadRecord(record.where, problem.problem, problem.fix, ""))
                except NoSignalError:
                    pass
            else:
                found.append(record)
            if len(found) == _SHOWN_BAD:
                break
        raise stopped_by(found)

    def _drop(self, reason: str, where: str) -> None:
        if self._on_no_signal == "error":
            raise UserError(
                f"the pair carries no signal: {reason}.",
                "Mend the record, or set data.on_no_signal: drop to leave such pairs out and count them.",
                where=where,
            )
        self.dropped.add(reason, where)


def _stopped_by_label(
    unknown: UnknownLabelError, where: str, seen: list[RawRecord | BadRecord], rest: Records, layout: Layout
) -> UserError:
    """The error of a label without a meaning, with the values and counts of the records around it."""
    near = {record.where: record for record in [*seen, *islice(rest, _LOOK_AHEAD)] if isinstance(record, RawRecord)}
    fields = [one for record in near.values() for one in _rewritten_or_none(record, layout)]
    counts = "; ".join(f"{name}: {shown_counts(values_of(fields, name))}" for name in unknown.fields)
    return UserError(f"{unknown.problem}. Its values: {counts}.", unknown.fix, where=where)


def require_few(bad: Sequence[BadRecord]) -> None:
    """Refuse data of which more is malformed than is kept in memory.

    Raises:
        UserError: names the last of them.
    """
    if len(bad) > _MOST_BAD:
        last = bad[-1]
        raise UserError(f"more than {_MOST_BAD:,} malformed records: {last.problem}.", last.fix, where=last.where)


def stopped_by(bad: Sequence[BadRecord]) -> UserError:
    """The error that the first malformed record stops with; it shows up to five."""
    first, *others = bad[:_SHOWN_BAD]
    lines = [f"also {other.where}: {other.problem}." for other in others]
    return UserError(f"{first.problem}.", "\n  ".join([*lines, first.fix]), where=first.where)


def _rewritten_or_none(record: RawRecord, layout: Layout) -> Sequence[Mapping[str, Any]]:
    try:
        return layout.rewritten(record.fields)
    except RecordError:
        return ()
