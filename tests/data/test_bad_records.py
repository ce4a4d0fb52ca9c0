"""Every kind of bad record as the only, first, middle and last one of a file, as lines and as a list, plain and gz."""

import json

import pytest

from tests.data.bad_records import RECORDS, good, without
from tests.data.loading import load_pairs, refusal, skipped
from tests.data.pair_files import GOOD, Write, array_of, lines_of

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


def test_the_form_of_the_message(write: Write) -> None:
    record = RECORDS["Messages: content is a number"].placed("middle")
    path = write("data.jsonl", record)
    error = refusal(path)
    assert str(error).splitlines()[0] == f"{path}:2: chosen[1].content: expected text, got number."


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
