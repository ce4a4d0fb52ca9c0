"""A whole run on a tiny model: what is in the run folder, and that it is what was measured."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.formatting import Cell
from simpo_cli.recipe.composition import compose
from simpo_cli.report.run_files import read_run
from simpo_cli.report.run_page import write_run_report
from simpo_cli.report.verdict import verdict
from simpo_cli.run.verify import verify_run
from simpo_cli.table import Row
from simpo_cli.train import build, run_plan
from tests.train.runs import Runs

needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_a_run_leaves_what_it_promises(tiny: Runs) -> None:
    memory = tiny.train("run", "eval.every=2", "checkpoint.every=2", "checkpoint.keep=1")
    outcome = memory.outcome
    assert outcome is not None
    metrics, evals = tiny.log("run", "metrics"), tiny.log("run", "evals")
    assert [row["step"] for row in metrics] == list(range(1, len(metrics) + 1))
    names = {"loss", "rewards/chosen", "rewards/accuracies", "logps/chosen", "grad_norm", "memory_gb"}
    assert names <= metrics[0].keys()
    assert "sft_loss" not in metrics[0]
    assert sum(row["pairs"] for row in metrics) == 40 - evals[0]["pairs"]
    assert metrics[0]["learning_rate"] == 0
    assert metrics[-1]["epoch"] == 1
    assert [row["step"] for row in evals] == [0, 2, len(metrics)]
    assert evals[0]["logps/chosen_delta"] == 0
    assert evals[-1]["logps/chosen_delta"] != 0
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert evals[-1]["accuracy"] == 1.0

    receipt = tiny.receipt("run")
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
    assert receipt["outcome"]["difference"]["test"] in ("mcnemar-exact", "sign-flip-by-prompt")
    run = tiny.folder / "run"
    assert compose(str(run / "recipe.yaml")).recipe.train.learning_rate == 1e-3
    before, after = (100 * receipt["outcome"][when]["accuracy"]["value"] for when in ("before", "after"))
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"\| accuracy \| {before:.1f} % \(.*\) \| {after:.1f} % \(.*\) \|", card)
    assert str(tiny.folder) not in card

    pairs, after = tiny.log("run", "evals-pairs"), receipt["outcome"]["after"]
    assert after["accuracy"]["value"] == 1.0
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
    notes = tiny.log("run", "notes")
    assert [row["label"] for row in notes[:2]] == ["loss", "model"]
    assert any(row["label"] == "note" and "self-check" in row["text"] for row in notes)

    assert tiny.checkpoints("run") == [len(metrics)]
    assert memory.header is not None
    assert outcome.table.rows[0].label == "accuracy"


def test_the_saved_model_is_the_trained_one_and_loads_elsewhere(tiny: Runs, tiny_folder: Path) -> None:
    tiny.train("run")
    folder = tiny.folder / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "How do I do thing 3?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True).endswith("assistant\n")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1] > ids["input_ids"].shape[1]

    weights, saved = tiny.weights("run"), dict(model.named_parameters())
    assert len(weights) == len(saved)
    for name, weight in weights.items():
        assert torch.equal(saved[name.removeprefix("model.")], weight)
    start = dict(AutoModelForCausalLM.from_pretrained(tiny_folder).named_parameters())
    assert not torch.equal(saved["model.norm.weight"], start["model.norm.weight"])
    assert (folder / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()


def test_the_budget_of_a_microbatch_changes_nothing_but_memory(tiny: Runs) -> None:
    small, large = (tiny.train(budget, f"train.tokens_per_microbatch={budget}") for budget in ("128", "100000"))
    assert [step.loss for step in small.steps] == pytest.approx([step.loss for step in large.steps], rel=1e-4)


def test_adapters_train_save_and_load(tiny: Runs) -> None:
    memory = tiny.train("run", "model.lora.rank=4", "train.learning_rate=1e-2", "train.num_epochs=2")
    folder = tiny.folder / "run" / "model"
    assert (folder / "adapter_config.json").is_file()
    assert not (folder / "model.safetensors").exists()
    assert memory.evals[-1].accuracy > memory.evals[0].accuracy
    model = AutoModelForCausalLM.from_pretrained(folder)  # transformers loads the base and puts the adapter on
    assert any("lora" in name for name, _ in model.named_parameters())


def test_an_existing_run_is_refused_and_set_aside_only_when_asked(tiny: Runs) -> None:
    tiny.train("run", "train.max_steps=1")
    before = (tiny.folder / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run") as caught:
        tiny.train("run", "train.max_steps=1")
    assert caught.value.exit_code == ExitCode.USAGE
    assert "--resume" in caught.value.fix
    assert "--fresh" in caught.value.fix
    assert (tiny.folder / "run" / "metrics.jsonl").read_bytes() == before
    tiny.train("run", "train.max_steps=1", fresh=True)
    [old] = tiny.folder.glob("run.old-*")
    assert (old / "metrics.jsonl").read_bytes() == before


def test_a_folder_that_is_no_run_is_never_touched(tiny: Runs) -> None:
    thesis = tiny.folder / "run" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work", encoding="utf-8")
    for fresh in (False, True):
        with pytest.raises(UserError, match="not a run"):
            tiny.train("run", fresh=fresh)
    assert thesis.read_text(encoding="utf-8") == "years of work"


def test_a_dry_run_writes_nothing_and_warns_once_of_narrow_weights(tiny: Runs) -> None:
    memory = tiny.train("run", "model.weights_dtype=fp16", dry_run=True)
    assert memory.outcome is None
    assert not (tiny.folder / "run").exists()
    assert "memory" in memory.lines
    [warned] = [note for note in memory.notes if "fp16" in note or "float16" in note]
    assert "REC005" in warned


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("data.max_length=1024", "data.max_length is 1024, and .* knows 512 positions"),
        ("train.tokens_per_microbatch=20", "tokens_per_microbatch is 20, and this pair alone needs"),
        ("data.holdout=40", "no training pair is left"),
        ("model.path=/no/such/model", "the model folder /no/such/model does not exist"),
        ("data.train=/no/such/file.jsonl", "file.jsonl"),
        ("model.lora.target_modules=[nothing]", "matches no layer of this model"),
        ("tracking.report_to=[no_such_tracker]", "is no tracker"),
        ("output_dir=${model.path}/runs/x", "inside model.path"),
    ],
)
def test_what_does_not_fit_is_refused_before_weights_are_read(
    tiny: Runs, more: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "load_start", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=problem) as caught:
        tiny.train("run", more)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    assert not (tiny.folder / "run").exists()


def test_too_little_memory_is_an_error_with_remedies(tiny: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "available_bytes", lambda _: 1_000_000)
    for more, is_a_remedy in (("auto", False), ("false", True)):  # auto has tried it
        with pytest.raises(UserError, match="does not fit in memory") as caught:
            tiny.train("run", f"model.gradient_checkpointing={more}")
        assert caught.value.exit_code == ExitCode.ENVIRONMENT
        assert "lora" in caught.value.fix
        assert ("gradient_checkpointing" in caught.value.fix) == is_a_remedy


def test_a_quick_run_evaluates_nothing_and_says_so_everywhere(tiny: Runs) -> None:
    memory = tiny.train("run", "train.max_steps=2", "eval.every=1", quick=True)
    run, receipt = tiny.folder / "run", tiny.receipt("run")
    assert "no evaluation and no probe answers" in memory.lines["quick"]
    assert memory.evals == []
    assert memory.outcome is not None
    assert memory.outcome.answers == ()
    assert memory.outcome.table.rows[0] == Row("accuracy", (Cell(""), Cell("not measured")), "--quick")
    assert receipt["quick"] is True
    assert (receipt["outcome"]["not_measured"], receipt["outcome"]["answers"]) == ("--quick", [])
    assert not {"before", "after", "difference"} & receipt["outcome"].keys()
    assert receipt["data"]["train"]["records"]["held_out"] > 0  # they are not trained on
    for name in ("evals.jsonl", "evals-pairs.jsonl", "answers.jsonl"):
        assert not (run / name).exists()
    assert "Not measured: --quick." in (run / "model" / "README.md").read_text(encoding="utf-8")
    assert verdict(read_run(run)).startswith("Not measured: --quick.")
    assert "Not measured: --quick." in write_run_report(run).read_text(encoding="utf-8")
    verify_run(run).require_whole()


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_a_run_that_began_quick_stays_so_and_another_may_become_so(tiny: Runs, first: bool, then: bool) -> None:
    tiny.train("run", "train.max_steps=2", quick=first)
    memory = tiny.train("run", "train.max_steps=3", resume=True, quick=then)
    assert memory.evals == []
    assert memory.outcome is not None
    assert memory.outcome.table.rows[0].cells[1].text == "not measured"


def test_the_best_checkpoint_cannot_be_kept_unseen(tiny: Runs) -> None:
    with pytest.raises(UserError, match="checkpoint.best keeps the checkpoint") as refused:
        tiny.train("run", "checkpoint.best=true", "eval.every=1", quick=True)
    assert refused.value.exit_code == ExitCode.USAGE
    assert not (tiny.folder / "run").exists()


@pytest.mark.parametrize("precision", [pytest.param(name, marks=needs_cuda) for name in ("fp32", "bf16")])
def test_a_run_on_cuda_learns_and_in_float32_follows_the_run_on_a_cpu(
    tiny: Runs, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cuda = [step.loss for step in tiny.train("cuda", f"train.precision={precision}").steps]
    assert on_cuda[-1] < on_cuda[0]
    if precision == "fp32":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert on_cuda == pytest.approx([step.loss for step in tiny.train("cpu").steps], rel=1e-2)
