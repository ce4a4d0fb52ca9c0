"""JSON lines and JSON arrays to records, by the standard parser and strictly.

A columnar reader would be faster to write and turns "4.5" into 4.5 and dates into timestamps; here every text stays the
text it was. Both forms are read as streams, so a file may be larger than memory. A record that cannot be read is handed
on as a `BadRecord` and reading goes on behind it, as long as it is certain where the next one begins.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from simpo_cli.data.pair import MAX_RECORD_BYTES, BadRecord, RawRecord, RecordError, kind_of
from simpo_cli.errors import UserError
from simpo_cli.files import MAX_DEPTH, is_too_deep

BOM = codecs.BOM_UTF8
_MAX_DIGITS = 1000
_NO_COMMA = "Remove the comma."
_RE_ENCODE = (
    "Re-encode the file as UTF-8 from the encoding that it was written in, such as with iconv -f cp1252 -t utf-8 for "
    "Western Windows."
)
_REWRITE = "Write the file again with a JSON library, such as json.dumps in Python."


# One value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RecordError(f"the key {twice!r} occurs twice in one object", "Keep one of the two values.")
    return fields


def _refuse_constant(name: str) -> float:
    raise RecordError(f"{name} is not a value of JSON", "Write a number or null.")


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise RecordError(f"a whole number of {len(digits):,} digits", "Write it as text, if it is needed at all.")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_whole_number)
_TOO_DEEP = RecordError(f"lists and objects nested more than {MAX_DEPTH} deep", "Flatten the record.")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HALF_ESCAPED = re.compile(r"\\u[dD]")
_BLANK = re.compile(r"[ \t\r\n]*")


def parse_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `start` (not at a blank), and where it ends.

    Raises:
        json.JSONDecodeError: it is not JSON, or not all of it is there.
        RecordError: it is JSON that we do not take.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise _TOO_DEEP from None
    # where a letter is not there at all, that is found ten times as fast as anything is counted
    if text.find("[", start, end) >= 0 or text.find("{", start + 1, end) >= 0:
        brackets = text.count("[", start, end) + text.count("{", start, end)
        if brackets > MAX_DEPTH and is_too_deep(value):
            raise _TOO_DEEP
    if text.find("\\", start, end) >= 0 and _HALF_ESCAPED.search(text, start, end):
        _refuse_surrogates(value)
    return value, end


def whole_value(text: str) -> Any:
    """The one JSON value that a text is, such as a cell of a table that holds messages.

    Raises:
        json.JSONDecodeError: it is not JSON, or something stands behind the value.
        RecordError: it is JSON that we do not take.
    """
    text = text.strip()
    value, end = parse_value(text)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _refuse_surrogates(value: object) -> None:
    waiting: list[tuple[str, object]] = [("", value)]
    while waiting:
        path, one = waiting.pop()
        if isinstance(one, str):
            if found := _SURROGATE.search(one):
                raise RecordError(
                    f"{path or 'the record'}: half of a surrogate pair (\\u{ord(found[0]):04x}), which is no character",
                    "Write the character whole; an emoji may have been cut in two.",
                )
        elif isinstance(one, dict):
            waiting += [(f"{path}.{key}" if path else key, inner) for key, inner in one.items()]
            waiting += [("a key", key) for key in one]
        elif isinstance(one, list):
            waiting += [(f"{path}[{i}]", inner) for i, inner in enumerate(one)]


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the parser only missed what would have come behind the text."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())


def _syntax_problem(error: json.JSONDecodeError, text: str) -> RecordError:
    """What is wrong with JSON that cannot be parsed, in the words of somebody who wrote it."""
    position = error.pos
    here = text[position : position + 1]
    before = text[max(0, position - 100) : position].rstrip()
    column = position - text.rfind("\n", 0, position)
    if _is_cut(error, text):
        return RecordError("the record is cut off", "Write the record whole.")
    if "Illegal trailing comma" in error.msg or (here in ("}", "]") and before.endswith(",")):
        return RecordError(f"not valid JSON: a comma before {here or 'the end'} (column {column})", _NO_COMMA)
    if here == "'":
        return RecordError(f"not valid JSON: single quotes (column {column})", f"JSON has double quotes. {_REWRITE}")
    if here == "#" or text.startswith(("//", "/*"), position):
        return RecordError(f"not valid JSON: a comment (column {column})", "Remove the comment.")
    if text.startswith(("None", "True", "False"), position):
        fix = f"JSON has null, true and false. {_REWRITE}"
        return RecordError(f"not valid JSON: a value of Python (column {column})", fix)
    if error.msg.startswith("Invalid control character"):
        what = "a NUL byte" if here == "\0" else f"a bare control character (\\x{ord(here):02x})"
        return RecordError(f"not valid JSON: {what} inside a text (column {column})", f"Escape it. {_REWRITE}")
    if here == "\0":
        return RecordError(f"a NUL byte (column {column})", "Remove it; a write may have been interrupted.")
    return RecordError(f"not valid JSON: {error.msg[:1].lower()}{error.msg[1:]} (column {column})", _REWRITE)


def _record(where: str, value: object, text: str) -> RawRecord | BadRecord:
    if isinstance(value, dict):
        return RawRecord(where, value, text)
    problem = RecordError(f"expected an object, got {kind_of(value)}", 'A record has the form {"prompt": ..., ...}.')
    return problem.at(where, text)


# JSON lines


def read_lines(chunks: Iterator[bytes], name: str) -> Iterator[tuple[int, int, bytes]]:
    """Lines with their number (from 1) and the offset of their first byte; only a newline byte ends a line.

    Raises:
        UserError: a line is over the size of a record.
    """
    number, offset = 1, 0
    kept: list[bytes] = []
    kept_bytes = 0
    for chunk in chunks:
        if number == 1 and offset == 0 and not kept and chunk.startswith(BOM):
            chunk, offset = chunk.removeprefix(BOM), len(BOM)
        if not kept and chunk.isspace():  # a file of line breaks should not take a step for each
            number, offset = number + chunk.count(b"\n"), offset + len(chunk)
            continue
        *whole, last = chunk.split(b"\n")
        for line in whole:
            if kept:
                kept.append(line)
                line = b"".join(kept)
                kept, kept_bytes = [], 0
            yield number, offset, line
            number += 1
            offset += len(line) + 1
        if last:
            kept.append(last)
            kept_bytes += len(last)
            if kept_bytes > MAX_RECORD_BYTES:
                raise too_long(f"{name}:{number}")
    if kept:
        yield number, offset, b"".join(kept)


def too_long(where: str) -> UserError:
    """The refusal of a file with a record over the limit: what follows could be as long."""
    problem = f"a record of more than {MAX_RECORD_BYTES // 2**20} MiB."
    return UserError(problem, "Is it one JSON record a line? Split the file, or leave that record out.", where=where)


def decode_line(line: bytes, offset: int) -> str:
    """The text of a line.

    Raises:
        RecordError: the line is not UTF-8; the offset in the file is named.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"not UTF-8 at byte {offset + error.start:,} of the file (0x{line[error.start]:02x})", _RE_ENCODE
        ) from None


