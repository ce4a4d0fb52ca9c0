"""Fuzzing what reads other people's bytes: files, records, the choice of a layout, pairs and messages.

    python -m tests.fuzz.fuzz_records -max_total_time=60

With atheris (pip install '.[fuzz]') the search goes by coverage and takes every option of libFuzzer. Without it the
seeds are changed at random, and -max_total_time, -runs and -seed are understood. Whatever the bytes are, records are
read or refused by our own errors, and a pair has a prompt and two answers that differ. An input that breaks this is
written to `crash-...` in the current folder and the program fails; naming such files runs only them.
"""

import contextlib
import hashlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tests.data.bad_files import FILES
from tests.data.bad_records import RECORDS
from tests.data.pair_files import GOOD, array_of, lines_of

try:
    import atheris
except ImportError:
    atheris = None

as_program = __name__ == "__main__"
with atheris.instrument_imports(include=["simpo_cli.data"]) if as_program and atheris else contextlib.nullcontext():
    from simpo_cli.data.csv_records import read_csv
    from simpo_cli.data.file_bytes import FileReceipt
    from simpo_cli.data.formats import NoSignalError, detect, to_pair
    from simpo_cli.data.json_records import read_json_array, read_json_lines
    from simpo_cli.data.messages import turns_of
    from simpo_cli.data.pair import BadRecord, RawRecord, RecordError, prompt_messages
    from simpo_cli.data.records import read_records
    from simpo_cli.errors import UserError

_PIECE = 61  # bytes: boundaries of pieces fall everywhere
_NAMES = ("a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.tsv")
_scratch = tempfile.TemporaryDirectory()

_TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
_CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
_FORMS: tuple[dict[str, Any], ...] = (
    GOOD,
    {"chosen": _TALK, "rejected": [_TALK[0], {"role": "assistant", "content": [{"type": "text", "text": "hu"}]}]},
    {"prompt": [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}], "chosen": "c", "rejected": "r"},
    {"conversations": [{"from": "human", "value": "u"}], "chosen": {"from": "gpt", "value": "c"}, "rejected": _TALK[1]},
    {"chosen": [_TALK[0], _CALL], "rejected": _TALK, "tools": '[{"name": "f"}]', "prompt": "hi"},
    {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: a\n\nAssistant: y"},
    {"prompt": "System: s\n\nHuman: a\n\nAssistant:", "chosen": " x", "rejected": " y"},
    {"input": {"messages": _TALK[:1]}, "preferred_output": _TALK[1:], "non_preferred_output": [_CALL]},
    {"instruction": "i", "input": "j", "chosen": "c", "rejected": "r", "history": [["q", "a"]], "system": "s"},
    {"question": "q", "response_1": "a", "response_2": "b", "score_1": "1e3", "score_2": 2},
    {"prompt": "p", "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 2}]},
    {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2.5]},
    {"prompt": "p", "chosen": "c", "rejected": "r", "metadata": {"score_chosen": 1, "score_rejected": 1}},
)
_WORDS = (
    *(f'"{key}":' for form in _FORMS for key in form),
    *(f'"{key}":' for key in ("role", "content", "from", "value", "type")),
    *(f'"{word}"' for word in ("text", "user", "assistant", "system", "tool")),
    *("[{", "}]", "{}", "[]", "null", "true", "NaN", "1e999", "-0", '""', "\\u0000", "\\ud800", "\\n", "\n\nHuman:"),
    *("\n\nAssistant:", "\ufeff", "\0", "\x1f\x8b", "PAR1", "\r\n", '","', "[" * 70, "9" * 30, "{'role': '"),
)


def check(data: bytes) -> None:
    """Read bytes as one of several containers, the first byte says which, and make pairs of the records.

    Raises:
        AssertionError: a record became a pair that is none.
        Exception: anything that a reader should not raise.
    """
    kind, content = data[0] if data else 0, data[1:]
    try:
        records = list(_records(kind, content))
    except UserError:
        return
    assert all(isinstance(record, RawRecord | BadRecord) for record in records)
    fields = [record.fields for record in records if isinstance(record, RawRecord)]
    for value in (value for record in fields for value in record.values()):
        with contextlib.suppress(RecordError):
            assert turns_of(value, "x")
    if not fields:
        return
    try:
        layout = detect(fields[:100], {}, "a.jsonl")
    except UserError:
        return
    for record in fields:
        with contextlib.suppress(RecordError, NoSignalError):
            pair = to_pair(record, layout, "a.jsonl:1", Counter())
            assert pair.chosen.strip()
            assert pair.rejected.strip()
            assert pair.chosen != pair.rejected
            assert any(turn.content.strip() for turn in prompt_messages(pair.prompt))
            assert pair.tools is None or isinstance(json.loads(pair.tools), list | dict)


