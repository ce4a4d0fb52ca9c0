"""`simpo stats` against evaluation data: named on the command line, or by the recipe."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.cli.main import run
from tests.tiny import chatml_tokenizer

TRAIN = ["How do I invite a teammate?", "how do I invite a TEAMMATE", "Where is my invoice?", "Who are you?"]
HELD_OUT = ["How do I invite a teammate?", "How do I pay?", "How do I pay?"]
SPARE = ["Who are you?"]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, prompts in (("train", TRAIN), ("eval", HELD_OUT), ("spare", SPARE)):
        records = [{"prompt": p, "chosen": f"yes {n} {p}", "rejected": f"no {n}"} for n, p in enumerate(prompts)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chatml_tokenizer(tmp_path / "model")
    Path("r.yaml").write_text("name: r\nmodel: {path: model}\ndata: {train: train.jsonl, eval: eval.jsonl}\n")


def document(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    code = run(["stats", *args, "--json"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return json.loads(out)


def leaks(document: Any) -> dict[str, list[str]]:
    return {f["code"]: f["rows"] for f in document["findings"] if f["code"].startswith("LEK")}


def test_files_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    seen = document(capsys, "train.jsonl", "--eval", "eval.jsonl")
    assert leaks(seen) == {"LEK001": ["train.jsonl:1"], "LEK002": ["train.jsonl:2"]}
    assert [file["path"] for file in seen["input"]["evaluation"]["files"]] == ["eval.jsonl"]
    assert seen["input"]["evaluation"]["prompts"] == 2
    seen = document(capsys, "train.jsonl", "--eval", "eval.jsonl", "--eval", "spare.jsonl")
    assert leaks(seen)["LEK001"] == ["train.jsonl:1", "train.jsonl:4"]


def test_the_recipe_names_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--recipe", "r.yaml"], ["train.jsonl", "--recipe", "r.yaml"]):
        assert leaks(document(capsys, *args)) == {"LEK001": ["train.jsonl:1"], "LEK002": ["train.jsonl:2"]}
    seen = document(capsys, "--recipe", "r.yaml", "--eval", "spare.jsonl")
    assert leaks(seen) == {"LEK001": ["train.jsonl:4"]}


def test_nothing_to_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["train.jsonl"], ["eval.jsonl", "--recipe", "r.yaml"]):
        seen = document(capsys, *args)
        assert leaks(seen) == {}
        assert seen["input"]["evaluation"] is None
        assert not {"LEK001", "LEK002"} & set(seen["passed"])
    assert {"LEK001", "LEK002"} <= set(document(capsys, "eval.jsonl", "--eval", "spare.jsonl")["passed"])


def test_evaluation_data_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stats", "train.jsonl", "--eval", "evil.jsonl"]) == 2
    assert "evil.jsonl: does not exist." in capsys.readouterr().err
