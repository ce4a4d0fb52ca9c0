"""Clean files: what stays reads back as it was, what goes is listed, and nothing of others is overwritten."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simpo_cli.audit.clean import clean_record, dropped_path, require_writable, write_clean
from simpo_cli.audit.examine import Tokens, examine
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe
from tests.data.pair_files import load_pairs, write_pairs
from tests.tiny import chatml_tokenizer

RECORDS: list[dict[str, Any]] = [
    {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 5, "score_rejected": 4.5, "tag": ["x", None]},
    {"prompt": "p", "chosen": "a", "rejected": "b"},  # DUP001
    {"prompt": "q", "chosen": "c", "rejected": "d"},  # LBL002
    {"prompt": "q", "chosen": "d", "rejected": "c"},  # LBL002
    {"prompt": "r", "chosen": " ", "rejected": "d"},  # EMP001
    {"prompt": "r", "chosen": "same", "rejected": "same"},  # DUP003
    {"prompt": "s", "chosen": 3, "rejected": "d"},  # FMT001
    {"prompt": "t\u2028\ud83d\ude00", "chosen": "\x1b[31m", "rejected": "é"},
    {
        "prompt": [{"role": "system", "content": "Be."}, {"role": "user", "content": "How?"}],
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "tools": [{"name": "f"}],
    },
]


def reader_of(path: str) -> Callable[[], PairReader]:
    return partial(PairReader, path, role="train", on_bad_record="skip", on_no_signal="keep")


@pytest.fixture
def prefs(tmp_path: Path) -> str:
    return write_pairs(tmp_path, "prefs.jsonl", RECORDS)


def texts_of(pair: PreferencePair) -> tuple[object, ...]:
    return pair.prompt, pair.chosen, pair.rejected, pair.tools


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_what_stays_and_what_goes(prefs: str, tmp_path: Path) -> None:
    out = tmp_path / "clean.jsonl"
    result = write_clean(out, examine(reader_of(prefs)()), reader_of(prefs))
    assert (result.kept, result.dropped) == (3, 6)
    wanted = {"DUP001": 1, "DUP003": 1, "EMP001": 1, "FMT001": 1, "LBL002": 2}
    assert result.by_code == wanted
    before = load_pairs(prefs, role="train", on_bad_record="skip", on_no_signal="keep").pairs
    kept = [pair for pair in before if pair.where.rsplit(":", 1)[1] in ("1", "8", "9")]
    after = load_pairs(str(out), role="train").pairs
    assert [texts_of(pair) for pair in after] == [texts_of(pair) for pair in kept]
    assert lines(out)[0] == RECORDS[0]  # with its scores
    header, *dropped = lines(dropped_path(out))
    assert header["clean"]["pairs"] == 3
    assert (header["dropped"], header["by_code"]) == (6, wanted)
    assert {d["where"].rsplit(":", 1)[1]: d["codes"] for d in dropped} == {
        "2": ["DUP001"],
        "3": ["LBL002"],
        "4": ["LBL002"],
        "5": ["EMP001"],
        "6": ["DUP003"],
        "7": ["FMT001"],
    }
    assert dropped[0]["chosen"] == "a"
    assert json.loads(dropped[-1]["record"]) == RECORDS[6]
    assert dropped[-1]["problem"] == "chosen: expected text or messages, got number"
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["clean.jsonl", "clean.jsonl.dropped.jsonl", "prefs.jsonl"]


def test_a_repeated_prompt_is_taken_off(tmp_path: Path) -> None:
    asked = "Where does the river end?"
    records = [
        {"prompt": asked, "chosen": f"{asked} At sea.", "rejected": f"{asked}\nIn a lake.", "note": "x"},
        {"prompt": asked, "chosen": f"Human: {asked}\n\nAssistant: There.", "rejected": f"{asked} Here."},
        {"prompt": asked, "chosen": f"{asked} Nowhere.", "rejected": "Who knows?"},  # one side alone stays as it is
        {"prompt": asked, "chosen": f"{asked} Same.", "rejected": f"{asked}\nSame."},  # nothing differs behind it
        {"prompt": asked, "chosen": f"{asked} More.", "rejected": f"{asked}"},
    ]
    path, out = write_pairs(tmp_path, "prefs.jsonl", records), tmp_path / "clean.jsonl"
    result = write_clean(out, examine(reader_of(path)()), reader_of(path))
    assert (result.kept, result.mended, result.dropped, result.by_code) == (3, 2, 2, {"TPL003": 2})
    assert lines(out) == [
        {"prompt": asked, "chosen": "At sea.", "rejected": "In a lake.", "note": "x"},
        {"prompt": asked, "chosen": "There.", "rejected": "Here."},
        records[2],
    ]
    header, *dropped = lines(dropped_path(out))
    assert header["mended"] == {"TPL003": 2}
    assert [one["chosen"] for one in dropped] == [records[3]["chosen"], records[4]["chosen"]]
    assert "TPL003" not in {found.code for found in examine(reader_of(str(out))()).findings}


def test_what_is_clean_has_no_error_left_in_tokens(tmp_path: Path) -> None:
    chatml_tokenizer(tmp_path / "model")
    tokens = Tokens(
        load_tokenizer(str(tmp_path / "model")),
        DataRecipe(train="-", max_length=40, max_prompt_length=20, on_bad_record="skip"),
    )
    records = [
        {"prompt": "same", "chosen": "a " * 60 + "b", "rejected": "a " * 60 + "c"},  # identical after the cut
        {"prompt": "<|im_start|>user", "chosen": "a", "rejected": "b"},  # refused by the template
        {"prompt": "e", "chosen": "", "rejected": "b"},
    ]
    records += [{"prompt": f"How {n}?", "chosen": "Open Settings. " * n, "rejected": "x" * n} for n in range(1, 9)]
    path = write_pairs(tmp_path, "prefs.jsonl", records)
    first = examine(reader_of(path)(), tokens)
    codes = {found.code for found in first.findings}
    assert {"TRU002", "TRU004", "FMT001", "EMP001"} <= codes
    out = tmp_path / "clean.jsonl"
    result = write_clean(out, first, reader_of(path))
    assert result.kept == len(lines(out)) > 0
    again = examine(reader_of(str(out))(), tokens)
    assert again.count == result.kept
    assert not {found.code for found in again.findings if found.severity == "error"}
    assert {"TRU004", "EMP001"}.isdisjoint(found.code for found in again.findings)


TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "\n\nHuman: a\n\nAssistant: b",
        "\n\nHuman: a\n\nAssistant:",
        '[{"role": "user"}]',
        "Human: x\n\nAssistant: y\n\nHuman: z\n\nAssistant:",
    ]
)
PROMPTS = TEXTS | st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "assistant"]), TEXTS),
    min_size=1,
    max_size=3,
)
MORE = st.dictionaries(
    st.sampled_from(["score_chosen", "score_rejected", "messages", "input", "system", "history", "source", "label"]),
    st.none() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2),
    max_size=3,
)


@example("p", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c", {}, True)
@example("p", '[{"role": "user"}]', '[{"role": "assistant"}]', {}, True)
@settings(max_examples=60, deadline=None)
@given(PROMPTS, TEXTS, TEXTS, MORE, st.booleans())
def test_any_pair_reads_back(
    tmp_path_factory: pytest.TempPathFactory, prompt: Any, chosen: str, rejected: str, more: dict[str, Any], turns: bool
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    sides = [[{"role": "assistant", "content": text}] if turns else text for text in (chosen, rejected)]
    record = {**more, "prompt": prompt, "chosen": sides[0], "rejected": sides[1]}
    try:
        pair = load_pairs(write_pairs(folder, "a.jsonl", [record]), role="train").pairs[0]
    except UserError:
        return  # no pair to begin with
    again = load_pairs(write_pairs(folder, "b.jsonl", [clean_record(pair, record)]), role="train").pairs[0]
    assert texts_of(again) == texts_of(pair)


def test_tools_read_back_to_the_letter() -> None:
    pair = PreferencePair((Message("user", "p"),), "a", "b", "", tools='[ {"name":"f"} ]')
    assert clean_record(pair, {})["tools"] == pair.tools


def test_only_its_own_files_are_replaced(prefs: str, tmp_path: Path) -> None:
    def write(out: Path) -> None:
        write_clean(out, examine(reader_of(prefs)()), reader_of(prefs))

    out = tmp_path / "clean.jsonl"
    write(out)
    first = out.read_bytes(), dropped_path(out).read_bytes()
    write(out)  # untouched since
    assert (out.read_bytes(), dropped_path(out).read_bytes()) == first
    out.write_bytes(first[0] + b"\n")
    with pytest.raises(UserError, match="is not what an earlier --write-clean wrote"):
        write(out)
    assert out.read_bytes() == first[0] + b"\n"
    with pytest.raises(UserError, match="is one of the files that are read"):
        require_writable(Path(prefs), [prefs])
    with pytest.raises(UserError, match="is a folder"):
        require_writable(tmp_path, [])
    alone = tmp_path / "alone.jsonl"
    dropped_path(alone).write_text("mine")
    with pytest.raises(UserError, match="is not what"):
        write(alone)
    with pytest.raises(UserError, match="cannot be written") as error:
        write(tmp_path / "nowhere" / "clean.jsonl")
    assert error.value.exit_code == ExitCode.ENVIRONMENT


def test_nothing_left_writes_nothing(tmp_path: Path) -> None:
    path = write_pairs(tmp_path, "prefs.jsonl", [{"prompt": "p", "chosen": "", "rejected": "b"}])
    with pytest.raises(UserError, match="no pair remains of 1"):
        write_clean(tmp_path / "clean.jsonl", examine(reader_of(path)()), reader_of(path))
    assert [file.name for file in tmp_path.iterdir()] == ["prefs.jsonl"]


def test_data_that_change_meanwhile_are_noticed(prefs: str, tmp_path: Path) -> None:
    examination = examine(reader_of(prefs)())
    with Path(prefs).open("a") as file:
        file.write(json.dumps({"prompt": "new", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(UserError, match="changed while they were read"):
        write_clean(tmp_path / "clean.jsonl", examination, reader_of(prefs))
    assert [file.name for file in tmp_path.iterdir()] == ["prefs.jsonl"]