def _records(kind: int, content: bytes) -> Iterable[RawRecord | BadRecord]:
    pieces = (content[start : start + _PIECE] for start in range(0, len(content), _PIECE))
    match kind % 4:
        case 0:
            return read_json_lines(pieces, "a.jsonl")
        case 1:
            return read_json_array(chain([b"["], pieces), "a.json")
        case 2:
            return read_csv(pieces, FileReceipt("a.csv"), content)
        case _:
            path = Path(_scratch.name, _NAMES[kind // 4 % len(_NAMES)])
            path.write_bytes(content)
            return read_records(str(path), FileReceipt(str(path)))[0]


def seeds() -> list[bytes]:
    """The forms that people write, and every kind of bad input that is small."""
    records: list[Any] = [*_FORMS, *(kind.record for kind in RECORDS.values())]
    found = [b"\0" + lines_of([record]) for record in records]
    found += [b"\1" + array_of([record])[1:] for record in records]
    found += [b"\0" + lines_of([form, GOOD, form]) for form in _FORMS]
    found += [b"\2prompt,chosen,rejected\np,c,r\n", b'\2chosen;rejected\n"[{""role"": ""user""}]";x\n']
    for kind in FILES.values():
        if isinstance(kind.make, bytes) and kind.name in _NAMES:
            found.append(bytes([3 + 4 * _NAMES.index(kind.name)]) + kind.make)
    return [seed for seed in found if len(seed) < 4096]


def mutated(found: Sequence[bytes], draw: random.Random) -> bytes:
    """One of the inputs with a few changes: bytes, slices, words of the formats, the end of another input."""
    data = bytearray(draw.choice(found))
    for _ in range(draw.randint(1, 4)):
        start, length = draw.randrange(len(data) + 1), draw.randint(0, 12)
        match draw.randrange(5):
            case 0:
                data[start : start + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[start : start + length]
            case 2:
                data[start:start] = data[start : start + length]
            case 3:
                data[start : start + draw.choice((0, length))] = draw.choice(_WORDS).encode()
            case _:
                other = draw.choice(found)
                data[start:] = other[draw.randrange(len(other) + 1) :]
    return bytes(data)


def _at_random(options: dict[str, str]) -> None:
    """What libFuzzer does, without its guidance."""
    draw = random.Random(int(options.get("seed", "0")))
    found = seeds()
    until = time.monotonic() + float(options.get("max_total_time", "inf"))
    runs = int(options.get("runs", "-1"))
    number = 0
    while time.monotonic() < until and number != runs:
        data = found[number] if number < len(found) else mutated(found, draw)
        number += 1
        try:
            check(data)
        except Exception as error:
            path = Path(f"crash-{hashlib.sha1(data).hexdigest()}")
            path.write_bytes(data)
            error.add_note(f"the input is in {path}")
            raise
    print(f"{number:,} inputs at random, nothing found", file=sys.stderr)


def _by_coverage(arguments: Sequence[str]) -> int:
    """Guided by coverage, in a process of its own: libFuzzer leaves without cleaning up. Returns the exit code."""
    corpus = Path(_scratch.name, "corpus")
    corpus.mkdir()
    for seed in seeds():
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words = Path(_scratch.name, "words.dict")
    escaped = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in dict.fromkeys(_WORDS))
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    defaults = [f"-dict={words}", "-timeout=10", "-max_len=4096", "-print_final_stats=1"]
    if (child := os.fork()) == 0:
        atheris.Setup([sys.argv[0], *defaults, *arguments, str(corpus)], check)
        atheris.Fuzz()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(arguments: Sequence[str]) -> int:
    """The program; returns the exit code."""
    named = [argument for argument in arguments if not argument.startswith("-")]
    for name in named:
        check(Path(name).read_bytes())
    if named:
        return 0
    if atheris is not None:
        return _by_coverage(arguments)
    pairs = (argument.lstrip("-").partition("=") for argument in arguments)
    _at_random({name: value for name, _, value in pairs})
    return 0


if as_program:
    sys.exit(main(sys.argv[1:]))
