"""The audit as a whole: its numbers in words and in tokens, its findings, and the pairs that show them."""

import re
from collections.abc import Callable
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
from tests.data.pair_files import load_pairs, write_pairs
from tests.tiny import FAMILIES, chatml_tokenizer

FINE = {"prompt": "How?", "chosen": "Open Settings, choose People.", "rejected": "Ask somebody else."}
Write = Callable[[list[dict[str, Any]]], str]


def record(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda records: write_pairs(tmp_path, "prefs.jsonl", records)


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    chatml_tokenizer(tmp_path / "model")
    return load_tokenizer(str(tmp_path / "model"))


@pytest.fixture
def audit(write: Write, tokenizer: TextTokenizer) -> Callable[..., Examination]:
    """Examine records in tokens; further arguments are keys of the recipe's data."""

    def of(records: list[dict[str, Any]], other: TextTokenizer | None = None, **data: Any) -> Examination:
        recipe = DataRecipe(train="-", on_bad_record="skip", **data)
        return examine(keeping(write(records), on_bad_record="skip"), Tokens(other or tokenizer, recipe))

    return of


def document(examination: Examination) -> dict[str, Any]:
    return stats_document(examination, version="0")


def lines(examination: Examination) -> dict[str, list[int]]:
    """The lines that each finding names."""
    return {f.code: [int(row.rsplit(":", 1)[1]) for row in f.rows] for f in examination.findings}


def keeping(path: str | list[DataSource], **options: Any) -> PairReader:
    return PairReader(path, role="train", on_no_signal="keep", **options)


def test_words(write: Write) -> None:
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
    write: Write, chosen: str, rejected: str, unit: str, lengths: tuple[int, int]
) -> None:
    examination = examine(keeping(write([record("Where does it end, please?", chosen, rejected)])))
    assert (examination.unit, examination.chosen_len[0], examination.rejected_len[0]) == (unit, *lengths)
    shown = document(examination)
    assert shown["unit"] == unit
    assert shown["columns"]["chosen_len"]["max"] == lengths[0]
    assert shown["bias"]["value"] == 1.0
    assert (shown["input"]["unspaced_share"] >= UNSPACED) == (unit == "characters")


def test_the_longer_wins_by_characters(write: Write) -> None:
    """Longer ones are one word as shorter ones are: counted in words, nothing would be said of them."""
    records = [record(f"p{n}", "他们住在海边的小房子里" if n < 20 else "山", "他们住") for n in range(26)]
    bias = document(examine(keeping(write(records))))["bias"]
    assert (bias["value"], bias["ties"]) == (pytest.approx(20 / 26), 0)


def test_one_unit_for_all_files(write: Write, tmp_path: Path) -> None:
    """The whole decides, whichever file comes first, and the share says what is mixed."""
    english = [record(f"p{n}", "It ends at the sea.", "Nowhere.") for n in range(20)]
    paths = [write(english), write_pairs(tmp_path, "zh.jsonl", [record("哪里", "海边", "山")])]
    found_units = set()
    for order in (paths, paths[::-1]):
        examination = examine(keeping([DataSource(path=path) for path in order]))
        found_units.add((examination.unit, examination.unspaced_share))
    assert found_units == {("words", 3 / (3 + 20 * 21))}


def test_findings(write: Write) -> None:
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
    assert lines(examination) == {
        "FMT001": [8],
        "LBL002": [1, 2, 3],
        "CHR001": [6],
        "DUP001": [2],
        "DUP003": [5],
        "EMP001": [4],
        "SCR001": [6],
        "SCR002": [7],
        "SCR003": [7],
    }
    found = document(examination)["findings"]
    assert [finding["severity"] for finding in found] == sorted(finding["severity"] for finding in found)
    assert [finding["count"] for finding in found] == [len(finding["rows"]) for finding in found]
    assert document(examination)["input"]["no_signal"] == {"empty response": 1, "identical responses": 1}


@pytest.mark.parametrize(("longer", "says"), [(30, True), (0, True), (15, False), (18, False)])
def test_length_that_predicts_the_label(write: Write, longer: int, says: bool) -> None:
    pairs = [record(f"p{n}", "a b" if n < longer else "a", "b" if n < longer else "b c") for n in range(30)]
    examination = examine(keeping(write(pairs)))
    assert [f["count"] for f in document(examination)["findings"] if f["code"] == "LEN001"] == ([30] if says else [])