def read_json_lines(chunks: Iterator[bytes], name: str) -> Iterator[RawRecord | BadRecord]:
    """The records of a file with one JSON object a line; blank lines are passed over."""
    for number, offset, line in read_lines(chunks, name):
        if not line or line.isspace():
            continue
        where = f"{name}:{number}"
        text = ""
        try:
            text = decode_line(line, offset)
            start = 0 if text[0] == "{" else blank_end(text, 0)
            value, end = parse_value(text, start)
            if end != len(text) and not text[end:].isspace():
                raise _more_on_line(text, end)
        except RecordError as problem:
            yield problem.at(where, text or line.decode("utf-8", "replace"))
        except json.JSONDecodeError as error:
            yield _syntax_problem(error, text).at(where, text)
        else:
            yield _record(where, value, text)


def _more_on_line(text: str, end: int) -> RecordError:
    rest = text[end:].strip()
    if "\0" in rest:
        return RecordError(f"a NUL byte (column {end + 1})", "Remove it; a write may have been interrupted.")
    if rest.startswith(","):
        return RecordError("not valid JSON: a comma behind the object", "JSON lines have no commas between records.")
    if rest.startswith("{"):
        return RecordError("two objects on one line", "Put each record on a line of its own.")
    return RecordError(f"not valid JSON: more text behind the object (column {end + 1})", _REWRITE)


def blank_end(text: str, start: int) -> int:
    found = _BLANK.match(text, start)
    assert found is not None
    return found.end()


# JSON array


