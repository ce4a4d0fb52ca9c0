"""The audit as a whole: its numbers in words and in tokens, and its findings."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.audit.document import stats_document
from simpo_cli.audit.examine import NO_LIMIT, NUM_EXAMPLES, UNSPACED, Examination, Tokens, collect_examples, examine
from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.load import PairReader
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource
from tests.data.pair_files import load_pairs
from tests.tiny import chatml_tokenizer


def record(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_file(records: list[dict[str, Any]]) -> str:
        path = tmp_path / "prefs.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return str(path)

    return write_file


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    chatml_tokenizer(tmp_path / "model")
    return load_tokenizer(str(tmp_path / "model"))


def document(examination: Examination) -> dict[str, Any]:
    return stats_document(examination, version="0")


def found(examination: Examination) -> dict[str, tuple[int, list[str]]]:
    return {
        f["code"]: (f["count"], [row.split(":")[-1] for row in f["rows"]]) for f in document(examination)["findings"]
    }


def keeping(path: str, **options: Any) -> PairReader:
    return PairReader(path, role="train", on_no_signal="keep", **options)


def test_words(write: Any) -> None:
    path = write([record("one two", "a b c", "a b"), record("x", "a", "b"), record("y z", "a b", "a  b\n c d")])
    examination = examine(keeping(path))
    assert examination.prompt_len.tolist() == [2, 1, 2]
    assert examination.chosen_len.tolist() == [3, 1, 2]
    assert examination.rejected_len.tolist() == [2, 1, 4]
    shown = document(examination)
    assert (shown["count"], shown["avg_chosen_len"], shown["avg_rejected_len"]) == (3, 2, 2)
    assert shown["columns"]["difference"]["mean"] == pytest.approx(-1 / 3)
    assert shown["bias"]["value"] == 0.5
    assert (shown["bias"]["n"], shown["bias"]["ties"]) == (3, 1)
    low, high = shown["bias"]["ci"]
    assert 0 < low < 0.5 < high < 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "unit", "lengths"),
    [
        ("它在里斯本入海。", "在山里", "characters", (8, 3)),
        ("リスボンで海に注ぐ", "山の中", "characters", (9, 3)),
        ("ที่ลิสบอน", "ในภูเขา", "characters", (9, 7)),
        ('它是 {"city": "Lisbon"}', "它在山里", "characters", (21, 4)),
        ("리스본에서 바다로 흘러든다", "산 속에서", "words", (3, 2)),  # Korean sets spaces
        ("В Лиссабоне, у моря", "В горах", "words", (4, 2)),
        ("It reaches the sea at Lisbon (里斯本)", "in the hills", "words", (7, 3)),
    ],
)
def test_the_unit_goes_by_the_script_of_the_responses(
    write: Any, chosen: str, rejected: str, unit: str, lengths: tuple[int, int]
) -> None:
    examination = examine(keeping(write([record("Where does it end, please?", chosen, rejected)])))
    assert (examination.unit, examination.chosen_len[0], examination.rejected_len[0]) == (unit, *lengths)
    shown = document(examination)
    assert shown["unit"] == unit
    assert shown["columns"]["chosen_len"]["max"] == lengths[0]
    assert shown["bias"]["value"] == 1.0
    assert (shown["input"]["unspaced_share"] >= UNSPACED) == (unit == "characters")


def test_the_longer_wins_by_characters(write: Any) -> None:
    """Longer ones are one word as shorter ones are: counted in words, nothing would be said of them."""
    records = [record(f"p{n}", "他们住在海边的小房子里" if n < 20 else "山", "他们住") for n in range(26)]
    bias = document(examine(keeping(write(records))))["bias"]
    assert (bias["value"], bias["ties"]) == (pytest.approx(20 / 26), 0)


def test_one_unit_for_all_files(write: Any, tmp_path: Path) -> None:
    """The whole decides, whichever file comes first, and the share says what is mixed."""
    english = [record(f"p{n}", "It ends at the sea.", "Nowhere.") for n in range(20)]
    (tmp_path / "zh.jsonl").write_text(json.dumps(record("哪里", "海边", "山")) + "\n")
    paths = [write(english), str(tmp_path / "zh.jsonl")]
    found_units = set()
    for order in (paths, paths[::-1]):
        reader = PairReader([DataSource(path=path) for path in order], role="train", on_no_signal="keep")
        examination = examine(reader)
        found_units.add((examination.unit, examination.unspaced_share))
    assert found_units == {("words", 3 / (3 + 20 * 21))}


def test_findings(write: Any) -> None:
    path = write(
        [
            record("p", "a", "b"),
            record("p", "a", "b"),
            record("p", "b", "a"),
            record("q", "", "b"),
            record("q", "same", "same"),
            record("r", "a\0", "b", score_chosen=1, score_rejected=2),
            record("r", "c", "b", score_chosen=2, score_rejected="2"),
            {"prompt": "s", "chosen": 3, "rejected": "b"},
        ]
    )
    examination = examine(keeping(path, on_bad_record="skip"))
    assert found(examination) == {
        "FMT001": (1, ["8"]),
        "LBL002": (3, ["1", "2", "3"]),
        "CHR001": (1, ["6"]),
        "DUP001": (1, ["2"]),
        "DUP003": (1, ["5"]),
        "EMP001": (1, ["4"]),
        "SCR001": (1, ["6"]),
        "SCR002": (1, ["7"]),
        "SCR003": (1, ["7"]),
    }
    severities = [finding["severity"] for finding in document(examination)["findings"]]
    assert severities == sorted(severities)
    assert document(examination)["input"]["no_signal"] == {"empty response": 1, "identical responses": 1}


@pytest.mark.parametrize(("longer", "says"), [(30, True), (0, True), (15, False), (18, False)])
def test_length_that_predicts_the_label(write: Any, longer: int, says: bool) -> None:
    pairs = [record(f"p{n}", "a b" if n < longer else "a", "b" if n < longer else "b c") for n in range(30)]
    examination = examine(keeping(write(pairs)))
    assert ("LEN001" in found(examination)) == says
    if says:
        assert found(examination)["LEN001"][0] == 30


def test_the_interval_goes_by_prompt(write: Any) -> None:
    def width(pairs: list[dict[str, Any]]) -> float:
        low, high = document(examine(keeping(write(pairs))))["bias"]["ci"]
        return float(high - low)

    sides = [("a b", "c") if n % 3 else ("a", "c d") for n in range(60)]
    apart = [record(f"p{n}", *sides[n]) for n in range(60)]
    together = [record(f"p{n // 10}", *sides[n // 10]) for n in range(60)]
    assert width(together) > 1.5 * width(apart)


def test_tokens_are_those_that_training_scores(write: Any, tokenizer: TextTokenizer) -> None:
    path = write([record(f"How {n}?", "Open Settings. " * n, "x" * n) for n in range(1, 9)])
    data = DataRecipe(train="-", max_length=40, max_prompt_length=20)
    examination = examine(PairReader(path, role="train"), Tokens(tokenizer, data))
    encoded = encode_pairs(load_pairs(path, role="train").pairs, tokenizer, data).pairs
    for column, side in (("prompt_len", "prompt"), ("chosen_len", "chosen"), ("rejected_len", "rejected")):
        assert getattr(examination, column).tolist() == [len(getattr(pair, side)) for pair in encoded]
    one = [str(n + 1) for n, pair in enumerate(encoded) if pair.chosen_cut != pair.rejected_cut]
    assert found(examination)["TRU002"] == (len(one), one)
    shown = document(examination)
    assert (shown["unit"], shown["input"]["unspaced_share"]) == ("tokens", None)
    assert shown["input"]["tokens"] == {"tokenizer": tokenizer.where, "max_length": 40, "max_prompt_length": 20}


def test_without_a_limit_nothing_is_cut(write: Any, tokenizer: TextTokenizer) -> None:
    path = write([record("p " * 3000, "a " * 3000, "b")])
    data = DataRecipe(train="-", max_length=NO_LIMIT, max_prompt_length=NO_LIMIT - 1)
    examination = examine(PairReader(path, role="train"), Tokens(tokenizer, data))
    assert examination.chosen_len[0] > 3000
    assert not {code for code in found(examination) if code.startswith("TRU")}
    assert document(examination)["input"]["tokens"]["max_length"] is None


def test_nothing_left_after_the_cut_is_said(write: Any, tokenizer: TextTokenizer) -> None:
    path = write([record("p", "the same start, one", "the same start, two")])
    data = DataRecipe(train="-", max_length=16, max_prompt_length=15)
    with pytest.raises(UserError, match="no pair is left after the cut"):
        examine(PairReader(path, role="train"), Tokens(tokenizer, data))


# Examples


def examples_of(tmp_path: Path, records: list[dict[str, Any]]) -> dict[str, list[int]]:
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def read() -> PairReader:
        return PairReader(str(path), role="train", on_bad_record="skip", on_no_signal="keep")

    examples = collect_examples(examine(read()), read)
    return {code: [int(pair.where.rsplit(":", 1)[1]) for pair in pairs] for code, pairs in examples.items()}


def test_what_contradicts_each_other_is_shown_together(tmp_path: Path) -> None:
    one_way = [{"prompt": f"Question {n} of many?", "chosen": "Yes.", "rejected": "No."} for n in range(5)]
    other_way = [{**record, "chosen": "No.", "rejected": "Yes."} for record in one_way]
    assert examples_of(tmp_path, [*one_way, *other_way])["LBL002"] == [1, 2, 6]


def test_the_first_few_of_each_and_no_malformed_ones(tmp_path: Path) -> None:
    records = [{"prompt": f"{n}", "chosen": "", "rejected": "b"} for n in range(9)]
    records += [{"prompt": "p", "chosen": f"a\0{'b' * n}", "rejected": "b"} for n in range(2)]
    examples = examples_of(tmp_path, [*records, {"prompt": "p"}])
    assert examples["EMP001"] == [1, 2, 3]
    assert len(examples["EMP001"]) == NUM_EXAMPLES
    assert examples["CHR001"] == [10, 11]
    assert "FMT001" not in examples


def test_nothing_found_reads_nothing(tmp_path: Path) -> None:
    assert examples_of(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}]) == {}
