"""The pairs that remain when the worst findings are taken out, and the list of what was dropped and why.

A second pass over the sources writes each pair that stays as a line with `prompt`, `chosen` and `rejected`, in a form
that the loader reads back as the very same pair; fields of the record that play no part in it, such as scores, are
kept beside them. A prompt that both answers repeat is taken off them. Both files are written whole or not at all.
"""

import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.audit.examine import Examination
from simpo_cli.data.file_bytes import sha256_of
from simpo_cli.data.formats import NoSignalError, detect, to_pair
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair, RecordError
from simpo_cli.data.text_notes import repeated_prompts
from simpo_cli.errors import UserError
from simpo_cli.files import disk_faults, replacing

SCHEMA_VERSION = 1

DROPPED_CODES = tuple(sorted(code for code, entry in CATALOGUE.items() if entry.drops))
"""Findings whose pairs are left out."""
_OF_ALL_PAIRS = ("LBL005", "LEN001", "MOD001", "SRF001")  # no single pair has them

# Fields that the loader gives a part; the clean record has its own
_PARTS = frozenset((
    "prompt", "chosen", "rejected", "chosen_messages", "rejected_messages", "preferred_output",
    "non_preferred_output", "chosen_response", "rejected_response", "conversations", "messages", "instruction",
    "question", "query", "input", "responses", "completions", "outputs", "answers", "system", "tools", "history",
    "label",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class CleanResult:
    """What was written: `kept` pairs, `mended` of them without the prompt that both answers repeated.

    `dropped` pairs and malformed records are left out; `by_code` counts them, one pair perhaps under several.
    """

    path: Path
    dropped_path: Path
    kept: int
    mended: int
    dropped: int
    by_code: dict[str, int]


def dropped_path(path: Path) -> Path:
    """Where the list of what was dropped goes."""
    return path.with_name(path.name + ".dropped.jsonl")


def require_writable(path: Path, inputs: list[str]) -> None:
    """Refuse (UserError) a file that is read, or that exists and is not, byte for byte, what an earlier call wrote."""
    names = map(os.path.expanduser, inputs)
    if any(os.path.exists(name) and path.exists() and os.path.samefile(path, name) for name in names):
        raise UserError(f"--write-clean {path} is one of the files that are read.", "Name another file.")
    if path.is_dir():
        raise UserError(f"--write-clean {path} is a folder.", "Name a file.")
    for file in (path, dropped_path(path)):
        if file.exists() and not _is_own(path):
            raise UserError(
                f"--write-clean: {file} exists and is not what an earlier --write-clean wrote.",
                "Name another file, or remove this one.",
            )


def _is_own(path: Path) -> bool:
    """Whether both files are there and the list of the dropped names the clean file as it is now."""
    try:
        with dropped_path(path).open(encoding="utf-8") as file:
            header = json.loads(file.readline())
        return bool(header["clean"]["sha256"] == sha256_of(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def require_droppable(codes: Sequence[str]) -> None:
    """Refuse (UserError) codes that are none, or that are about all pairs at once."""
    for code in codes:
        if code not in CATALOGUE or code in _OF_ALL_PAIRS:
            why = "says something of all pairs at once" if code in CATALOGUE else "is not the code of a finding"
            raise UserError(f"--drop {code}: {code} {why}.", "simpo stats --explain all lists the codes.")


def codes_by_number(examination: Examination, also: Sequence[str] = ()) -> dict[int, list[str]]:
    """The codes for which a pair is dropped, those of DROPPED_CODES and `also`, by its number among the pairs read."""
    codes: defaultdict[int, list[str]] = defaultdict(list)
    of_measured = {found.code: examination.numbers[found.pairs] for found in examination.findings}
    for code in sorted({*DROPPED_CODES, *also}):
        for numbers in (of_measured.get(code), examination.left_out.positions(code)):
            for number in () if numbers is None else numbers.tolist():
                codes[number].append(code)
    return codes


def write_clean(
    path: Path, examination: Examination, read_again: Callable[[], PairReader], also: Sequence[str] = ()
) -> CleanResult:
    """Write the pairs that remain, and the list of the others beside them, as FILE.dropped.jsonl.

    Raises:
        UserError: the file may not be written, no pair remains, or the sources have changed.
    """
    require_writable(path, [file.path for file in examination.reader.files])
    codes = codes_by_number(examination, also)
    reader = read_again()
    by_code: Counter[str] = Counter()
    kept = mended = dropped = 0
    with (
        disk_faults(f"--write-clean {path} cannot be written"),
        replacing(path) as clean,
        replacing(dropped_path(path)) as listed,
        TemporaryFile("w+", encoding="utf-8", newline="\n", dir=path.parent) as body,
    ):
        for number, pair in enumerate(reader):
            bare = without_prompts(pair)
            if number in codes or bare is None:
                reasons = codes.get(number, ["TPL003"])
                by_code.update(reasons)
                _write_line(body, {"where": pair.where, "codes": reasons, **_as_record(pair)})
                dropped += 1
                continue
            assert reader.record is not None
            fields = reader.record.fields
            if bare is not pair:
                fields = {name: value for name, value in fields.items() if value not in (pair.chosen, pair.rejected)}
                mended += 1
            _write_line(clean, clean_record(bare, fields))
            kept += 1
        for bad in reader.bad_records:
            by_code["FMT001"] += 1
            _write_line(body, {"where": bad.where, "codes": ["FMT001"], "problem": bad.problem, "record": bad.text})
        dropped += len(reader.bad_records)
        if [file.identity for file in reader.files] != [file.identity for file in examination.reader.files]:
            raise UserError(
                "the data changed while they were read.",
                "Run the command again when nothing writes to them.",
                where=", ".join(source.path for source in reader.sources),
            )
        if not kept:
            raise UserError(
                f"no pair remains of {examination.reader.pairs_read:,}, so nothing was written.",
                "The findings say why each was dropped.",
            )
        clean.flush()
        ties = reader.dropped.counts
        header = {
            "schema_version": SCHEMA_VERSION,
            "tool": "simpo stats --write-clean",
            "clean": {"pairs": kept, "sha256": sha256_of(Path(clean.name))},
            "mended": {"TPL003": mended} if mended else {},
            "dropped": dropped,
            "by_code": dict(sorted(by_code.items())),
            "not_pairs": {reason: ties[reason] for reason in ("tied label", "tied scores") if reason in ties},
        }
        _write_line(listed, header)
        body.seek(0)
        shutil.copyfileobj(body, listed)
    return CleanResult(path, dropped_path(path), kept, mended, dropped, dict(sorted(by_code.items())))


def _write_line(file: IO[str], record: Mapping[str, Any]) -> None:
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can write
        line = json.dumps(record)
    file.write(line + "\n")


# Records


def clean_record(pair: PreferencePair, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record that the loader reads back as this pair, with those of the original's fields that do no harm."""
    plain = _as_record(pair)
    texts = (pair.prompt, pair.chosen, pair.rejected)  # under other names, which the columns mapping tells
    more = {n: value for n, value in fields.items() if n not in _PARTS and value not in texts and _is_json(value)}
    for record in ({**plain, **more}, plain):
        if _reads_back(record, pair):
            return record
    return plain | _as_messages(pair)  # texts that look like a whole dialogue are taken apart unless each is a message


def without_prompts(pair: PreferencePair) -> PreferencePair | None:
    """The pair without its prompt in front of both answers; None where these are then empty or the same.

    A pair whose answers do not both repeat the prompt comes back as it is.
    """
    starts = repeated_prompts(pair)
    if starts is None or pair.chosen_fields or pair.rejected_fields:
        return pair
    chosen, rejected = pair.chosen[starts[0] :], pair.rejected[starts[1] :]
    return replace(pair, chosen=chosen, rejected=rejected) if chosen and rejected and chosen != rejected else None


def _as_record(pair: PreferencePair) -> dict[str, Any]:
    prompt = pair.prompt if isinstance(pair.prompt, str) else [turn.as_record() for turn in pair.prompt]
    record: dict[str, Any] = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    if pair.chosen_fields or pair.rejected_fields:  # reasoning and calls, which only messages have
        record |= _as_messages(pair)
    if pair.template_kwargs is not None:
        record["chat_template_kwargs"] = json.loads(pair.template_kwargs)
    if pair.tools is not None:
        record["tools"] = pair.tools  # as text: read back to the letter
    return record


def _as_messages(pair: PreferencePair) -> dict[str, Any]:
    return {side: [answer.as_record()] for side, answer in zip(("chosen", "rejected"), pair.answers, strict=True)}


def _reads_back(record: Mapping[str, Any], pair: PreferencePair) -> bool:
    try:
        layout = detect([record], {}, "")
        again = to_pair(record, layout, pair.where, Counter())
    except (RecordError, NoSignalError, UserError):
        return False
    return again == pair and (layout.prompt, layout.order, layout.refers) == ("prompt", "names", ())


def _is_json(value: object) -> bool:
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False