class TextWindow:
    """The text of a file as a window that moves forward; bytes that are not UTF-8 stay visible as surrogates."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self.text = ""
        self.position = 0
        self.at_end = False
        self._bytes_before = 0  # bytes of the file in front of `text`

    def grow(self) -> bool:
        """Take in at least as much again as there is ahead; False at the end of the file."""
        if self.at_end:
            return False
        gone = self.text[: self.position]
        self._bytes_before += len(gone.encode("utf-8", "surrogateescape"))
        pieces = [self.text[self.position :]]
        wanted, got = len(pieces[0]) + 1, 0
        while got < wanted:
            chunk = next(self._chunks, b"")
            pieces.append(self._decoder.decode(chunk, final=not chunk))
            got += len(pieces[-1])
            if not chunk:
                self.at_end = True
                break
        self.text, self.position = "".join(pieces), 0
        return True

    def skip_blanks(self) -> str:
        """Move to the next character that is not blank and return it; empty at the end of the file."""
        while True:
            self.position = blank_end(self.text, self.position)
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.grow():
                return ""

    def value(self, grow: Callable[[], bool]) -> tuple[Any, int]:
        """The JSON value at the position, with as much in view as it needs by `grow`, and where it ends.

        Raises:
            json.JSONDecodeError, RecordError: as for `parse_value`.
        """
        while True:
            try:
                value, end = parse_value(self.text, self.position)
            except json.JSONDecodeError as error:
                # a literal such as `true` or an escape may be cut by the end of the window as well
                incomplete = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
                if not incomplete or not grow():
                    raise
            else:
                if end < len(self.text) or not grow():  # a number may go on in the next piece
                    return value, end

    def byte_offset(self, position: int) -> int:
        """Where in the file a position of `text` is."""
        return self._bytes_before + len(self.text[:position].encode("utf-8", "surrogateescape"))


_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}"]', re.DOTALL)
_MOST_BRACKETS = 1_000_000  # behind so many the end of a broken record is not looked for
_BARE_WORD = re.compile(r"[^,\]]*")
NOT_UTF8 = re.compile("[\udc80-\udcff]")


def read_json_array(chunks: Iterator[bytes], name: str) -> Iterator[RawRecord | BadRecord]:
    """The records of a file that is one JSON array.

    Raises:
        UserError: the array is broken in a way that leaves open where the next record begins.
    """
    buffer = TextWindow(chunks)
    if buffer.skip_blanks() == "\ufeff":
        buffer.position += 1
        buffer.skip_blanks()
    buffer.position += 1  # the opening bracket
    number = 0
    while True:
        following = buffer.skip_blanks()
        if following == "]" and number == 0:
            break
        number += 1
        where = f"{name}, record {number}"
        if following == "":
            problem = RecordError("the record is cut off: the list does not end", "Write the file whole, with its ].")
            yield problem.at(where, "")
            return
        if following == "]":
            yield RecordError("not valid JSON: a comma before the end of the list", _NO_COMMA).at(where, "")
            break
        record = _element(buffer, where)
        yield record
        following = buffer.skip_blanks()
        if following == "]":
            break
        if following == "":
            if isinstance(record, RawRecord):
                problem = RecordError("the list is cut off behind this record", "Write the file whole, with its ].")
                yield problem.at(where, "")
            return
        if following != ",":
            raise UserError(
                f"no comma behind the record, but {buffer.text[buffer.position : buffer.position + 20]!r}, so nothing "
                "behind it can be read.",
                _REWRITE,
                where=where,
            )
        buffer.position += 1
    buffer.position += 1
    if buffer.skip_blanks():
        raise UserError(
            f"more text behind the end of the list: {buffer.text[buffer.position : buffer.position + 20]!r}.",
            "A file is one list, or one record a line.",
            where=name,
        )


def _element(buffer: TextWindow, where: str) -> RawRecord | BadRecord:
    """The record at the buffer's position, which moves behind it."""
    cut = False
    try:
        value, end = buffer.value(lambda: _may_grow(buffer, where))
    except RecordError as refusal:
        problem = refusal
    except json.JSONDecodeError as error:
        problem, cut = _syntax_problem(error, buffer.text), _is_cut(error, buffer.text)
    else:
        start, buffer.position = buffer.position, end
        if end - start > MAX_RECORD_BYTES:
            raise too_long(where)
        text = buffer.text[start:end]
        if found := NOT_UTF8.search(text):
            return not_utf8(buffer, start + found.start()).at(where, _readable(text))
        return _record(where, value, text)
    end = _skip_element(buffer, where, cut=cut)
    text = buffer.text[buffer.position : end]
    buffer.position = end
    return problem.at(where, _readable(text))


def _readable(text: str) -> str:
    """A text of the window with `?` where it was not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def not_utf8(buffer: TextWindow, position: int) -> RecordError:
    """The refusal of a byte that is not UTF-8, which stands at a position of the window's text."""
    byte = ord(buffer.text[position]) - 0xDC00
    return RecordError(f"not UTF-8 at byte {buffer.byte_offset(position):,} of the file (0x{byte:02x})", _RE_ENCODE)


def _may_grow(buffer: TextWindow, where: str) -> bool:
    if len(buffer.text) - buffer.position > MAX_RECORD_BYTES:
        raise too_long(where)
    return buffer.grow()


def _skip_element(buffer: TextWindow, where: str, *, cut: bool) -> int:
    """Where the broken record ends by its brackets, which must close where the end of the file does not cut it off."""
    while True:
        end = _closing(buffer.text, buffer.position, where)
        if end is not None:
            return end
        if not _may_grow(buffer, where):
            break
    if cut:
        return len(buffer.text)
    raise _lost(where)


def _lost(where: str) -> UserError:
    return UserError("is broken, so that the next record cannot be found.", _REWRITE, where=where)


def _closing(text: str, start: int, where: str) -> int | None:
    """Behind the value that begins at `start`, or None if it does not close."""
    if text[start] not in '{["':
        found = _BARE_WORD.match(text, start)
        assert found is not None
        return found.end() if found.end() < len(text) else None
    depth = 0
    for brackets, found in enumerate(_BRACKETS.finditer(text, start)):
        if found[0] == '"':  # a text that does not close
            return None
        if found[0] in "{[":
            depth += 1
        elif found[0] in "}]":
            depth -= 1
        if depth <= 0:
            return found.end()
        if brackets > _MOST_BRACKETS:
            raise _lost(where)
    return None
