"""Every way in which a data file goes wrong has its outcome: record or file refused, no signal, accepted, counted.

Records are tried as the only, the first, a middle and the last one of a file, as lines and as an array, plain and gz.
"""

import gzip
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from simpo_cli.data.load import LoadedPairs, load_pairs
from simpo_cli.errors import ExitCode, UserError
from tests.data.pair_files import GOOD, Write

PLACES = ["only", "first", "middle", "last"]
CONTAINERS = ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"]

USER = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "ho"}
SAID_ELSE = {"role": "assistant", "content": "hu"}


def good(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


def turns(chosen: Any, rejected: Any = None, **fields: Any) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": [USER, SAID_ELSE] if rejected is None else rejected, **fields}


def deep(levels: int) -> str:
    return '{"prompt": "p", "chosen": "c", "rejected": "r", "x": ' + "[" * levels + "]" * levels + "}"


# a record (or its text), and what the message says
MALFORMED: dict[str, tuple[Any, str]] = {
    "NUL byte in a text": ('{"prompt": "p\x00", "chosen": "c", "rejected": "r"}', "a NUL byte inside a text"),
    "NUL byte between": ('{"prompt": "p",\x00 "chosen": "c", "rejected": "r"}', "a NUL byte"),
    "line break in a text": ('{"prompt": "p\x0b", "chosen": "c", "rejected": "r"}', "a bare control character"),
    "lone surrogate": ('{"prompt": "p", "chosen": "a\\ud83d", "rejected": "r"}', "chosen: half of a surrogate pair"),
    "lone surrogate in a key": ('{"prompt": "p", "chosen": "c", "rejected": "r", "\\udc00": 1}', "a surrogate pair"),
    "single quotes": ("{'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}", "single quotes"),
    "comment": ('{"prompt": "p", /* why */ "chosen": "c", "rejected": "r"}', "a comment"),
    "trailing comma": ('{"prompt": "p", "chosen": "c", "rejected": "r",}', "a comma before }"),
    "Python values": ('{"prompt": "p", "chosen": "c", "rejected": None}', "a value of Python"),
    "duplicate key": (
        '{"prompt": "p", "chosen": "c", "rejected": "r", "chosen": "d"}',
        "the key 'chosen' occurs twice",
    ),
    "duplicate key inside": (
        '{"prompt": "p", "chosen": "c", "rejected": "r", "m": {"a": 1, "a": 2}}',
        "'a' occurs twice",
    ),
    "array": ('["p", "c", "r"]', "expected an object, got list"),
    "string": ('"prompt"', "expected an object, got text"),
    "number": ("17", "expected an object, got number"),
    "null": ("null", "expected an object, got null"),
    "depth over 64": (deep(65), "nested more than 64 deep"),
    "depth of 100,000": (deep(100_000), "nested more than 64 deep"),
    "integer of 5,000 digits": (
        f'{{"prompt": "p", "chosen": "c", "rejected": "r", "n": {"9" * 5000}}}',
        "5,000 digits",
    ),
    "NaN": ('{"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": NaN}', "NaN is not a value of JSON"),
    "Infinity": ('{"prompt": "p", "chosen": "c", "rejected": "r", "score_chosen": -Infinity}', "-Infinity is not"),
    "infinite score": (
        '{"prompt":"p","chosen":"c","rejected":"r","score_chosen":1e999,"score_rejected":1}',
        "is no score",
    ),
    "bool score": (good(score_chosen=True, score_rejected=1), "score_chosen: expected a number, got true or false"),
    "missing prompt": (without("prompt"), "prompt is missing"),
    "missing chosen": (without("chosen"), "chosen is missing"),
    "missing rejected": (without("rejected"), "rejected is missing"),
    "wrong case": ({**without("chosen"), "Chosen": "c"}, "chosen is missing"),
    "null chosen": (good(chosen=None), "chosen: expected text or messages, got null"),
    "null prompt": (good(prompt=None), "prompt: expected text or messages, got null"),
    "number chosen": (good(chosen=4.5), "chosen: expected text or messages, got number"),
    "number prompt": (good(prompt=4), "prompt: expected text or messages, got number"),
    "list against text": (good(chosen=[SAID]), "chosen is a list and rejected is text"),
    "empty prompt": (good(prompt=""), "prompt is empty"),
    "blank prompt": (good(prompt=" \n\t"), "prompt is empty"),
}

MALFORMED_MESSAGES: dict[str, tuple[Any, str]] = {
    "empty list": (turns([]), "chosen: an empty list of messages"),
    "last turn not assistant": (turns([USER, SAID, USER]), "chosen[2]: the last turn is by user"),
    "system not first": (
        turns([USER, {"role": "system", "content": "s"}, SAID]),
        "chosen[1]: a system turn that is not",
    ),
    "unknown role": (turns([{"role": "narrator", "content": "x"}, SAID]), "chosen[0].role: unknown role 'narrator'"),
    "role is a number": (turns([{"role": 1, "content": "x"}, SAID]), "chosen[0].role: expected text, got number"),
    "no role": (turns([{"content": "x"}, SAID]), "chosen[0]: no role"),
    "content missing": (turns([USER, {"role": "assistant"}]), "chosen[1]: no content"),
    "content null": (turns([USER, {"role": "assistant", "content": None}]), "chosen[1].content: no content"),
    "content a number": (
        turns([USER, {"role": "assistant", "content": 3}]),
        "chosen[1].content: expected text, got number",
    ),
    "message is text": (turns(["hi", SAID]), "chosen[0]: expected a message with role and content, got text"),
    "image part": (
        turns([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, SAID]),
        "chosen[0].content[0]: a content part of type 'image_url'",
    ),
    "part without text": (
        turns([{"role": "user", "content": [{"type": "text"}]}, SAID]),
        "chosen[0].content[0].text: expected",
    ),
    "prompts differ": (turns([{"role": "user", "content": "ha"}, SAID]), "prompts of chosen and rejected differ"),
    "one answer only": (turns([SAID]), "prompts of chosen and rejected differ"),
    "blank prompt": (
        turns([{"role": "user", "content": " "}, SAID], [{"role": "user", "content": " "}, SAID_ELSE]),
        "is empty",
    ),
}

NO_SIGNAL: dict[str, tuple[Any, str]] = {
    "empty chosen": (good(chosen=""), "empty response"),
    "blank rejected": (good(rejected=" \n"), "empty response"),
    "equal": (good(chosen="It is green."), "identical responses"),
}

ACCEPTED: dict[str, Any] = {
    "extra key": good(extra=[{"a": None}]),
    "escaped line separator": good(chosen="a\u2028b"),
    "depth of 64": deep(63),
    "date": good(chosen="2024-01-01"),
    "long whole number": '{"prompt": "p", "chosen": "c", "rejected": "r", "n": ' + "9" * 900 + "}",
    "null score": good(score_chosen=None, score_rejected=None),
}

WARNED: dict[str, tuple[Any, str]] = {
    "escaped NUL": (good(chosen="a\0b"), "NUL characters in texts"),
    "score as text": (good(score_chosen="4.5", score_rejected=2), "scores written as text"),
    "tied scores": (good(score_chosen=2, score_rejected=2.0), "tied scores"),
    "score against label": (good(score_chosen=1, score_rejected=2), "scores order the pair against its label"),
}


def placed(record: Any, place: str, others: Any = GOOD) -> list[Any]:
    """A record among good ones."""
    if place == "only":
        return [record]
    if place == "first":
        return [record, others, others]
    return [others, record, others] if place == "middle" else [others, others, record]


def refusal(path: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_pairs(path, role="train", **options)
    return caught.value


def skipped(path: str) -> LoadedPairs:
    return load_pairs(path, role="train", on_bad_record="skip")


def number(place: str, container: str) -> str:
    n = {"only": 1, "first": 1, "middle": 2, "last": 3}[place]
    return f", record {n}" if container.startswith("a.json") and ".jsonl" not in container else f":{n}"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_records(write: Write, kind: str, place: str, container: str) -> None:
    record, said = MALFORMED[kind]
    path = write(container, placed(record, place))
    error = refusal(path)
    if kind == "array" and place == "only" and ".jsonl" in container:
        said, container = "expected an object, got text", "a.json"  # a file of one line may as well be an array
    assert said in error.problem
    assert error.where == path + number(place, container)
    assert error.exit_code == ExitCode.USAGE
    if place == "only":
        assert refusal(path, on_bad_record="skip").exit_code == ExitCode.USAGE
        return
    loaded = skipped(path)
    assert len(loaded.pairs) == 2
    assert [said in bad.problem for bad in loaded.bad_records] == [True]
    assert loaded.records_read == 3


@pytest.mark.parametrize("container", ["a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", MALFORMED_MESSAGES)
def test_malformed_messages(write: Write, kind: str, place: str, container: str) -> None:
    record, said = MALFORMED_MESSAGES[kind]
    path = write(container, placed(record, place, turns([USER, SAID])))
    error = refusal(path)
    assert said in error.problem
    assert error.where == path + number(place, container)
    if place != "only":
        loaded = skipped(path)
        assert (len(loaded.pairs), len(loaded.bad_records)) == (2, 1)


@pytest.mark.parametrize("container", ["a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", NO_SIGNAL)
def test_pairs_without_signal(write: Write, kind: str, place: str, container: str) -> None:
    record, reason = NO_SIGNAL[kind]
    path = write(container, placed(record, place))
    error = refusal(path, on_no_signal="error")
    assert error.problem == f"the pair carries no signal: {reason}."
    assert error.where == path + number(place, container)
    if place == "only":
        assert "no usable pair in 1 records" in refusal(path).problem
        return
    loaded = load_pairs(path, role="train")
    assert len(loaded.pairs) == 2
    assert loaded.dropped == {reason: 1}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("place", PLACES)
def test_accepted_and_warned(write: Write, place: str, container: str) -> None:
    for record in ACCEPTED.values():
        loaded = load_pairs(write(container, placed(record, place)), role="train")
        assert len(loaded.pairs) == (1 if place == "only" else 3)
        assert not loaded.warnings
    for record, said in WARNED.values():
        loaded = load_pairs(
            write(container, placed(record, place, good(score_chosen=2, score_rejected=1))), role="train"
        )
        assert len(loaded.pairs) == (1 if place == "only" else 3)
        assert loaded.warnings == {said: 1}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
@pytest.mark.parametrize("place", PLACES)
def test_bytes_that_are_not_utf8(write: Write, place: str, name: str) -> None:
    lines = [json.dumps(record).encode() for record in placed(good(chosen="HERE"), place)]
    content = b"[" + b",\n".join(lines) + b"]" if ".json" in Path(name).suffixes else b"\n".join(lines)
    path = write(name, content.replace(b"HERE", b"caf\xe9"))
    error = refusal(path)
    assert f"not UTF-8 at byte {content.index(b'HERE') + 3:,} of the file (0xe9)" in error.problem
    assert error.where == path + number(place, name)
    if place != "only":
        assert len(skipped(path).pairs) == 2


def test_the_offset_counts_a_byte_order_mark(write: Write) -> None:
    content = b'{"prompt": "\xe9", "chosen": "c", "rejected": "r"}'
    for data in (content, b"[" + content + b"]"):
        assert f"byte {3 + data.index(0xE9):,} " in refusal(write("a.json", b"\xef\xbb\xbf" + data)).problem


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("count", [1, 3])
def test_a_file_cut_in_its_last_record(tmp_path: Path, count: int, pack: Any) -> None:
    for text in ("".join(json.dumps(GOOD) + "\n" for _ in range(count)), json.dumps([GOOD] * count)):
        start = text.rindex('{"prompt"')
        for end in range(start + 1, len(text.rstrip("]\n")), 7):
            path = tmp_path / "cut"
            path.write_bytes(pack(text[:end].encode()))
            error = refusal(str(path))
            assert "cut off" in error.problem, text[:end]
            if count > 1:
                loaded = skipped(str(path))
                assert (len(loaded.pairs), len(loaded.bad_records)) == (count - 1, 1), text[:end]


def test_an_array_without_its_end(write: Write) -> None:
    for ending in ("", ",", ", "):
        loaded = skipped(write("a.json", "[" + json.dumps(GOOD) + ending))
        assert len(loaded.pairs) == 1
        assert loaded.bad_records[0].problem.endswith(("cut off behind this record", "does not end"))


def test_two_objects_on_a_line(write: Write) -> None:
    line = json.dumps(GOOD)
    for double in (line + line, line + " " + line):
        for place in PLACES:
            error = refusal(write("a.jsonl", placed(double, place)))
            assert error.problem == "two objects on one line."
    assert "a comma behind the object" in refusal(write("a.jsonl", [line + ",", GOOD])).problem


def test_an_array_whose_order_is_lost_is_refused(write: Write) -> None:
    line = json.dumps(GOOD)
    for broken in (f"[{line} {line}]", f"[{line}, {line[:-10]}, {line}, {line}]", f"[{line}]{line}"):
        error = refusal(write("a.json", broken), on_bad_record="skip")
        assert error.exit_code == ExitCode.USAGE


# Files


@pytest.mark.parametrize("ending", ["\n", "", "\r\n", "\n\n\n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n \n"])
def test_line_ends_blank_lines_and_marks_are_accepted(write: Write, start: str, ending: str) -> None:
    between = ending or "\n"
    for name in ("a.jsonl", "a.jsonl.gz"):
        path = write(name, start + between.join([json.dumps(GOOD)] * 3) + ending)
        assert len(load_pairs(path, role="train").pairs) == 3
    assert len(load_pairs(write("a.json", start + json.dumps([GOOD]) + ending), role="train").pairs) == 1


REFUSED_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.jsonl", b"", "holds no records: it is empty"),
    "empty array": ("a.json", b"[]", "holds no records"),
    "only newlines": ("a.jsonl", b"\n\n\r\n", "holds no records"),
    "only a byte order mark": ("a.jsonl", b"\xef\xbb\xbf", "holds no records"),
    "UTF-16": ("a.jsonl", json.dumps(GOOD).encode("utf-16"), "UTF-16"),
    "UTF-16 without mark": ("a.jsonl", json.dumps(GOOD).encode("utf-16-le"), "UTF-16"),
    "UTF-16 big": ("a.jsonl", json.dumps(GOOD).encode("utf-16-be"), "UTF-16"),
    "zeros": ("a.jsonl", bytes(5000), "filled with zero bytes"),
    "CSV": ("a.jsonl", b"prompt,chosen,rejected\na,b,c\n", "looks like a table (CSV) with columns split by ','"),
    "TSV": ("a.jsonl", b"prompt\tchosen\trejected\na\tb\tc\n", "split by tabs"),
    "HTML": ("a.jsonl", b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
    "LFS pointer": (
        "a.jsonl",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "pointer of Git LFS",
    ),
    "prose": ("a.jsonl", b"# Notes\n\nThis is a text.\n", "is not JSON: it begins with '# Notes'"),
    "zip": ("a.jsonl", b"PK\x03\x04rest", "a zip archive"),
    "xz": ("a.jsonl.xz", b"\xfd7zXZ\x00rest", "an xz file"),
    "wrapped": ("a.json", json.dumps({"data": [GOOD]}).encode(), "holds its records under 'data'"),
    "wrapped with more": (
        "a.json",
        json.dumps({"version": 1, "rows": [GOOD]}).encode(),
        "holds its records under 'rows'",
    ),
    "wrapped, indented": ("a.json", json.dumps({"data": [GOOD]}, indent=1).encode(), "holds its records under 'data'"),
    "one object over lines": ("a.json", json.dumps(GOOD, indent=1).encode(), "JSON objects over several lines"),
    "Parquet by name": ("a.parquet", b"nothing of the kind", "is not a Parquet file"),
    "Parquet cut": ("a.parquet", b"PAR1" + bytes(200), "is not a whole Parquet file"),
    "Arrow cut": ("a.arrow", b"ARROW1" + bytes(200), "is not a whole Arrow file"),
    "empty gz": ("a.csv", b"", "holds no records"),
    "CSV without header": ("a.csv", b"", "holds no records"),
}


@pytest.mark.parametrize("kind", REFUSED_FILES)
def test_refused_files(write: Write, kind: str) -> None:
    name, content, said = REFUSED_FILES[kind]
    for path in (write(name, content), write(f"{name}.gz", content)):
        if path.endswith((".xz.gz", ".parquet.gz", ".arrow.gz")):
            continue
        error = refusal(path)
        assert said in error.problem
        assert error.where.startswith(path)
        assert error.fix
        assert refusal(path, on_bad_record="skip").problem == error.problem


def test_damaged_archives(tmp_path: Path) -> None:
    data = "".join(json.dumps(good(n=n, chosen=f"It is {n * n}.")) + "\n" for n in range(3000)).encode()
    packed, frames = gzip.compress(data), zstandard.compress(data)
    checked = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    for name, content, said in (
        ("cut.jsonl.gz", packed[: len(packed) // 2], "damaged gzip file: it ends in the middle"),
        ("cut in its check.jsonl.gz", packed[:-3], "damaged gzip file: it ends in the middle"),
        ("crc.jsonl.gz", packed[:-8] + bytes(4) + packed[-4:], "damaged gzip file"),
        ("tail.jsonl.gz", packed + b"tail", "damaged gzip file"),
        ("flipped.jsonl.gz", packed[:5000] + bytes([packed[5000] ^ 255]) + packed[5001:], "damaged gzip file"),
        ("cut.jsonl.zst", frames[: len(frames) // 2], "damaged zstd file: it ends in the middle"),
        ("crc.jsonl.zst", checked[:-1] + bytes([checked[-1] ^ 1]), "damaged zstd file"),
    ):
        (tmp_path / name).write_bytes(content)
        error = refusal(str(tmp_path / name), on_bad_record="skip")
        assert said in error.problem or "JSON" in error.problem, error


def test_a_plain_file_named_gz_is_read_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_text(json.dumps(GOOD))
    loaded = load_pairs(str(path), role="train")
    assert len(loaded.pairs) == 1
    assert loaded.warnings == {f"{path} is named .gz and is not compressed": 1}


def test_bombs_and_records_without_end_are_refused_quickly(tmp_path: Path) -> None:
    """In a process of its own, for its memory."""
    line = json.dumps(GOOD).encode() + b"\n"
    many = 2**24
    bombs = {  # the beginning, and what comes twenty times behind it
        "line.jsonl.gz": (b'{"prompt": "', b"a" * many),
        "breaks.jsonl.gz": (line, b"\n" * many),
        "array.json.gz": (b"[", b" " * many),
        "text.json.gz": (b'[{"prompt": "', b"a" * many),
        "lists.json.gz": (b"[", b"[" * many),
        "flat.json.gz": (b"[[x", b"[]," * (many // 3)),
        "objects.jsonl.gz": (line, b"{}\n" * (many // 3)),
    }
    for name, (start, rest) in bombs.items():
        (tmp_path / name).write_bytes(gzip.compress(start) + 20 * gzip.compress(rest, 1))
    frames = 50 * zstandard.compress(b"a" * many)
    (tmp_path / "line.jsonl.zst").write_bytes(zstandard.compress(b'{"prompt": "') + frames)
    (tmp_path / "long.jsonl").write_bytes(b'{"prompt": "' + b"a" * (40 * 2**20) + b'"}\n' + line)
    (tmp_path / "long.json").write_bytes(b'[{"prompt": "' + b"a" * (40 * 2**20) + b'"}]')
    code = """
import sys, time
from simpo_cli.data.load import load_pairs
from simpo_cli.errors import UserError
for path in sys.argv[1:]:
    for policy in ("error", "skip"):
        start = time.process_time()
        try:
            load_pairs(path, role="train", on_bad_record=policy)
            said = "read"
        except UserError as error:
            said = ascii(error.problem)
        # of this process alone: getrusage would count what its parent held
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
        print(time.process_time() - start, int(peak) / 1024, path, said)
"""
    paths = [str(tmp_path / name) for name in [*bombs, "line.jsonl.zst", "long.jsonl", "long.json"]]
    output = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True).stdout
    for result in output.splitlines():
        seconds, megabytes, _, said = result.split(maxsplit=3)
        assert said != "read", result
        assert float(seconds) < 5, result
        assert float(megabytes) < 500, result
    assert len(output.splitlines()) == 2 * len(paths)


def test_things_that_are_no_files_never_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, bound, loop, dangling = (
        tmp_path / name for name in ("pipe.jsonl", "sock.jsonl", "loop.jsonl", "dangling.jsonl")
    )
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("sock.jsonl")
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nothing")
    for path, said in (
        (pipe, "is a pipe"),
        (bound, "is a socket"),
        (loop, "a symbolic link that leads back to itself"),
        (dangling, "does not exist"),
        (Path("/dev/null"), "is a device"),
        (Path("/dev/zero"), "is a device"),
    ):
        started = time.monotonic()
        assert said in refusal(str(path)).problem
        assert time.monotonic() - started < 5
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "a.jsonl")
    assert "is a pipe" in refusal(str(tmp_path / "folder")).problem


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_as_a_user(write: Write) -> None:
    path = write("a.jsonl", [GOOD])
    os.chmod(path, 0)
    assert "permission denied" in refusal(path).problem


def test_files_without_permission(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.jsonl", [GOOD])

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    assert "permission denied" in refusal(path).problem


def test_a_folder_without_data(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    assert "is a folder without data files" in refusal(str(tmp_path)).problem


def test_missing_files_get_a_suggestion(write: Write, tmp_path: Path) -> None:
    path = write("prefs.jsonl", [GOOD])
    for missing in ("pref.jsonl", "prefs.json", "Prefs.jsonl", "prefs.jsnol"):
        error = refusal(str(tmp_path / missing))
        assert error.problem == "does not exist."
        assert error.fix == f"Did you mean {path}?"
    assert "Data files in" in refusal(str(tmp_path / "quite-another.csv")).fix
    assert refusal(str(tmp_path / "no" / "such" / "folder.jsonl")).exit_code == ExitCode.USAGE


def test_a_long_word_is_no_trouble(write: Write) -> None:
    path = write("a.jsonl", [good(chosen="a" * 10_000_000)])
    started = time.monotonic()
    assert len(load_pairs(path, role="train").pairs[0].chosen) == 10_000_000
    assert time.monotonic() - started < 5


def test_parquet_with_a_null_or_a_nan(tmp_path: Path) -> None:
    rows = [good(score_chosen=2.0, score_rejected=1.0), good(score_chosen=float("nan"), score_rejected=1.0)]
    pq.write_table(pa.Table.from_pylist([*rows, good(chosen=None)]), tmp_path / "a.parquet")
    loaded = skipped(str(tmp_path / "a.parquet"))
    assert [bad.problem for bad in loaded.bad_records] == [
        "score_chosen: nan is no score",
        "chosen: expected text or messages, got null",
    ]
    content = (tmp_path / "a.parquet").read_bytes()
    for cut in (len(content) // 2, len(content) - 5):
        (tmp_path / "cut.parquet").write_bytes(content[:cut])
        assert "is not a whole Parquet file" in refusal(str(tmp_path / "cut.parquet")).problem
    damaged = bytearray(content)
    damaged[30:60] = bytes(30)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    assert refusal(str(tmp_path / "damaged.parquet")).exit_code == ExitCode.USAGE


# The message


def test_the_first_bad_record_stops_and_up_to_five_are_shown(write: Write) -> None:
    path = write("a.jsonl", [GOOD] + [good(chosen=n) for n in range(7)] + [GOOD])
    lines = str(refusal(path)).splitlines()
    assert lines[0] == f"{path}:2: chosen: expected text or messages, got number."
    assert lines[1:5] == [f"  also {path}:{n}: chosen: expected text or messages, got number." for n in (3, 4, 5, 6)]
    assert lines[5:] == ["  Mend the record, or set data.on_bad_record: skip to leave such records out and count them."]


def test_did_you_mean(write: Write) -> None:
    for wrong in ("Chosen", "CHOSEN", " chosen", "choosen", "chosen_"):
        error = refusal(write("a.jsonl", [{**without("chosen"), wrong: "c"}]))
        assert error.problem == "chosen is missing."
        assert error.fix.startswith(f"Did you mean chosen where it says {wrong}?")


def test_a_file_of_only_bad_records_in_skip_mode_says_why(write: Write) -> None:
    error = refusal(write("a.jsonl", ["{oops"] * 300), on_bad_record="skip")
    assert "no usable pair in 300 records (300 malformed)" in error.problem
    good_late = write("b.jsonl", ["{oops"] * 300 + [json.dumps(GOOD)] * 2)
    assert len(skipped(good_late).pairs) == 2