def test_the_interval_goes_by_prompt(write: Write) -> None:
    def width(pairs: list[dict[str, Any]]) -> float:
        low, high = document(examine(keeping(write(pairs))))["bias"]["ci"]
        return float(high - low)

    sides = [("a b", "c") if n % 3 else ("a", "c d") for n in range(60)]
    apart = [record(f"p{n}", *sides[n]) for n in range(60)]
    together = [record(f"p{n // 10}", *sides[n // 10]) for n in range(60)]
    assert width(together) > 1.5 * width(apart)


def test_tokens_are_those_that_training_scores(write: Write, tokenizer: TextTokenizer) -> None:
    path = write([record(f"How {n}?", "Open Settings. " * n, "x" * n) for n in range(1, 9)])
    data = DataRecipe(train="-", max_length=40, max_prompt_length=20)
    examination = examine(PairReader(path, role="train"), Tokens(tokenizer, data))
    encoded = encode_pairs(load_pairs(path, role="train").pairs, tokenizer, data).pairs
    for column, side in (("prompt_len", "prompt"), ("chosen_len", "chosen"), ("rejected_len", "rejected")):
        assert getattr(examination, column).tolist() == [len(getattr(pair, side)) for pair in encoded]
    assert lines(examination)["TRU002"] == [
        number for number, pair in enumerate(encoded, 1) if pair.chosen_cut != pair.rejected_cut
    ]
    shown = document(examination)
    assert (shown["unit"], shown["input"]["unspaced_share"]) == ("tokens", None)
    assert shown["input"]["tokens"] == {"tokenizer": tokenizer.where, "max_length": 40, "max_prompt_length": 20}


def test_without_a_limit_nothing_is_cut(write: Write, tokenizer: TextTokenizer) -> None:
    path = write([record("p " * 3000, "a " * 3000, "b")])
    data = DataRecipe(train="-", max_length=NO_LIMIT, max_prompt_length=NO_LIMIT - 1)
    examination = examine(PairReader(path, role="train"), Tokens(tokenizer, data))
    assert examination.chosen_len[0] > 3000
    assert not {code for code in lines(examination) if code.startswith("TRU")}
    assert document(examination)["input"]["tokens"]["max_length"] is None


def test_nothing_left_after_the_cut_is_said(write: Write, tokenizer: TextTokenizer) -> None:
    path = write([record("p", "the same start, one", "the same start, two")])
    data = DataRecipe(train="-", max_length=16, max_prompt_length=15)
    with pytest.raises(UserError, match="no pair is left after the cut"):
        examine(PairReader(path, role="train"), Tokens(tokenizer, data))


# What only tokens show


def test_a_fine_pair_has_no_findings_and_its_codes_passed(audit: Callable[..., Examination]) -> None:
    examination = audit([FINE])
    assert examination.findings == []
    passed = stats_document(examination, version="0")["passed"]
    assert {"EOS001", "TRU002", "TOK002", "CHR003", "FMT001", "DUP001"} <= set(passed)
    assert "LEK001" not in passed  # nothing was there to compare with
    assert "SRF001" not in passed  # one prompt is not enough


def test_each_in_its_place(audit: Callable[..., Examination]) -> None:
    long, other = "a b " * 100, "c d " * 100
    records = [
        FINE,
        {**FINE, "chosen": long},  # 2: one side cut
        {**FINE, "chosen": long, "rejected": other},  # 3: both cut
        {**FINE, "chosen": long + "x", "rejected": long + "y"},  # 4: identical after the cut
        {**FINE, "chosen": "", "rejected": "b"},  # 5: empty
        {**FINE, "chosen": "same", "rejected": "same"},  # 6: identical
        {**FINE, "chosen": "a"},  # 7: short
        {**FINE, "prompt": long},  # 8: prompt cut
        {**FINE, "rejected": "the token <|im_end|> spelled out"},  # 9
        {**FINE, "prompt": "<|im_start|>user"},  # 10: refused
        {**FINE, "chosen": 5},  # 11: malformed
    ]
    examination = audit(records, max_length=60, max_prompt_length=40)
    assert lines(examination) == {
        "TRU001": [3],
        "TRU002": [2],
        "TRU003": [8],
        "TRU004": [4],
        "EMP001": [5],
        "DUP003": [6],
        "EMP003": [7],
        "TOK001": [9],
        "EOS002": [9],
        "EOS001": [2, 3],
        "FMT001": [11, 10],
    }
    assert examination.count == 6
    assert examination.numbers.tolist() == [0, 1, 2, 6, 7, 8]
    positions = {f.code: f.pairs.tolist() for f in examination.findings}
    assert positions["TRU002"] == [1]
    assert positions["EOS001"] == [1, 2]
    assert positions["TRU004"] == positions["EMP001"] == []  # not among the measured pairs
    assert examination.left_out.positions("TRU004").tolist() == [3]
    assert examination.left_out.positions("FMT001").tolist() == [9]
    hint = next(f.hint for f in examination.findings if f.code == "EOS001")
    assert hint.startswith("Of the chosen ones 2, of the rejected ones 1; 3 were cut.")


def test_short_by_the_recipes_measure_and_over_its_limits(audit: Callable[..., Examination]) -> None:
    records = [FINE, {**FINE, "chosen": "a"}, {**FINE, "chosen": "a b " * 100}]
    examination = audit(records, min_response_tokens=3, overlong="drop", max_length=60, max_prompt_length=40)
    assert lines(examination) == {"EMP002": [2], "TRU005": [3]}
    assert examination.no_signal == {"response of fewer than 3 tokens": 1, "over the length limits": 1}


def test_two_bos_are_mended_and_told(audit: Callable[..., Examination], tmp_path: Path) -> None:
    FAMILIES["llama3"].save(tmp_path / "llama")
    records = [{**FINE, "prompt": "<|begin_of_text|><|begin_of_text|>Hi"}, {**FINE, "prompt": "<|begin_of_text|>Hi"}]
    examination = audit(records, load_tokenizer(str(tmp_path / "llama")), rendered=True)
    assert lines(examination)["TOK002"] == [1]
    assert examination.prompt_len[0] == examination.prompt_len[1]


def test_many_pairs_keep_their_numbers_over_the_batches(audit: Callable[..., Examination]) -> None:
    records = [{**FINE, "prompt": f"p{n}", "chosen": "" if n % 7 == 0 else f"Open {n}."} for n in range(1200)]
    examination = audit(records)
    assert examination.numbers.tolist() == [n for n in range(1200) if n % 7]
    assert examination.left_out.positions("EMP001").tolist() == list(range(0, 1200, 7))


def test_one_file_twice(write: Write, tokenizer: TextTokenizer) -> None:
    path = write([FINE, {**FINE, "chosen": "a b " * 100}])
    data = DataRecipe(train="-", max_length=60, max_prompt_length=40)
    examination = examine(keeping([DataSource(path=path)] * 2), Tokens(tokenizer, data))
    assert {f.code: f.pairs.tolist() for f in examination.findings} == {
        "DUP001": [2, 3],
        "TRU002": [1, 3],
        "EOS001": [1, 3],
    }
    assert examination.file_of.tolist() == [0, 0, 1, 1]
    assert [source["count"] for source in stats_document(examination, version="0")["sources"]] == [2, 2]


def test_many_cuts_name_the_limit_that_helps(audit: Callable[..., Examination]) -> None:
    records = [{**FINE, "prompt": "x " * n, "chosen": "a b " * (n + 1), "rejected": "c d " * n} for n in range(1, 41)]
    hints = {f.code: f.hint for f in audit(records, max_length=60, max_prompt_length=40).findings}
    limit = re.search(r"an answer cut at .* data\.max_length=(\d+) keeps 95 % whole", hints["TRU001"])
    assert limit is not None
    assert limit[0] in hints["TRU002"]
    assert hints["TRU003"].startswith("62 % of pairs have their prompt cut at data.max_prompt_length=40: ")
    again = {f.code: f.count for f in audit(records, max_length=int(limit[1]), max_prompt_length=40).findings}
    assert again.get("TRU001", 0) + again.get("TRU002", 0) <= 2  # of 40 pairs
    dropped = {f.code: f.hint for f in audit(records, max_length=60, max_prompt_length=40, overlong="drop").findings}
    assert dropped["TRU005"].count(f"data.max_length={limit[1]} keeps") == 2  # also of pairs that are left out


# Examples


def examples_of(path: str) -> dict[str, list[int]]:
    def read() -> PairReader:
        return keeping(path, on_bad_record="skip")

    examples = collect_examples(examine(read()), read)
    return {code: [int(pair.where.rsplit(":", 1)[1]) for pair in pairs] for code, pairs in examples.items()}


def test_what_contradicts_each_other_is_shown_together(write: Write) -> None:
    one_way = [{"prompt": f"Question {n} of many?", "chosen": "Yes.", "rejected": "No."} for n in range(5)]
    other_way = [{**record, "chosen": "No.", "rejected": "Yes."} for record in one_way]
    assert examples_of(write([*one_way, *other_way]))["LBL002"] == [1, 2, 6]


def test_the_first_few_of_each_and_no_malformed_ones(write: Write) -> None:
    records = [{"prompt": f"{n}", "chosen": "", "rejected": "b"} for n in range(9)]
    records += [{"prompt": "p", "chosen": f"a\0{'b' * n}", "rejected": "b"} for n in range(2)]
    examples = examples_of(write([*records, {"prompt": "p"}]))
    assert examples["EMP001"] == [1, 2, 3]
    assert len(examples["EMP001"]) == NUM_EXAMPLES
    assert examples["CHR001"] == [10, 11]
    assert "FMT001" not in examples


def test_nothing_found_reads_nothing(write: Write) -> None:
    assert examples_of(write([FINE])) == {}
