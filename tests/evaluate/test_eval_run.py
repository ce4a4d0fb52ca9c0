"""`simpo eval` on a recipe's start model, a run and a model folder: the same code, the same numbers."""

import json
import random
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from simpo_cli.cli.main import app
from simpo_cli.data.pair import EncodedPair
from simpo_cli.errors import UserError
from simpo_cli.evaluate.run import evaluate_target
from simpo_cli.recipe import compose
from simpo_cli.report.console import make_console
from simpo_cli.report.heartbeat import Heartbeat
from simpo_cli.train.run import train
from tests.model.reference import response_logps
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two files of pairs, a recipe and a finished run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("place")
    save_tiny_model(folder / "tiny")
    draw = random.Random(2)
    for name, count in (("train", 24), ("held", 12)):
        rows = [
            {
                "prompt": f"{name} question {i}?",
                "chosen": " ".join(draw.choice(["yes", "please", "open"]) for _ in range(draw.randint(2, 6))),
                "rejected": " ".join(draw.choice(["no", "never", "close"]) for _ in range(draw.randint(2, 6))),
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        f"name: small\noutput_dir: {folder}/run\nmodel:\n  path: {folder}/tiny\n"
        f"data:\n  train: {folder}/train.jsonl\n  eval: {folder}/held.jsonl\n  max_length: 64\n"
        "  max_prompt_length: 40\ntrain:\n  pairs_per_step: 8\n  learning_rate: 1e-3\n  precision: fp32\n"
        "loss:\n  gamma: 0.7\n",
        encoding="utf-8",
    )
    quiet = Heartbeat(make_console((folder / "log").open("w", encoding="utf-8")))
    train(compose(str(folder / "recipe.yaml")), fresh=False, dry_run=False, observer=quiet)
    return folder


def _summary(place: Path, target: str, *overrides: str) -> dict[str, object]:
    evaluation = evaluate_target(str(place / target), overrides)
    return evaluation.summary.as_json(model="m", data="d")


def test_a_run_and_its_model_folder_and_its_receipt_agree(place: Path) -> None:
    of_run = _summary(place, "run")
    assert of_run == _summary(place, "run/model")
    receipt = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))
    after = {**receipt["outcome"]["after"], "model": "m", "data": "d"}
    del after["baselines"]["surface"]  # fitted on the training pairs, which an evaluation does not read
    assert after == json.loads(json.dumps(of_run))


def test_a_recipe_means_its_start_model(place: Path) -> None:
    receipt = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))
    before = {**receipt["outcome"]["before"], "model": "m", "data": "d"}
    del before["baselines"]["surface"]
    assert before == json.loads(json.dumps(_summary(place, "recipe.yaml")))


def test_the_numbers_are_those_of_single_sequences(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    from simpo_cli.evaluate import opening

    seen: list[EncodedPair] = []
    score = opening.score_pairs
    monkeypatch.setattr(
        opening, "score_pairs", lambda policy, pairs, *rest: seen.extend(pairs) or score(policy, pairs, *rest)
    )
    summary = evaluate_target(str(place / "run"), []).summary
    model = AutoModelForCausalLM.from_pretrained(place / "run" / "model")
    with torch.no_grad():
        m = [
            [float(response_logps(model, p.prompt.tolist(), r.tolist()).mean()) for r in (p.chosen, p.rejected)]
            for p in seen
        ]
    assert summary.pairs == len(seen) == 12
    assert summary.accuracy.value == sum(c > r for c, r in m) / 12
    assert summary.margin.value == pytest.approx(sum(2 * (c - r) for c, r in m) / 12, rel=1e-4)
    assert summary.logps_rejected.value == pytest.approx(sum(r for _, r in m) / 12, rel=1e-5)
    assert summary.target_reached.value == sum(2 * (c - r) > 0.7 for c, r in m) / 12


def test_a_model_by_itself_needs_pairs(place: Path) -> None:
    with pytest.raises(UserError, match="nothing says which pairs") as caught:
        evaluate_target(str(place / "tiny"), [])
    assert "data.eval=" in caught.value.fix
    same = ["loss.gamma=0.7", "data.max_length=64", "data.max_prompt_length=40", "train.precision=fp32"]
    by_name = _summary(place, "tiny", f"data.eval={place}/held.jsonl", *same)
    assert by_name == _summary(place, "recipe.yaml")


@pytest.mark.parametrize("target", ["nosuch", "./no/where", "no/such/place", "missing.yaml"])
def test_a_name_that_means_nothing_is_refused(target: str) -> None:
    with pytest.raises(UserError, match="neither a run, nor a model folder, nor a recipe"):
        evaluate_target(target, [])


def test_a_hub_id_needs_pairs_too() -> None:
    with pytest.raises(UserError, match="nothing says which pairs"):
        evaluate_target("nobody/no-such-model", [])


def test_a_folder_that_is_neither_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor a model"):
        evaluate_target(str(place), [])


def test_json_on_stdout_and_in_a_file(place: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    target = tmp_path / "report.json"
    done = runner.invoke(app, ["eval", str(place / "run"), "--json", "--output", str(target)])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads(target.read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert document["pairs"] == 12
    assert document["accuracy"].keys() == {"value", "ci", "n"}
    assert document["baselines"]["longer_wins"]["n"] == 12

    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    refused = runner.invoke(app, ["eval", str(place / "run"), "--output", str(tmp_path / "thesis.txt")])
    assert isinstance(refused.exception, UserError)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_the_table_never_shows_a_bare_percentage(place: Path) -> None:
    done = CliRunner().invoke(app, ["eval", str(place / "run")])
    assert done.exit_code == 0, done.output
    for line in done.stdout.splitlines():
        if "%" in line and "95 %" not in line and "a coin" not in line:
            assert "12" in line, line
