"""A whole run on a tiny model: what is in the run folder, and that it is what was measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe import compose
from simpo_cli.run.events import Observer, RunOutcome
from tests.train.conftest import Memory
from tests.train.guide import train_tiny


def _train(
    folder: Path, model: Path, prefs: Path, memory: Observer, *more: str, run: str = "run", **options: bool
) -> RunOutcome | None:
    return train_tiny(folder, model, prefs, *more, run=run, observer=memory, **options)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_leaves_what_it_promises(tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory) -> None:
    outcome = _train(tmp_path, tiny_folder, prefs, memory, "eval.every=2", "checkpoint.every=2", "checkpoint.keep=1")
    assert outcome is not None
    run = tmp_path / "run"
    metrics, evals = _lines(run / "metrics.jsonl"), _lines(run / "evals.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, len(metrics) + 1))
    assert {"loss", "rewards/chosen", "rewards/accuracies", "logps/chosen", "grad_norm", "memory_gb"} <= metrics[
        0
    ].keys()
    assert "sft_loss" not in metrics[0]
    assert sum(row["pairs"] for row in metrics) == 40 - evals[0]["pairs"]
    assert metrics[0]["learning_rate"] == 0
    assert metrics[-1]["epoch"] == 1
    assert [row["step"] for row in evals] == [0, 2, len(metrics)]
    assert evals[0]["logps/chosen_delta"] == 0
    assert evals[-1]["logps/chosen_delta"] != 0
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert evals[-1]["accuracy"] == 1.0

    receipt = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (receipt["status"], receipt["step"]) == ("done", len(metrics))
    account = receipt["data"]["train"]["records"]
    assert account == {
        "read": 40,
        "repeated": 0,
        "trained": 40 - evals[0]["pairs"],
        "held_out": evals[0]["pairs"],
        "not_reached": 0,
        "refused": 0,
        "dropped": {},
    }
    assert receipt["outcome"]["after"]["accuracy"]["value"] == 1.0
    assert receipt["outcome"]["difference"]["test"] in ("mcnemar-exact", "sign-flip-by-prompt")
    assert compose(str(run / "recipe.yaml")).recipe.train.learning_rate == 1e-3
    before, after = (100 * receipt["outcome"][when]["accuracy"]["value"] for when in ("before", "after"))
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"\| accuracy \| {before:.1f} % \(.*\) \| {after:.1f} % \(.*\) \|", card)
    assert str(tmp_path) not in card

    pairs, after = _lines(run / "evals-pairs.jsonl"), receipt["outcome"]["after"]
    assert len(pairs) == after["pairs"] == evals[-1]["pairs"]
    assert len({row["where"] for row in pairs}) == len(pairs)
    assert len({row["prompt"] for row in pairs}) == after["prompts"]
    for when, scored in (("before", evals[0]), ("after", evals[-1])):
        for side in ("chosen", "rejected"):
            mean = sum(row[f"{side}_{when}"] for row in pairs) / len(pairs)
            assert mean == pytest.approx(scored[f"logps/{side}"])
    longer = sum(row["chosen_tokens"] > row["rejected_tokens"] for row in pairs)
    equal = sum(row["chosen_tokens"] == row["rejected_tokens"] for row in pairs)
    assert after["baselines"]["longer_wins"]["value"] == pytest.approx((longer + equal / 2) / len(pairs))
    assert after["baselines"]["surface"]["value"] == 1.0  # "!" ends every rejected answer, "." every chosen one
    assert receipt["outcome"]["answers"][0]["after"] == outcome.answers[0][2]
    notes = _lines(run / "notes.jsonl")
    assert [row["label"] for row in notes[:2]] == ["loss", "model"]
    assert any(row["label"] == "note" and "self-check" in row["text"] for row in notes)

    [checkpoint] = (run / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{len(metrics):08d}"
    assert memory.header is not None
    assert outcome.table.rows[0].label == "accuracy"
    assert [q for q, _, _ in outcome.answers]


def test_the_saved_model_is_the_trained_one_and_loads_elsewhere(
    tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory
) -> None:
    _train(tmp_path, tiny_folder, prefs, memory)
    folder = tmp_path / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "How do I do thing 3?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True).endswith("assistant\n")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > ids["input_ids"].shape[1]

    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    weights = load_file(checkpoint / "weights.safetensors")
    saved = dict(model.named_parameters())
    assert len(weights) == len(saved)
    for name, weight in weights.items():
        assert torch.equal(saved[name.removeprefix("model.")], weight)
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_folder).named_parameters())
    assert not torch.equal(saved["model.norm.weight"], start["model.norm.weight"])
    assert (folder / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()


def test_two_runs_of_one_recipe_are_equal_bit_for_bit(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    for name in ("a", "b"):
        _train(tmp_path, tiny_folder, prefs, Memory(), run=name)
    a, b = (load_file(next((tmp_path / n).glob("checkpoints/*/weights.safetensors"))) for n in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_budget_of_a_microbatch_changes_nothing_but_memory(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    losses = []
    for name, budget in (("small", "128"), ("large", "100000")):
        memory = Memory()
        _train(tmp_path, tiny_folder, prefs, memory, f"train.tokens_per_microbatch={budget}", run=name)
        losses.append([record.loss for record in memory.steps])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_adapters_train_save_and_load(tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory) -> None:
    outcome = _train(
        tmp_path, tiny_folder, prefs, memory, "model.lora.rank=4", "train.learning_rate=1e-2", "train.num_epochs=2"
    )
    assert outcome is not None
    folder = tmp_path / "run" / "model"
    assert (folder / "adapter_config.json").is_file()
    assert not (folder / "model.safetensors").exists()
    assert memory.evals[-1].accuracy > memory.evals[0].accuracy
    model = AutoModelForCausalLM.from_pretrained(folder)  # transformers loads the base and puts the adapter on
    assert any("lora" in name for name, _ in model.named_parameters())


def test_an_existing_run_is_refused_and_set_aside_only_when_asked(
    tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory
) -> None:
    _train(tmp_path, tiny_folder, prefs, memory, "train.max_steps=1")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run") as caught:
        _train(tmp_path, tiny_folder, prefs, memory, "train.max_steps=1")
    assert "--fresh" in caught.value.fix
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    _train(tmp_path, tiny_folder, prefs, memory, "train.max_steps=1", fresh=True)
    [old] = tmp_path.glob("run.old-*")
    assert (old / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_no_run_is_never_touched(
    tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work", encoding="utf-8")
    for fresh in (False, True):
        with pytest.raises(UserError, match="not a run"):
            _train(tmp_path, tiny_folder, prefs, memory, fresh=fresh)
    assert (tmp_path / "run" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_dry_run_writes_nothing(tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory) -> None:
    assert _train(tmp_path, tiny_folder, prefs, memory, dry_run=True) is None
    assert not (tmp_path / "run").exists()
    assert memory.header is not None
    assert any(line.label == "memory" for line in memory.header.lines)


def test_narrow_weights_are_warned_about_once(tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory) -> None:
    _train(tmp_path, tiny_folder, prefs, memory, "model.weights_dtype=bf16", dry_run=True)
    warned = [note for note in memory.notes if "bf16" in note or "bfloat16" in note]
    assert len(warned) == 1
    assert "REC005" in warned[0]


def test_a_run_that_fails_on_numbers_says_so_and_keeps_what_was_saved(
    tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simpo_cli.train import step as step_module

    backward = step_module._one_microbatch

    def fail_at_third(policy: Any, batch: Any, *rest: Any) -> Any:
        numbers = backward(policy, batch, *rest)
        if len(memory.steps) == 2:
            next(policy.parameters()).grad.fill_(float("nan"))
        return numbers

    monkeypatch.setattr(step_module, "_one_microbatch", fail_at_third)
    with pytest.raises(UserError, match="step 3") as caught:
        _train(tmp_path, tiny_folder, prefs, memory, "checkpoint.every=1", "checkpoint.keep=5")
    assert caught.value.exit_code == ExitCode.NUMBERS
    run = tmp_path / "run"
    assert [folder.name for folder in sorted((run / "checkpoints").iterdir())] == ["step-00000001", "step-00000002"]
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "failed"
    assert not (run / "model").exists()


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["data.max_length=1024"], "data.max_length is 1024, and .* knows 512 positions"),
        (["train.tokens_per_microbatch=20"], "tokens_per_microbatch is 20, and this pair alone needs"),
        (["data.holdout=40"], "no training pair is left"),
        (["model.path=/no/such/model"], "the model folder /no/such/model does not exist"),
        (["data.train=/no/such/file.jsonl"], "file.jsonl"),
        (["model.lora.target_modules=[nothing]"], "matches no layer of this model"),
        (["tracking.report_to=[no_such_tracker]"], "is no tracker"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(
    tmp_path: Path,
    tiny_folder: Path,
    prefs: Path,
    memory: Memory,
    more: list[str],
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from simpo_cli.train import build

    monkeypatch.setattr(build, "load_start", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=problem) as caught:
        _train(tmp_path, tiny_folder, prefs, memory, *more)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_an_error_with_remedies(
    tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simpo_cli.train import run_plan

    monkeypatch.setattr(run_plan, "available_bytes", lambda _: 1_000_000)
    with pytest.raises(UserError, match="does not fit in memory") as caught:
        _train(tmp_path, tiny_folder, prefs, memory)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "lora" in caught.value.fix
    assert "gradient_checkpointing" not in caught.value.fix  # auto has tried it
    with pytest.raises(UserError, match="does not fit in memory") as caught:
        _train(tmp_path, tiny_folder, prefs, memory, "model.gradient_checkpointing=false")
    assert "gradient_checkpointing" in caught.value.fix


def test_a_launcher_of_several_processes_is_refused(
    tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        _train(tmp_path, tiny_folder, prefs, memory)


def test_output_inside_the_model_folder_is_refused(
    tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory
) -> None:
    with pytest.raises(UserError, match="inside model.path"):
        _train(tmp_path, tiny_folder, prefs, memory, f"output_dir={tiny_folder}/runs/x")


def test_trackers_get_the_numbers(tmp_path: Path, tiny_folder: Path, prefs: Path, memory: Memory) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _train(tmp_path, tiny_folder, prefs, memory, "tracking.report_to=[tensorboard]", "train.max_steps=2")
    scalars = EventAccumulator(str(tmp_path / "run" / "simpo"))
    scalars.Reload()
    assert {"loss", "rewards/margins", "eval/accuracy"} <= set(scalars.Tags()["scalars"])
    assert [event.step for event in scalars.Scalars("loss")] == [1, 2]
