"""Every kind of bad file and record, plain and gz: refused with what it looks like, or read; never a hang or a bomb.

A bad record is the only, first, middle and last one of a file, as lines and as a list.
"""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from simpo_cli.errors import ExitCode
from tests.data.bad_files import FILES, FileKind
from tests.data.bad_records import RECORDS, good, without
from tests.data.pair_files import GOOD, Write, array_of, lines_of, load_pairs, refusal, skipped


def packed(kind: FileKind, folder: Path) -> str | None:
    """The same file as gz, where there is such a thing."""
    if not isinstance(kind.make, bytes) or kind.name.endswith((".gz", ".zst", ".xz", ".parquet", ".arrow")):
        return None
    path = folder / f"{kind.name}.gz"
    path.write_bytes(gzip.compress(kind.make))
    return str(path)


@pytest.mark.parametrize("name", [name for name, kind in FILES.items() if kind.outcome == "F"])
def test_refused_files(tmp_path: Path, name: str) -> None:
    kind = FILES[name]
    for path in filter(None, (kind.at(tmp_path), packed(kind, tmp_path))):
        error = refusal(path)
        assert kind.said in error.problem
        assert error.where.startswith(path)
        if isinstance(kind.make, bytes):  # the others take longer, and have no records to skip
            assert refusal(path, on_bad_record="skip").problem == error.problem


@pytest.mark.parametrize("name", [name for name, kind in FILES.items() if kind.outcome == "R"])
def test_files_with_a_record_that_is_refused(tmp_path: Path, name: str) -> None:
    kind = FILES[name]
    for path in filter(None, (kind.at(tmp_path), packed(kind, tmp_path))):
        assert kind.said in refusal(path).problem
        loaded = skipped(path)
        assert len(loaded.bad_records) == 1
        assert len(loaded.pairs) == (3 if "behind" in name else 2)


@pytest.mark.parametrize("name", [name for name, kind in FILES.items() if kind.outcome in "AW"])
def test_files_that_are_read(tmp_path: Path, name: str) -> None:
    kind = FILES[name]
    for path in filter(None, (kind.at(tmp_path), packed(kind, tmp_path))):
        loaded = load_pairs(path, role="train")
        assert [pair.chosen for pair in loaded.pairs] == [GOOD["chosen"]] * 3
        assert list(loaded.warnings) == ([f"{path} {kind.said}"] if kind.outcome == "W" else [])


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
from simpo_cli.data.load import PairReader
from simpo_cli.errors import UserError
for path in sys.argv[1:]:
    for policy in ("error", "skip"):
        start = time.process_time()
        try:
            list(PairReader(path, role="train", on_bad_record=policy))
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


def test_missing_files_get_a_suggestion(write: Write, tmp_path: Path) -> None:
    path = write("prefs.jsonl", [GOOD])
    for missing in ("pref.jsonl", "prefs.json", "Prefs.jsonl", "prefs.jsnol"):
        error = refusal(str(tmp_path / missing))
        assert error.problem == "does not exist."
        assert error.fix == f"Did you mean {path}?"
    assert "Data files in" in refusal(str(tmp_path / "quite-another.csv")).fix
    assert refusal(str(tmp_path / "no" / "such" / "folder.jsonl")).exit_code == ExitCode.USAGE


def test_parquet_with_a_null_or_a_nan(tmp_path: Path) -> None:
    rows = [good(score_chosen=2.0, score_rejected=1.0), good(score_chosen=float("nan"), score_rejected=1.0)]
    pq.write_table(pa.Table.from_pylist([*rows, good(chosen=None)]), tmp_path / "a.parquet")
    loaded = skipped(str(tmp_path / "a.parquet"))
    assert [bad.problem for bad in loaded.bad_records] == ["chosen: expected text or messages, got null"]
    assert len(loaded.pairs) == 2  # pandas writes a score that is missing as NaN
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    damaged[30:60] = bytes(30)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    assert refusal(str(tmp_path / "damaged.parquet")).exit_code == ExitCode.USAGE


PLACES = ["only", "first", "middle", "last"]
CONTAINERS = ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"]


def of(*outcomes: str) -> list[str]:
    """The kinds with these outcomes."""
    return [name for name, kind in RECORDS.items() if kind.outcome in outcomes]


