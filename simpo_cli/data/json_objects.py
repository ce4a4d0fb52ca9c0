"""A file that is one JSON object: records in columns or under their ids are read, anything else is named.

pandas and `datasets` write such files (`{"prompt": {"0": ...}}`, `{"prompt": [...]}`, `{"id1": {...}}`). They can only
be read whole, so they may be as large as a record; of a larger one the beginning is looked at, for the command that
turns it into JSON lines. A wrapper (`{"data": [...]}`) is looked for only where the object is no record itself.
"""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from simpo_cli.data.json_records import BOM, NOT_UTF8, TextWindow, blank_end, not_utf8, parse_value
from simpo_cli.data.pair import MAX_RECORD_BYTES, RawRecord, RecordError
from simpo_cli.errors import UserError
from simpo_cli.names import misfit

_SIDES = re.compile(
    r"(?<![a-z])(non|dis)?_?(chosen|rejected|preferred|accepted|response|completion|output|answer|summar(y|ie)"
    r"|candidate|generation)",
    re.IGNORECASE,
)
_PROMPTS = re.compile(
    r"(?<![a-z])(prompt|instruction|question|query|input|message|conversation|context|dialog|turn|history)",
    re.IGNORECASE,
)
_MOST_NAMED = 3  # keys that a message names
_LOOK_DEEP = 3  # objects inside one another that are searched for a list of records
_SAMPLE = 100  # entries of a list or object that a decision is made from

MODEL_HINT = "A model's folder belongs under model.path in the recipe; as data, name a file of preference pairs."
_DESCRIBED = "Name the data file that it describes, or the folder."
_OTHER_OBJECTS = (
    ({"architectures"}, "the configuration of a model", MODEL_HINT),
    ({"model_type"}, "the configuration of a model", MODEL_HINT),
    ({"peft_type"}, "the configuration of an adapter", MODEL_HINT),
    ({"tokenizer_class"}, "the configuration of a tokenizer", MODEL_HINT),
    ({"added_tokens", "model"}, "a tokenizer", MODEL_HINT),
    ({"weight_map"}, "the index of a model's weights", MODEL_HINT),
    ({"transformers_version"}, "the generation configuration of a model", MODEL_HINT),
    ({"log_history"}, "the state of a trainer", "As data, name a file of preference pairs."),
    ({"_data_files", "_fingerprint"}, "the state of a saved data set", _DESCRIBED),
    ({"features", "citation"}, "the description of a data set", _DESCRIBED),
    ({"nbformat", "cells"}, "a notebook of Jupyter", "As data, name a file of preference pairs."),
)
"""Objects that are no data: keys that they have, what they are, what to do."""
_DESCRIPTIONS = ({"file_name"}, {"hf_hub_url"}, {"ms_hub_url"}, {"script_url"}, {"features", "splits"})
_ERROR_KEYS = {"error", "detail", "message", "status", "statusCode", "status_code", "code"}

_COLUMNS_TO_LINES = "to_entries | map(.key as $k | .value | to_entries | map({($k): .value})) | transpose[] | add"
_SPLIT_TO_LINES = ".columns as $c | .data[] | [$c, .] | transpose | map({(.[0]): .[1]}) | add"


def read_object(chunks: Iterator[bytes], name: str) -> tuple[Iterator[RawRecord] | None, Iterator[bytes]]:
    """The records of a file that is one JSON object, None where it is to be read as lines; and all its content anew.

    Raises:
        UserError: the file is one object that holds no records, or not in a form that can be read.
    """
    kept: list[bytes] = []
    window = TextWindow(_keeping(chunks, kept))
    window.skip_blanks()
    window.position += window.text.startswith(BOM.decode(), window.position)
    window.skip_blanks()
    records = _look(window, name)
    return records, chain(kept, chunks)


