"""What cannot be scored is refused with a clear word, before anything else is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.evaluation import Evaluator
from simpo_cli.evaluate.results import Evaluation
from simpo_cli.model.tensor_file import write_tensors
from simpo_cli.run.checkpoint import CheckpointWriter, commit
from simpo_cli.run.manifest import open_checkpoint
from tests.evaluate.conftest import ignore

Assess = Callable[..., list[Evaluation]]
Document = Callable[..., dict[str, Any]]


NO_SUCH = "neither a run, nor a model folder, nor a recipe"


@pytest.mark.parametrize(
    ("names", "baseline", "problem"),
    [
        (["nosuch"], None, NO_SUCH),
        (["./no/where"], None, NO_SUCH),
        (["no/such/place"], None, NO_SUCH),
        (["missing.yaml"], None, NO_SUCH),
        (["{place}/tiny"], None, "nothing says which pairs"),
        (["nobody/no-such-model"], None, "nothing says which pairs"),
        (["{place}"], None, "neither a run nor a model"),
        (["{place}/run", "nosuch"], None, "nosuch"),  # before the first is scored
        (["{place}/run", "{place}/run/model"], None, "named twice"),
        (["{place}/run"], "nosuch", "neither a run"),
        (["{place}/run"], "{place}/run/model", "the model itself"),
    ],
)
def test_names_that_are_refused(place: Path, names: list[str], baseline: str | None, problem: str) -> None:
    said: list[str] = []
    evaluator = Evaluator((), baseline and baseline.format(place=place), (), said.append)
    with pytest.raises(UserError, match=problem) as caught:
        evaluator.run([name.format(place=place) for name in names], ignore)
    assert said == []
    assert "nothing says" not in problem or "--data FILE" in caught.value.fix


def change_config(model: Path, **changes: int) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


@pytest.mark.parametrize("damage", ["gone", "no weights", "tokenizer", "short", "hub away"])
def test_a_baseline_that_cannot_be_scored_costs_only_the_comparison(
    place: Path, tmp_path: Path, damage: str, assess: Assess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, start = tmp_path / "run", tmp_path / "start"
    shutil.copytree(place / "run", run)
    shutil.copytree(place / "tiny", start)
    baseline, code = str(start), ExitCode.USAGE
    match damage:
        case "gone":  # the start model that recipe.yaml names
            recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
            (run / "recipe.yaml").write_text(recipe.replace(str(place / "tiny"), str(start)), encoding="utf-8")
            shutil.rmtree(start)
        case "no weights":
            (start / "model.safetensors").unlink()
        case "tokenizer":  # of a larger model
            change_config(start, vocab_size=100)
        case "short":
            change_config(start, max_position_embeddings=32)
        case _:
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
            baseline, code = "nobody/no-such-model", ExitCode.ENVIRONMENT
    said: list[str] = []
    [one], failed = Evaluator((), None if damage == "gone" else baseline, (), said.append).run([str(run)], ignore)
    [alone] = assess("run", baseline="none")
    assert failed == []
    assert one.baseline is None
    assert one.not_compared is not None
    assert one.not_compared.model == baseline
    assert one.not_compared.error.exit_code == code
    assert any(line.startswith(f"not compared with {baseline}: ") for line in said)
    assert (one.scores.chosen == alone.scores.chosen).all()
    assert one.noise == alone.noise


def test_a_run_without_a_model_names_its_checkpoints(place: Path, assess: Assess) -> None:
    shutil.copytree(place / "run", place / "half", dirs_exist_ok=True)
    shutil.rmtree(place / "half" / "model")
    with pytest.raises(UserError, match="has no model yet") as caught:
        assess("half")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "half/checkpoints/step-" in caught.value.fix


def damaged(place: Path, tmp_path: Path, damage: str) -> tuple[Path, Path]:
    """A copy of the run, and its last checkpoint, which is damaged."""
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    [folder] = (run / "checkpoints").glob("step-*")
    content = bytearray((folder / "weights.safetensors").read_bytes())
    match damage:
        case "cut":
            (folder / "weights.safetensors").write_bytes(content[:-8])
        case "changed":
            content[-1] ^= 1
            (folder / "weights.safetensors").write_bytes(content)
        case _:
            (folder / "manifest.json").unlink()
    return run, folder


def test_a_checkpoint_of_two_ranks_is_scored_like_that_of_one(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    [folder] = (run / "checkpoints").glob("step-*")
    [[of_one], _] = Evaluator((), "none", (), ignore).run([str(folder)], ignore)
    tensors = load_file(folder / "weights.safetensors")

    def write(files: CheckpointWriter) -> None:
        for rank in range(2):
            with files.open(f"weights-r{rank}.safetensors") as file:
                write_tensors(file, {name: tensors[name] for name in sorted(tensors)[rank::2]})

    commit(folder.parent, open_checkpoint(folder).step, write, {})
    [[of_two], _] = Evaluator((), "none", (), ignore).run([str(folder)], ignore)
    assert (of_two.scores.chosen == of_one.scores.chosen).all()


@pytest.mark.parametrize("damage", ["cut", "changed", "no manifest"])
def test_a_damaged_checkpoint(place: Path, tmp_path: Path, damage: str) -> None:
    _, folder = damaged(place, tmp_path, damage)
    with pytest.raises(UserError, match=rf"{folder} is damaged: ") as caught:
        Evaluator((), None, (), ignore).run([str(folder)], ignore)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_damaged_master_costs_only_the_comparison_with_it(place: Path, tmp_path: Path) -> None:
    run, _ = damaged(place, tmp_path, "changed")
    said: list[str] = []
    [one], failed = Evaluator((), "none", (), said.append).run([str(run)], ignore)
    assert one.save is None
    assert failed == []
    assert any("left out" in line and "damaged" in line for line in said)


def test_a_checkpoint_away_from_its_run(place: Path, tmp_path: Path) -> None:
    [folder] = (place / "run" / "checkpoints").glob("step-*")
    shutil.copytree(folder, tmp_path / "a" / "b" / folder.name)
    with pytest.raises(UserError, match="without its run"):
        Evaluator((), None, (), ignore).run([str(tmp_path / "a" / "b" / folder.name)], ignore)


def pairs_file(folder: Path, *rows: tuple[str, str, str]) -> str:
    text = "".join(json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")
    return f"data.eval={folder}/pairs.jsonl"


def test_no_pair_that_can_be_scored(tmp_path: Path, assess: Assess) -> None:
    with pytest.raises(UserError, match="no usable pair in 1 records"):
        assess("run", overrides=[pairs_file(tmp_path, ("q", "same", "same"))])
    with pytest.raises(UserError, match="there are no pairs to score"):
        assess("run", overrides=["data.eval=null", "data.holdout=0"])


def test_one_pair_gives_numbers_without_bounds(tmp_path: Path, document: Document) -> None:
    one = document("run", overrides=[pairs_file(tmp_path, ("q", "yes please", "no never"))])
    assert one["pairs"] == one["prompts"] == 1
    assert one["margin"]["ci"] == [None, None]
    assert one["difference"]["smallest_effect"] is None
    assert one["difference"]["p_value"] == 1.0
    assert one["length"]["spearman"] is None
    assert one["length"]["buckets"][0]["accuracy"] is None


def test_a_model_that_prefers_nothing_is_at_one_half(tmp_path: Path, place: Path, document: Document) -> None:
    shutil.copytree(place / "tiny", tmp_path / "flat")
    weights = load_file(tmp_path / "flat" / "model.safetensors")
    save_file({name: tensor * 0 for name, tensor in weights.items()}, tmp_path / "flat" / "model.safetensors")
    rows = [(f"q {i}", "1 2 3" * (1 + i % 3), "4 5 6" * (1 + i % 3)) for i in range(12)]  # equally many tokens
    one = document(str(tmp_path / "flat"), overrides=[pairs_file(tmp_path, *rows)])
    assert one["ties"] == 12
    assert one["accuracy"]["value"] == 0.5
    assert one["margin"]["value"] == 0


def test_weights_that_are_not_finite(tmp_path: Path, place: Path, assess: Assess) -> None:
    shutil.copytree(place / "tiny", tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    save_file({**weights, name: weights[name] * float("nan")}, tmp_path / "nan" / "model.safetensors")
    with pytest.raises(UserError, match="log-probs are not finite") as caught:
        assess(str(tmp_path / "nan"), overrides=[f"data.eval={place}/held.jsonl"])
    assert caught.value.exit_code == ExitCode.NUMBERS


def test_a_column_that_no_record_has_and_one_with_too_many_values(assess: Assess) -> None:
    with pytest.raises(UserError, match="no record has such a column") as caught:
        assess("run", by=["sorce"])
    assert "Did you mean source?" in caught.value.fix
    assert "metadata" in caught.value.fix
    with pytest.raises(UserError, match="different values"):
        assess("run", by=["chosen"])