def number(place: str, container: str) -> str:
    n = {"only": 1, "first": 1, "middle": 2, "last": 3}[place]
    return f":{n}" if ".jsonl" in container else f", record {n}"


def containers_of(name: str) -> list[str]:
    return CONTAINERS if RECORDS[name].in_lists else [c for c in CONTAINERS if ".jsonl" in c]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", of("R"))
def test_refused(write: Write, name: str, place: str) -> None:
    kind = RECORDS[name]
    for container in containers_of(name):
        path = write(container, kind.placed(place))
        error = refusal(path)
        if name == "JSON: record is array" and place == "only":
            assert "expected an object, got" in error.problem  # of lines, one may as well be a list of three
            continue
        assert kind.said in error.problem
        assert error.where == path + number(place, container)
        if place == "only":
            assert "no usable pair in 1 records (1 malformed)" in refusal(path, on_bad_record="skip").problem
            continue
        loaded = skipped(path)
        assert len(loaded.pairs) == 2
        assert [kind.said in bad.problem for bad in loaded.bad_records] == [True]
        assert loaded.records_read == 3


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", of("D"))
def test_dropped(write: Write, name: str, place: str) -> None:
    kind = RECORDS[name]
    for container in containers_of(name):
        path = write(container, kind.placed(place))
        error = refusal(path, on_no_signal="error")
        assert error.problem == f"the pair carries no signal: {kind.said}."
        assert error.where == path + number(place, container)
        if place == "only":
            assert f"no usable pair in 1 records (1 {kind.said})" in refusal(path).problem
            continue
        loaded = load_pairs(path, role="train")
        assert len(loaded.pairs) == 2
        assert loaded.dropped == {kind.said: 1}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", of("W", "A"))
def test_accepted_and_counted(write: Write, name: str, place: str) -> None:
    kind = RECORDS[name]
    for container in containers_of(name):
        loaded = load_pairs(write(container, kind.placed(place)), role="train")
        assert len(loaded.pairs) == (1 if place == "only" else 3)
        assert loaded.warnings == ({kind.said: 1} if kind.outcome == "W" else {})


@pytest.mark.parametrize("place", PLACES)
def test_the_place_of_bytes_that_are_not_utf8(write: Write, place: str) -> None:
    for container in CONTAINERS:
        records = RECORDS["File: invalid UTF-8"].placed(place)
        content = lines_of(records) if ".jsonl" in container else array_of(records)
        problem = refusal(write(container, records)).problem
        assert f"not UTF-8 at byte {content.index(0xE9):,} of the file (0xe9)" in problem


def test_the_offset_counts_a_byte_order_mark(write: Write) -> None:
    content = b'{"prompt": "\xe9", "chosen": "c", "rejected": "r"}'
    for data in (content, b"[" + content + b"]"):
        assert f"byte {3 + data.index(0xE9):,} " in refusal(write("a.json", b"\xef\xbb\xbf" + data)).problem


def test_a_parsed_text_is_what_the_file_holds(write: Write) -> None:
    """Nothing becomes a number, a date or another line; text parts are joined."""
    for name, prompt, chosen in (
        ("JSON: ISO dates", GOOD["prompt"], "2024-01-01"),
        ("File: U+2028 in a string", "p", "a\u2028b\u0085c"),
        ("File: \\u0000 in text", GOOD["prompt"], "a\0b"),
    ):
        (pair,) = load_pairs(write("a.jsonl", RECORDS[name].placed("only")), role="train").pairs
        assert (pair.prompt, pair.chosen) == (prompt, chosen)
    (pair,) = load_pairs(write("a.jsonl", RECORDS["Messages: text parts"].placed("only")), role="train").pairs
    assert [turn.content for turn in pair.prompt if not isinstance(turn, str)] == ["hi"]
    (pair,) = load_pairs(write("a.jsonl", RECORDS["Messages: tool turns"].placed("only")), role="train").pairs
    assert [turn.role for turn in pair.prompt if not isinstance(turn, str)] == ["user", "assistant", "tool"]


def test_a_long_word_is_no_trouble_as_text(write: Write) -> None:
    path = write("a.jsonl", [good(chosen="a" * 10_000_000)])
    assert len(load_pairs(path, role="train").pairs[0].chosen) == 10_000_000


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