def _keeping(chunks: Iterator[bytes], kept: list[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        kept.append(chunk)
        yield chunk


def _look(window: TextWindow, name: str) -> Iterator[RawRecord] | None:
    is_line = _first_line_is_whole(window)
    try:
        value, end = window.value(lambda: len(window.text) - window.position <= MAX_RECORD_BYTES and window.grow())
        length = end - window.position
    except RecordError as problem:
        if is_line:
            return None  # a record that is refused as one
        raise UserError(f"{problem.problem}.", problem.fix, where=name) from None
    except json.JSONDecodeError:
        text = window.text[window.position :]
        if len(text) > MAX_RECORD_BYTES:
            return _read(_beginning(text), name, whole=False)
        _refuse_open_lines(text, name)
        return None
    if not window.text[window.position + length :].strip():
        window.grow()
    if window.text[window.position + length :].strip() or not window.at_end:
        if is_line:
            return None
        raise _over_several_lines(name)
    records = _read(value, name, whole=length <= MAX_RECORD_BYTES)
    if records is None and not is_line:
        raise _over_several_lines(name)
    if records is not None and (found := NOT_UTF8.search(window.text)):
        refusal = not_utf8(window, found.start())
        raise UserError(f"{refusal.problem}.", refusal.fix, where=name)
    return records


def _first_line_is_whole(window: TextWindow) -> bool:
    """Whether the object ends on its first line, as far as that is in view."""
    text = window.text
    end = text.find("\n", window.position)
    try:
        stop = parse_value(text[window.position : end if end >= 0 else None])[1]
    except RecordError:
        return True
    except json.JSONDecodeError:
        return end < 0
    return stop > 0


def _refuse_open_lines(text: str, name: str) -> None:
    """Refuse objects over several lines that are not valid as a whole; a first line that is merely cut is a record."""
    lines = [line for line in text.split("\n", 20)[:20] if line.strip()]
    if len(lines) < 2 or lines[1].lstrip().startswith("{"):
        return
    try:
        parse_value(lines[0])
    except json.JSONDecodeError as error:
        if error.pos >= len(lines[0].rstrip()) and not error.msg.startswith("Unterminated"):
            raise _over_several_lines(name) from None
    except RecordError:
        return


def _over_several_lines(name: str) -> UserError:
    fix = f"Write one list of records, or one record a line: {_jq('.', name)}"
    return UserError("holds JSON objects over several lines.", fix, where=name)


def _beginning(text: str) -> dict[str, Any]:
    """What is in view of an object that is too large: its whole values, and of the one that is cut the first entry."""
    seen: dict[str, Any] = {}
    decode = json.JSONDecoder().raw_decode
    position = 1
    try:
        for _ in range(_SAMPLE):
            key, position = decode(text, _next(text, position, ""))
            position = _next(text, position, ":")
            opening, first = text[position], position + 1
            try:
                seen[key], position = decode(text, position)
            except json.JSONDecodeError:
                entry, behind = decode(text, _next(text, first, ""))
                if opening == "{":
                    entry = {entry: decode(text, _next(text, behind, ":"))[0]}
                seen[key] = entry if opening == "{" else [entry]
                return seen
            position = _next(text, position, ",")
    except (json.JSONDecodeError, IndexError, RecursionError):
        pass
    return seen


def _next(text: str, position: int, sign: str) -> int:
    """The place of the next value, behind blanks and a sign."""
    for expected in (sign, ""):
        position = blank_end(text, position)
        position += len(expected) if expected and text.startswith(expected, position) else 0
    return position


# What one object is


def _read(value: dict[str, Any], name: str, *, whole: bool) -> Iterator[RawRecord] | None:
    """The records of an object, or None where it may be a record itself.

    Where only its beginning is in view (not `whole`), a form that could be read is refused with the command.
    """
    is_record = _holds_pair(value)
    if not is_record:
        _refuse_other_objects(value, name)
    form = _form_of(value, name, whole=whole)
    if form is not None:
        rows, how, program = form
        if whole:
            return (RawRecord(f"{name}, record {n}", row) for n, row in enumerate(rows, start=1))
        problem = f"is one JSON object of more than {MAX_RECORD_BYTES // 2**20} MiB, with its records {how}."
        raise UserError(problem, _as_lines(program, name), where=name)
    if not is_record:
        _refuse_wrapped(value, name)
    return None


def _form_of(value: dict[str, Any], name: str, *, whole: bool) -> tuple[Iterator[dict[str, Any]], str, str] | None:
    """Rows, how they stand in the object, and the program of jq that writes one a line."""
    inner = list(value.values())
    if _is_split(value):
        header = value["columns"]
        return (dict(zip(header, row, strict=True)) for row in value["data"]), "beside their columns", _SPLIT_TO_LINES
    if _are_columns(value, least=2 if whole else 1):
        if whole:
            _require_equal_lengths(value, name)
        rows = (dict(zip(value, cells, strict=True)) for cells in zip(*inner, strict=True))
        return rows, "in columns", _COLUMNS_TO_LINES
    listed = {key: column for key, column in value.items() if isinstance(column, list)}
    other = [key for key in value if key not in listed]
    if other and _holds_pair(listed) and _are_columns(listed) and not any(map(_speaks, other)):
        program = f"del({', '.join(f'.{_step(key)}' for key in other)}) | {_COLUMNS_TO_LINES}"
        problem = f"holds its records in columns, and {', '.join(other)} beside them holds no column."
        raise UserError(problem, _as_lines(program, name), where=name)
    if not inner or not all(isinstance(entry, dict) and entry and not _is_message(entry) for entry in inner):
        return None
    index = list(inner[0])
    if _are_numbered_columns(value) or (_holds_pair(value) and not _holds_pair(inner[0])):
        if whole:
            _require_equal_rows(value, name)
        return ({key: value[key][row] for key in value} for row in index), "in columns", _COLUMNS_TO_LINES
    if _is_numbered(list(value)) or all(map(_holds_pair, inner)):
        nested = any(_are_columns(entry) or _are_numbered_columns(entry) for entry in inner)
        return None if nested else (iter(inner), "under their ids", ".[]")
    return None


def _is_split(value: dict[str, Any]) -> bool:
    """Whether an object is a table as pandas writes it with orient="split"."""
    header, data = value.get("columns"), value.get("data")
    if not isinstance(header, list) or not isinstance(data, list) or not value.keys() <= {"columns", "index", "data"}:
        return False
    names = {name for name in header if isinstance(name, str)}
    return len(names) == len(header) and all(isinstance(row, list) and len(row) == len(header) for row in data)


def _are_columns(value: object, *, least: int = 2) -> bool:
    """Whether an object holds a list of values for each column, not records and not the turns of one record."""
    if not isinstance(value, dict) or len(value) < least or not all(isinstance(v, list) for v in value.values()):
        return False
    if not _holds_pair(value):
        columns = value.values()
        return len({*map(len, columns)}) == 1 and all(c and not isinstance(c[0], dict) for c in columns)
    speaking = [column for key, column in value.items() if _speaks(key)]
    return any(column and not any(isinstance(cell, dict) for cell in column[:_SAMPLE]) for column in speaking)


def _are_numbered_columns(value: object) -> bool:
    """Whether an object holds an object of values for each column, by the number of the row, as pandas writes it."""
    if not isinstance(value, dict) or not all(isinstance(v, dict) and _is_numbered(list(v)) for v in value.values()):
        return False
    return not any(_holds_pair(cell) for column in value.values() for cell in column.values())


def _is_numbered(keys: list[str]) -> bool:
    return bool(keys) and keys == [str(n) for n in range(len(keys))]


def _require_equal_lengths(columns: dict[str, list[Any]], name: str) -> None:
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{key} {len(column):,}" for key, column in columns.items())
        problem = f"holds its records in columns that are not of equal length: {lengths}."
        fix = "Which values belong together is not certain; write the file again as one record a line."
        raise UserError(problem, fix, where=name)


def _require_equal_rows(columns: dict[str, dict[str, Any]], name: str) -> None:
    first, rows = next(iter(columns.items()))
    for key, column in columns.items():
        odd = next((row for row in (*rows, *column) if (row in rows) != (row in column)), None)
        if odd is not None:
            raise UserError(
                f"holds its records in columns, and only one of {first!r} and {key!r} has the row {odd!r}.",
                "Write the file again as one record a line; pandas does so with to_json(orient='records', lines=True).",
                where=name,
            )


def _holds_pair(value: object) -> bool:
    """Whether an object has the fields of a pair or of answers to a prompt, going by their names."""
    if not isinstance(value, dict):
        return False
    keys = list(islice(value, _SAMPLE))
    sides = sum(1 for key in keys if _SIDES.search(key))
    return sides >= 2 or (sides == 1 and any(_PROMPTS.search(key) for key in keys))


def _speaks(key: str) -> bool:
    """Whether a key names a part of a pair."""
    return bool(_SIDES.search(key) or _PROMPTS.search(key))


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())


# What is refused


def _refuse_other_objects(value: dict[str, Any], name: str) -> None:
    """Refuse the one object of a file, without the fields of a pair, that is no data by its keys."""
    if {"model", "data"} <= value.keys():
        raise misfit(name, "recipe", "pairs")
    for keys, what, fix in _OTHER_OBJECTS:
        if keys <= value.keys():
            raise UserError(f"is {what}, not data.", fix, where=name)
    entries = list(islice(value.values(), 100))
    if entries and all(isinstance(e, dict) and any(keys <= e.keys() for keys in _DESCRIPTIONS) for e in entries):
        raise UserError("describes data sets and holds no pairs itself.", _DESCRIBED, where=name)
    message = next((entry for entry in entries if isinstance(entry, str)), None)
    if message is not None and value.keys() <= _ERROR_KEYS:
        problem = f"is an error message of a server, not data: {message[:100]!r}."
        raise UserError(problem, "Fetch the file again; gated data needs a login.", where=name)


def _refuse_wrapped(value: dict[str, Any], name: str) -> None:
    """Refuse an object that holds lists of objects under its keys, with the command that takes the records out."""
    held = list(_held(value, ""))
    certain = [(path, program) for path, program, entry in held if _holds_pair(entry)]
    if certain:
        keys = " and ".join(repr(path) for path, _ in certain[:_MOST_NAMED])
        more = f" and {len(certain) - _MOST_NAMED:,} more" if len(certain) > _MOST_NAMED else ""
        if 1 < len(certain) <= _MOST_NAMED:
            commands = [_jq(program, name, re.sub(r"\W+", "-", path) + ".jsonl") for path, program in certain]
        else:
            commands = [_jq(", ".join(program for _, program in certain), name)]
        problem = f"is one object that holds its records under {keys}{more}, not a list of records."
        raise UserError(problem, f"Write one record a line: {'; '.join(commands)}", where=name)
    entries = list(value.values())
    if held and (len(value) == 1 or not any(map(_speaks, value))):
        path, program, entry = held[0]
        raise UserError(
            f"is one object, not a list of records; under {path!r} it holds objects with the fields "
            f"{', '.join(list(entry)[:12])}.",
            f"If these are the records, write one a line: {_jq(program, name)}",
            where=name,
        )
    if len(entries) < 2 or not all(isinstance(entry, dict) and entry for entry in entries):
        return
    if all(entry.keys() == entries[0].keys() for entry in entries) and not _is_message(entries[0]):
        problem = f"is one object of objects, and whether {next(iter(value))!r} is a record or a column is not certain."
        fix = f"If it is a record: {_jq('.[]', name)}. If it is a column: {_jq(_COLUMNS_TO_LINES, name)}"
        raise UserError(problem, fix, where=name)


def _held(value: Any, path: str, depth: int = _LOOK_DEEP) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What may be records inside an object: the path to them, the program of jq that writes them, and one of them."""
    said = path.replace('"', "")
    if path and _holds_pair(value) and (_are_columns(value) or _are_numbered_columns(value)):
        yield said, f".{path} | {_COLUMNS_TO_LINES}", value
        return
    entries = (list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [])[:_SAMPLE]
    if path and entries and all(isinstance(entry, dict) and entry and not _is_message(entry) for entry in entries):
        if all(_holds_pair(entry.get("row")) for entry in entries):  # as the server of the hub's data sets answers
            yield said, f".{path}[].row", entries[0]["row"]
            return
        if isinstance(value, list) or all(map(_holds_pair, entries)):
            yield said, f".{path}[]", entries[0]
            return
    if isinstance(value, dict) and depth:
        for key, entry in list(value.items())[:_SAMPLE]:
            yield from _held(entry, f"{path}.{_step(key)}" if path else _step(key), depth - 1)


def _as_lines(program: str, name: str) -> str:
    return f"Write one record a line: {_jq(program, name)}"


def _step(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII) else json.dumps(key)


def _jq(program: str, name: str, output: str = "pairs.jsonl") -> str:
    """A command that writes what a program of jq makes of a file."""
    unpack = {".gz": "gzip -dc", ".zst": "zstd -dc", ".zstd": "zstd -dc"}
    packed = next((command for suffix, command in unpack.items() if name.lower().endswith(suffix)), None)
    file = shlex.quote(name)
    if packed:
        return f"{packed} {file} | jq -c {shlex.quote(program)} > {output}"
    return f"jq -c {shlex.quote(program)} {file} > {output}"
