"""What `simpo stats` reads: how a file is mapped, how pairs become tokens, and evaluation data to compare with."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.seen import Simpo, stats_of, typed
from tests.data.pair_files import write_pairs
from tests.tiny import byte_level_tokenizer, chatml_tokenizer, save_tokenizer

JUDGED = [
    {"question": f"q{n}?", "context": "c", "one": "the first", "two": "the second", "vote": ("l", "r")[n % 2]}
    for n in range(4)
]
JUDGED_AS = ("--columns", "prompt: question, answers: [one, two], label: vote")
PROMPTS = {
    "train": ["How do I invite a teammate?", "how do I invite a TEAMMATE", "Where is my invoice?", "Who are you?"],
    "eval": ["How do I invite a teammate?", "How do I pay?", "How do I pay?"],
    "spare": ["Who are you?"],
}


@pytest.fixture
def simpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Simpo:
    """Run a command line in a folder with a tokenizer and files of pairs."""
    monkeypatch.chdir(tmp_path)
    chatml_tokenizer(tmp_path / "model")
    write_pairs(tmp_path, "judged.json", JUDGED)
    for name, prompts in PROMPTS.items():
        records = [{"prompt": p, "chosen": f"yes {n} {p}", "rejected": f"no {n}"} for n, p in enumerate(prompts)]
        write_pairs(tmp_path, f"{name}.jsonl", records)
    return typed(capsys)


def recipe(data: str) -> str:
    Path("r.yaml").write_text(f"name: r\nmodel: {{path: model}}\ndata: {data}\n")
    return "r.yaml"


# Columns, labels and direction


def test_columns_labels_and_direction(simpo: Simpo) -> None:
    assert simpo("stats", "judged.json").code == 2
    seen = simpo("stats", "judged.json", *JUDGED_AS, "--labels", "{first: [l], second: [r]}")
    assert seen.code == 0, seen.err
    screen = " ".join(seen.out.split())
    assert "vote says which of one and two is preferred" in screen
    assert "vote: l means one, r means two" in screen
    assert "not used: context" in screen
    assert "judged.json, record 1: chosen by vote = l: 'the first' over 'the second'" in screen
    document = stats_of(simpo, "judged.json", *JUDGED_AS, "--labels", "first: [l], second: [r]")
    assert document["input"]["remarks"] == ["vote: l means one, r means two", "not used: context"]
    assert "the first" not in json.dumps(document)
    as_said = ("--columns", "prompt: question, chosen: one, rejected: two")
    assert "vote (l (2 x), r (2 x)) may say" in simpo("stats", "judged.json", *as_said).err
    assert simpo("stats", "judged.json", *as_said, "--direction", "first").code == 0


def test_the_command_line_is_over_the_recipe(simpo: Simpo) -> None:
    recipe(
        "{train: [{path: judged.json, columns: {prompt: context}}], columns: {answers: [one, two], label: vote}, "
        "labels: {first: [l], second: [r]}}"
    )
    assert stats_of(simpo, "--recipe", "r.yaml")["input"]["prompts"] == 1
    over = ("--columns", "prompt: question", "--labels", "first: [r], second: [l]")
    for named in ((), ("judged.json",)):
        document = stats_of(simpo, *named, "--recipe", "r.yaml", *over)
        assert document["input"]["prompts"] == 4
        assert document["input"]["remarks"][0] == "vote: r means one, l means two"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--columns", "promt: question"), "--columns: data.columns has no part promt.\n  Did you mean prompt?"),
        (("--columns", "question"), "--columns: "),
        (("--labels", "first: [a], second: [a]"), "--labels: data.labels.second has the value 'a'"),
        (("--direction", "second"), "--direction: data.direction is 'second'"),
        (("--tokenizer", "endless"), "endless: has no end-of-text token"),  # as training refuses it
    ],
)
def test_what_is_refused(simpo: Simpo, tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    tokenizer = byte_level_tokenizer(("<|im_start|>",))
    save_tokenizer(tmp_path / "endless", tokenizer, bos=None, eos=None, pad=None, template=None)
    seen = simpo("stats", "train.jsonl", *args)
    assert (seen.code, seen.out) == (2, "")
    assert f"Error: {said}" in seen.err


# Tokens


def test_tokens_of_a_tokenizer_and_of_a_recipe(simpo: Simpo) -> None:
    document = stats_of(simpo, "train.jsonl", "--tokenizer", "model", "--max-length", "40")
    assert document["unit"] == "tokens"
    assert document["columns"]["chosen_len"]["max"] <= 40
    records = [{"question": f"q{n}", "a": "one", "b": "two", "better": n % 2 + 1} for n in range(40)]
    write_pairs(Path(), "choice.json", records)
    columns = "{prompt: question, chosen: a, rejected: b, label: better}"
    recipe(f"{{train: [{{path: choice.json, columns: {columns}}}], max_length: 40, max_prompt_length: 35}}")
    for args in (["--recipe", "r.yaml"], ["choice.json", "--recipe", "r.yaml"]):
        document = stats_of(simpo, *args)
        assert document["count"] == 40
        assert document["input"]["tokens"] == {"tokenizer": "model", "max_length": 40, "max_prompt_length": 35}
    assert simpo("stats", "choice.json").code == 2  # without the recipe nothing says which is better
    screen = " ".join(simpo("stats", "--recipe", "r.yaml").out.split())
    assert "tokens of model, cut at 40 (prompts at 35)" in screen


# Evaluation data


def leaks(document: Any) -> dict[str, list[str]]:
    return {f["code"]: f["rows"] for f in document["findings"] if f["code"].startswith("LEK")}


def test_training_data_are_compared_with_evaluation_data(simpo: Simpo) -> None:
    found = {"LEK001": ["train.jsonl:1"], "LEK002": ["train.jsonl:2"]}
    document = stats_of(simpo, "train.jsonl", "--eval", "eval.jsonl")
    assert leaks(document) == found
    assert [file["path"] for file in document["input"]["evaluation"]["files"]] == ["eval.jsonl"]
    assert document["input"]["evaluation"]["prompts"] == 2
    document = stats_of(simpo, "train.jsonl", "--eval", "eval.jsonl", "--eval", "spare.jsonl")
    assert leaks(document)["LEK001"] == ["train.jsonl:1", "train.jsonl:4"]
    recipe("{train: train.jsonl, eval: eval.jsonl}")
    for args in (["--recipe", "r.yaml"], ["train.jsonl", "--recipe", "r.yaml"]):
        assert leaks(stats_of(simpo, *args)) == found
    document = stats_of(simpo, "--recipe", "r.yaml", "--eval", "spare.jsonl")
    assert leaks(document) == {"LEK001": ["train.jsonl:4"]}


def test_nothing_to_compare_with(simpo: Simpo) -> None:
    recipe("{train: train.jsonl, eval: eval.jsonl}")
    for args in (["train.jsonl"], ["eval.jsonl", "--recipe", "r.yaml"]):
        document = stats_of(simpo, *args)
        assert leaks(document) == {}
        assert document["input"]["evaluation"] is None
        assert not {"LEK001", "LEK002"} & set(document["passed"])
    assert {"LEK001", "LEK002"} <= set(stats_of(simpo, "eval.jsonl", "--eval", "spare.jsonl")["passed"])
