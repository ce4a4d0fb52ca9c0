"""`simpo inspect` and `simpo stats --model`, to the numbers of single sequences; docs/inspect.md is run."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM

import simpo_cli
from simpo_cli.cli.main import run
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair
from simpo_cli.recipe.schema import DataSource
from simpo_cli.report.console import out
from tests.cli.seen import Seen, Simpo, typed
from tests.model.reference import response_logps
from tests.tiny import save_tiny_model

DOCS = Path(__file__).parents[2] / "docs"
PAIRS = [
    {"prompt": f"Question {n % 8}?", "chosen": "yes, please " * (n % 4 + 1), "rejected": "never\n" * (n % 3 + 1)}
    for n in range(20)
]
RECIPE = """name: small
model: {path: tiny}
data: {train: prefs.jsonl, max_length: 64, max_prompt_length: 40}
loss: {gamma: 0.4}
train: {precision: fp32}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, pairs and a recipe."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_model(folder / "tiny")
    rows = [*PAIRS[:3], {**PAIRS[3], "rejected": ""}, *PAIRS[4:]]
    (folder / "prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    shutil.copytree(folder / "tiny", folder / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def simpo(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Simpo:
    """Run a command line in that folder."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(out, "_width", 100)
    return typed(capsys)


def document_of(seen: Seen) -> dict[str, Any]:
    assert (seen.code, seen.err) == (0, "")
    document = json.loads(seen.out)
    assert isinstance(document, dict)
    return document


def require_refused(seen: Seen, said: str) -> None:
    assert (seen.code, seen.out) == (2, "")
    assert said in seen.err
    assert "Traceback" not in seen.err


# inspect


def test_the_document_holds_tokens_and_the_numbers_of_single_sequences(simpo: Simpo) -> None:
    document = document_of(simpo("inspect", "recipe.yaml", "-n", "2", "--json"))
    assert document["schema_version"] == 1
    assert document["decision"] == "plain text, explicit prompt, response = the whole answer"
    assert document["objective"]["gamma_beta_ratio"] == pytest.approx(0.2)
    model = AutoModelForCausalLM.from_pretrained("tiny")
    for number, pair in enumerate(document["pairs"]):
        assert (pair["number"], pair["where"]) == (number + 1, f"prefs.jsonl:{number + 1}")
        prompt = [token["id"] for token in pair["prompt"]["tokens"]]
        shown = "".join(token["text"] for token in pair["prompt"]["tokens"])
        assert shown == f"<|im_start|>user\nQuestion {number}?<|im_end|>\n<|im_start|>assistant\n"
        means = []
        for side in ("chosen", "rejected"):
            tokens = pair[side]["tokens"]
            assert "".join(token["text"] for token in tokens) == f"{PAIRS[number][side]}<|im_end|>"
            assert pair[side]["end"] == "<|im_end|>"
            with torch.no_grad():
                expected = response_logps(model, prompt, [token["id"] for token in tokens]).tolist()
            assert [token["logp"] for token in tokens] == pytest.approx(expected, abs=1e-4)
            assert pair[side]["logp_sum"] == pytest.approx(sum(expected), abs=1e-3)
            assert pair[side]["num_tokens"] == len(expected)
            means.append(sum(expected) / len(expected))
            assert pair[side]["reward"] == pytest.approx(2 * means[-1], abs=1e-3)
        assert pair["margin"] == pytest.approx(2 * (means[0] - means[1]), abs=1e-3)
        assert pair["past_target"] == (pair["margin"] > 0.4)


def test_the_pairs_are_those_that_training_uses_or_those_that_are_named(simpo: Simpo) -> None:
    first = document_of(simpo("inspect", "recipe.yaml", "-n", "5", "--no-model", "--json"))
    assert [pair["number"] for pair in first["pairs"]] == [1, 2, 3, 5, 6]
    named = document_of(simpo("inspect", "recipe.yaml", "--pair", "line 4", "--pair", "2", "--no-model", "--json"))
    assert [(pair["number"], pair["left_out"]) for pair in named["pairs"]] == [
        (2, None),
        (4, "response without tokens"),
    ]
    changed = document_of(simpo("inspect", "recipe.yaml", "data.max_length=45", "-n", "1", "--no-model", "--json"))
    assert changed["tokenizer"]["max_length"] == 45
    assert len(document_of(simpo("inspect", "recipe.yaml", "--no-model", "--json"))["pairs"]) == 3


def test_without_weights_the_screen_has_tokens_and_the_reason(simpo: Simpo) -> None:
    seen = simpo("inspect", "recipe.yaml", "model.path=bare", "-n", "1")
    assert (seen.code, seen.err) == (0, "")
    assert "no log-probs: bare holds no weights" in seen.out
    assert "<|im_end|>" in seen.out
    assert document_of(simpo("inspect", "recipe.yaml", "--no-model", "--json"))["no_model"] is None


def test_a_run_folder_is_its_saved_model(simpo: Simpo, place: Path) -> None:
    run_folder = place / "run"
    run_folder.mkdir()
    (run_folder / "run.json").write_text("{}")
    shutil.copy("recipe.yaml", run_folder / "recipe.yaml")
    by_start = document_of(simpo("inspect", "recipe.yaml", "-n", "1", "--json"))
    assert document_of(simpo("inspect", "run", "-n", "1", "--json"))["pairs"] == by_start["pairs"]
    save_tiny_model(run_folder / "model", seed=1)
    tuned = document_of(simpo("inspect", "run", "-n", "1", "--json"))
    assert tuned["model"]["path"] == "run/model"
    assert tuned["pairs"][0]["loss"] != by_start["pairs"][0]["loss"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nothing.yaml"], "there is no recipe"),
        (["recipe.yaml", "--pair", "99"], "there is no pair 99 among the 20"),
        (["recipe.yaml", "--pair", "1", "-n", "2"], "Give one of them."),
        (["recipe.yaml", "data.train=nothing.jsonl"], "nothing.jsonl"),
        (["recipe.yaml", "model.path=./nothing"], "nothing does not exist"),
        (["recipe.yaml", "data.max_length=4096"], "override 1: data.max_length is 4096, and tiny knows 512 positions"),
        (["recipe.yaml", "-n", "0"], "-n"),
    ],
)
def test_mistakes(simpo: Simpo, args: list[str], said: str) -> None:
    require_refused(simpo("inspect", *args), said)


# stats --model


def test_stats_hold_what_the_model_says_at_the_start(simpo: Simpo) -> None:
    document = document_of(simpo("stats", "--recipe", "recipe.yaml", "--model", "recipe", "--json"))
    start = document["model"]
    assert (start["model"], start["pairs"], start["of_pairs"], start["max_length"]) == ("tiny", 19, 19, 64)
    whole = document_of(simpo("inspect", "recipe.yaml", "-n", "19", "--json"))["pairs"]
    margins = [pair["margin"] for pair in whole]
    assert start["margin"]["value"] == pytest.approx(sum(margins) / 19, abs=1e-4)
    assert start["accuracy"]["value"] == pytest.approx(sum(margin > 0 for margin in margins) / 19)
    assert start["loss"]["value"] == pytest.approx(sum(pair["loss"] for pair in whole) / 19, abs=1e-4)
    assert start["target_reached"]["value"] == sum(pair["past_target"] for pair in whole) / 19
    of_chosen = [pair["chosen"]["logp_mean"] for pair in whole]
    assert start["logps/chosen"]["value"] == pytest.approx(sum(of_chosen) / 19, abs=1e-4)
    by_name = document_of(simpo("stats", "--recipe", "recipe.yaml", "--model", "tiny", "--json"))
    assert by_name["model"] == start


def test_the_document_with_a_model_keeps_to_its_schema_and_the_page_shows_it(simpo: Simpo, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    args = ("stats", "prefs.jsonl", "--model", "tiny", "--max-length", "60")
    document = json.loads(simpo(*args, "--html", str(page), "--json").out)
    schema = json.loads((DOCS / "stats.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    codes = {finding["code"] for finding in document["findings"]}
    assert {"LBL005", "MOD001"} <= codes | set(document["passed"])
    assert not codes & set(document["passed"])
    shown = page.read_text(encoding="utf-8")
    assert "What could a run learn?" in shown
    assert "gradient weight" in shown
    without = json.loads(simpo("stats", "prefs.jsonl", "--html", str(page), "--json").out)
    assert without["model"] is None
    assert not {"LBL005", "MOD001"} & set(without["passed"])
    assert "What could a run learn?" not in page.read_text(encoding="utf-8")


def test_stats_of_a_model_without_a_recipe_take_the_defaults(simpo: Simpo) -> None:
    document = document_of(simpo("stats", "prefs.jsonl", "--model", "tiny", "--model-pairs", "6", "--json"))
    start = document["model"]
    assert document["unit"] == "tokens"
    assert (start["pairs"], start["of_pairs"], start["max_length"]) == (6, 19, 512)
    assert start["objective"]["gamma_beta_ratio"] == 0.5
    cut = document_of(simpo("stats", "prefs.jsonl", "--model", "tiny", "--max-length", "60", "--json"))
    assert (cut["model"]["max_length"], cut["input"]["tokens"]["max_length"]) == (60, 60)


def test_the_screen_of_stats_with_a_model_for_which_the_pairs_are_read_once(
    simpo: Simpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, names = PairReader.read_source, []

    def noted(self: PairReader, source: DataSource) -> Iterator[PreferencePair]:
        names.append(source.path)
        return read(self, source)

    monkeypatch.setattr(PairReader, "read_source", noted)
    seen = simpo("stats", "prefs.jsonl", "--model", "tiny")
    assert (seen.code, seen.err, names) == (0, "", ["prefs.jsonl"])
    assert "What could a run learn?" in seen.out
    assert [line for line in seen.out.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["prefs.jsonl", "--model", "recipe"], "Add --recipe RECIPE."),
        (["prefs.jsonl", "--model", "tiny", "--tokenizer", "tiny"], "Leave --tokenizer out."),
        (["prefs.jsonl", "--model", "bare"], "bare holds no weights"),
        (["prefs.jsonl", "--model", "./nothing"], "nothing does not exist"),
        (["--model", "tiny"], "no data is named"),
        (["prefs.jsonl", "--model", "tiny", "--model-pairs", "0"], "--model-pairs"),
        # before any record is read
        (
            ["broken.jsonl", "--model", "tiny", "--max-length", "9999"],
            "data.max_length is 9999, and tiny knows 512 posi",
        ),
    ],
)
def test_mistakes_with_a_model(simpo: Simpo, args: list[str], said: str) -> None:
    Path("broken.jsonl").write_text("{")
    require_refused(simpo("stats", *args), said)


PAGE = Path(simpo_cli.__file__).parent.parent / "docs" / "inspect.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-\d+)?")
CLOSE = 0.03


@pytest.mark.skipif(not PAGE.is_file(), reason="the package is installed, not a checkout")
def test_the_page_shows_what_the_commands_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(out, "_width", 110)  # what it is by itself was settled when it was made
    blocks = re.findall(r"^```console\n\$ simpo (.*?)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.DOTALL)
    assert len(blocks) == 2
    for command, shown in blocks:
        assert run(shlex.split(command)) == 0
        printed = [line for line in capsys.readouterr().out.splitlines() if "self-check" not in line]
        wanted = [line for line in shown.splitlines() if "self-check" not in line]
        if wanted[0] == "...":  # a part of the screen
            wanted = wanted[1:-1]
            start = printed.index(wanted[0])
            printed = printed[start : start + len(wanted)]
        assert [NUMBER.sub("#", line) for line in printed] == [NUMBER.sub("#", line) for line in wanted]
        for one, other in zip(NUMBER.findall("\n".join(printed)), NUMBER.findall("\n".join(wanted)), strict=True):
            assert float(one) == pytest.approx(float(other), abs=CLOSE, rel=CLOSE)
