"""Findings that only tokens show, each from a pair that has it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.audit.document import stats_document
from simpo_cli.audit.examine import Examination, Tokens, examine
from simpo_cli.data.load import PairReader
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.recipe.schema import DataRecipe
from tests.tiny import FAMILIES, chatml_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    chatml_tokenizer(tmp_path / "model")
    return load_tokenizer(str(tmp_path / "model"))


@pytest.fixture
def audit(tmp_path: Path, tokenizer: TextTokenizer) -> Any:
    def of(records: list[dict[str, Any]], other: TextTokenizer | None = None, **data: Any) -> Examination:
        path = tmp_path / "prefs.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        recipe = DataRecipe(train="-", on_bad_record="skip", **data)
        reader = PairReader(str(path), role="train", on_bad_record="skip", on_no_signal="keep")
        return examine(reader, Tokens(other or tokenizer, recipe))

    return of


def lines(examination: Examination) -> dict[str, list[int]]:
    return {f.code: [int(row.rsplit(":", 1)[1]) for row in f.rows] for f in examination.findings}


FINE = {"prompt": "How?", "chosen": "Open Settings, choose People.", "rejected": "Ask somebody else."}


def test_a_fine_pair_has_no_findings_and_its_codes_passed(audit: Any) -> None:
    examination = audit([FINE])
    assert examination.findings == []
    passed = stats_document(examination, version="0")["passed"]
    assert {"EOS001", "TRU002", "TOK002", "CHR003", "FMT001", "DUP001"} <= set(passed)
    assert "LEK001" not in passed  # nothing was there to compare with
    assert "SRF001" not in passed  # one prompt is not enough


def test_each_in_its_place(audit: Any) -> None:
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


def test_short_by_the_recipes_measure_and_over_its_limits(audit: Any) -> None:
    records = [FINE, {**FINE, "chosen": "a"}, {**FINE, "chosen": "a b " * 100}]
    examination = audit(records, min_response_tokens=3, overlong="drop", max_length=60, max_prompt_length=40)
    assert lines(examination) == {"EMP002": [2], "TRU005": [3]}
    assert examination.no_signal == {"response of fewer than 3 tokens": 1, "over the length limits": 1}


def test_two_bos_are_mended_and_told(audit: Any, tmp_path: Path) -> None:
    llama = FAMILIES["llama3"]
    llama.save(tmp_path / "llama")
    records = [{**FINE, "prompt": "<|begin_of_text|><|begin_of_text|>Hi"}, {**FINE, "prompt": "<|begin_of_text|>Hi"}]
    examination = audit(records, load_tokenizer(str(tmp_path / "llama")), rendered=True)
    assert lines(examination)["TOK002"] == [1]
    assert examination.prompt_len[0] == examination.prompt_len[1]


def test_many_pairs_keep_their_numbers_over_the_batches(audit: Any) -> None:
    records = [{**FINE, "prompt": f"p{n}", "chosen": "" if n % 7 == 0 else f"Open {n}."} for n in range(1200)]
    examination = audit(records)
    assert examination.numbers.tolist() == [n for n in range(1200) if n % 7]
    assert examination.left_out.positions("EMP001").tolist() == list(range(0, 1200, 7))


def test_one_file_twice(audit: Any, tmp_path: Path, tokenizer: TextTokenizer) -> None:
    audit([FINE, {**FINE, "chosen": "a b " * 100}])
    paths = [str(tmp_path / "prefs.jsonl")] * 2
    from simpo_cli.recipe.schema import DataSource

    reader = PairReader([DataSource(path=path) for path in paths], role="train", on_no_signal="keep")
    data = DataRecipe(train="-", max_length=60, max_prompt_length=40)
    examination = examine(reader, Tokens(tokenizer, data))
    assert {f.code: f.pairs.tolist() for f in examination.findings} == {
        "DUP001": [2, 3],
        "TRU002": [1, 3],
        "EOS001": [1, 3],
    }
    assert examination.file_of.tolist() == [0, 0, 1, 1]
    assert [source["count"] for source in stats_document(examination, version="0")["sources"]] == [2, 2]


def test_many_cuts_name_the_limit_that_helps(audit: Any) -> None:
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
