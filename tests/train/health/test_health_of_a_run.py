"""Health in real runs of the embedded model; updates that rounding takes away; repetition."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn, optim
from transformers import AutoModelForCausalLM

from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode
from simpo_cli.evaluate.answers import Question
from simpo_cli.evaluate.generate.measures import repeated_share
from simpo_cli.model.policy import Policy
from simpo_cli.model.rounding import WeightSample, sampled, step_counting_lost
from simpo_cli.run.events import LOOPING, ProbeAnswer
from simpo_cli.train import build
from simpo_cli.train.health import AnswerProbe, UnhealthyError
from tests.train.conftest import Memory
from tests.train.guide import Guide, final_state, rows, timeless

# a rate at which nothing but noise is learned: drift is at its threshold by step 2
WILD = ("train.learning_rate=5e-2", "train.warmup_ratio=0", "health.both_fall=0.5", "health.endless_answers=null")
STOP = "health.stop_on=[HEA002]"


@pytest.fixture
def guide(tmp_path: Path) -> Guide:
    return Guide(tmp_path)


def test_an_alert_is_on_the_screen_in_the_notes_in_run_json_and_in_the_table(guide: Guide) -> None:
    memory = Memory()
    outcome = guide.train("run", *WILD, observer=memory)
    assert outcome is not None
    said = [note for note in memory.notes if note.startswith("HEA002")]
    assert len(said) == 1
    assert said[0].startswith("HEA002 step 2: chosen and rejected responses fell by ")
    assert said[0].endswith(" (health.both_fall 0.5); lower train.learning_rate")
    noted = [row["text"] for row in rows(guide.folder / "run" / "notes.jsonl") if row["label"] == "note"]
    assert said[0] in noted
    [alert] = [alert for alert in guide.receipt("run")["health"] if alert["code"] == "HEA002"]
    assert (alert["step"], alert["key"], alert["limit"]) == (2, "both_fall", 0.5)
    evals = rows(guide.folder / "run" / "evals.jsonl")
    falls = [min(-row["logps/chosen_delta"], -row["logps/rejected_delta"]) for row in evals]
    assert alert["value"] == falls[1]
    assert alert["worst"] == max(falls)
    assert alert["times"] == sum(fall >= 0.5 for fall in falls)
    [row] = [row for row in outcome.table.rows if row.label == "health"]
    assert "HEA002" in row.remark


def test_stop_on_stops_at_a_whole_step_again_and_again_until_the_recipe_changes(
    guide: Guide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUIDE_FLAG", "a-value-that-is-not-shown")  # the identity of a run keeps a digest of it
    wild = (*WILD, "name=${oc.env:GUIDE_FLAG}")
    guide.train("unbroken", *wild)
    with pytest.raises(UnhealthyError, match="stopped by health.stop_on, .* HEA002 step 2") as caught:
        guide.train("run", *wild, STOP, "checkpoint.every=null")
    assert caught.value.exit_code == ExitCode.NUMBERS
    assert guide.require_all_finite("run") == [2]
    receipt = guide.receipt("run")
    assert (receipt["status"], receipt["step"]) == ("stopped", 2)
    assert "HEA002" in receipt["outcome"]["error"]

    memory = Memory()
    with pytest.raises(UnhealthyError, match="HEA002 step 2"):
        guide.train("run", *wild, STOP, "checkpoint.every=null", resume=True, observer=memory)
    assert memory.steps == []

    guide.train("run", *wild, "checkpoint.every=null", resume=True, observer=memory)
    assert memory.steps[0].step == 3
    assert not any(note.startswith("HEA002") for note in memory.notes)  # it was said before the stop
    assert final_state(guide.folder / "run") == final_state(guide.folder / "unbroken")
    for log in ("metrics.jsonl", "evals.jsonl", "answers.jsonl"):
        assert timeless(guide.folder / "run" / log) == timeless(guide.folder / "unbroken" / log)
    assert guide.receipt("run")["health"] == guide.receipt("unbroken")["health"]


def test_what_is_seen_at_the_very_end_ends_a_complete_run_with_5(guide: Guide) -> None:
    memory = Memory()
    with pytest.raises(UnhealthyError, match="the run is complete and model/ is saved, and .* HEA002 step 5") as caught:
        guide.train("run", *WILD, STOP, "eval.every=null", observer=memory)
    assert caught.value.exit_code == ExitCode.NUMBERS
    assert memory.outcome is not None
    assert guide.receipt("run")["status"] == "done"
    assert (guide.folder / "run" / "model" / "model.safetensors").is_file()


def test_watching_changes_no_weight_and_no_number(guide: Guide) -> None:
    short = ("train.max_steps=2", "eval.every=1")
    guide.train("watched", *short, "health.num_answers=6")
    guide.train("not", *short, "health.num_answers=0", "health.chosen_fall=null", "health.gradient_spike=null")
    assert final_state(guide.folder / "watched") == final_state(guide.folder / "not")
    assert timeless(guide.folder / "watched" / "metrics.jsonl") == timeless(guide.folder / "not" / "metrics.jsonl")
    assert not (guide.folder / "not" / "answers.jsonl").exists()


def test_probe_answers_are_kept_step_by_step(guide: Guide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "AnswerProbe", AnswerProbe)  # in their full length
    guide.train("run", "health.num_answers=2", "health.answer_tokens=40", "train.max_steps=2")
    answers = rows(guide.folder / "run" / "answers.jsonl")
    assert [answer["step"] for answer in answers] == [0, 0, 2, 2]
    assert all(answer["ended"] and 5 < answer["tokens"] < 40 and answer["repeated"] == 0.0 for answer in answers[:2])
    assert answers[0]["question"] != answers[1]["question"]
    assert answers[0]["question"] == answers[2]["question"]
    evals = rows(guide.folder / "run" / "evals.jsonl")
    assert evals[0]["answers/endless"] == evals[0]["answers/looping"] == 0.0


def test_lost_updates_and_a_lost_change_are_seen(guide: Guide) -> None:
    memory = Memory()
    guide.train("run", "model.weights_dtype=bf16", "train.learning_rate=1e-6", observer=memory)
    [said] = [note for note in memory.notes if note.startswith("HEA005")]
    assert "of the updates are lost" in said
    assert "model.weights_dtype=fp32" in said
    guide.train("narrow", "train.learning_rate=1e-6", "export.dtype=bf16", observer=memory)
    [said] = [note for note in memory.notes if note.startswith("HEA006")]
    assert "export.dtype=fp32" in said
    narrow = json.loads((guide.folder / "narrow" / "run.json").read_text(encoding="utf-8"))
    [alert] = [alert for alert in narrow["health"] if alert["code"] == "HEA006"]
    kept = narrow["outcome"]["export"]["kept_share"]
    assert alert["worst"] == pytest.approx(kept, abs=0.1)
    estimated = rows(guide.folder / "narrow" / "evals.jsonl")[-2]["export/kept_share"]
    assert estimated == pytest.approx(kept, abs=0.1)


def _weights(dtype: torch.dtype, *sizes: int) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(3)
    return {str(at): nn.Parameter(0.02 * torch.randn(size, generator=draw).to(dtype)) for at, size in enumerate(sizes)}


def _optimizer(weights: dict[str, nn.Parameter], rate: float) -> optim.Optimizer:
    optimizer = optim.AdamW(weights.values(), lr=rate, weight_decay=0.0)
    draw = torch.Generator().manual_seed(4)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=draw).to(weight.dtype)
    return optimizer


@pytest.mark.parametrize(("rate", "low", "high"), [(1e-6, 0.9, 1.0), (1e-4, 0.05, 0.3), (1e-2, 0.0, 0.02)])
def test_the_share_of_lost_updates_is_that_of_all_weights(rate: float, low: float, high: float) -> None:
    weights = _weights(torch.bfloat16, 300, 4096)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    share = step_counting_lost(_optimizer(weights, rate), weights)
    same = sum(int((weight == before[name]).sum()) for name, weight in weights.items())
    assert share == pytest.approx(same / 4396)
    assert low <= share <= high


def test_float32_loses_nothing_and_a_weight_without_a_gradient_has_no_update() -> None:
    weights = _weights(torch.float32, 500)
    optimizer = _optimizer(weights, 1e-6)
    gradient: Any = weights["0"].grad
    gradient[100:] = 0
    assert step_counting_lost(optimizer, weights) == 0.0


def test_a_large_tensor_is_sampled_evenly() -> None:
    tensor = torch.arange(10_001).reshape(1, -1)
    picked = sampled(tensor)
    assert picked.tolist() == list(range(0, 10_001, 3))
    picked += 1
    assert tensor[0, 0] == 0  # a copy


def test_what_a_save_keeps_is_estimated_from_the_sample() -> None:
    weights = _weights(torch.float32, 5_000, 60_000)
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(weight.to(torch.bfloat16))  # a start model that is stored so
    sample = WeightSample.of(weights)
    start = torch.cat([weight.detach().clone() for weight in weights.values()])
    assert sample.rounding(torch.bfloat16).kept_share == 1.0  # nothing has changed yet
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in weights.values():
            weight += 4e-5 * torch.randn(weight.shape, generator=draw)
    now = torch.cat([weight.detach() for weight in weights.values()])
    change, saved = now - start, now.to(torch.bfloat16).float() - start
    rounding = sample.rounding(torch.bfloat16)
    assert rounding.kept_share == pytest.approx(float(change @ saved / (change @ change)), abs=0.03)
    assert rounding.rounded_back_share == pytest.approx(float((saved == 0).float().mean()), abs=0.02)
    assert 0.2 < rounding.rounded_back_share < 0.9
    assert sample.rounding(torch.float32).kept_share == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b c", 0.0),
        ("a b c d", 0.0),
        ("a b c d e f g h i j", 0.0),
        ("a a a a a a a", 0.75),  # four runs, one of them new
        ("a b a b a b a b", 0.6),  # five runs, abab and baba
        ("a b c d e a b c d e", 2 / 7),  # seven runs, abcd and bcde occur twice
    ],
)
def test_the_share_of_repeated_runs_of_four(text: str, share: float) -> None:
    assert repeated_share(text.split()) == pytest.approx(share)


def test_a_set_phrase_twice_is_no_loop_and_a_loop_is() -> None:
    words = list("to restore a deleted item")  # letters stand for words
    twice = [*words, *"; open a deleted"]
    loop = words + ["x", "y"] * 12
    for answer, loops in ((twice, False), (loop, True)):
        share = repeated_share(answer)
        assert (share >= LOOPING) == loops
        assert ProbeAnswer("How?", " ".join(answer), len(answer), share, True).loops == loops


def test_prompts_of_different_lengths_are_answered_as_each_alone(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_folder))
    texts = ["How?", "How do I invite a teammate to the new project?", "Please open the settings."]
    questions = [Question(text, tuple(tokenizer.encode_batch([text])[0])) for text in texts]
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model.generation_config.repetition_penalty = 5.0
    policy = Policy(model, "shared_prefix").train()
    answers = AnswerProbe(questions, tokenizer, 9).ask(policy, Accelerator(cpu=True))
    assert policy.training
    assert policy.packing == "shared_prefix"
    assert model.generation_config.repetition_penalty == 5.0
    alone = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for question, answer in zip(questions, answers, strict=True):
        ids = list(question.ids)
        for _ in range(9):  # the likeliest next token, again and again
            ids.append(int(alone(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in tokenizer.end_ids:
                break
        said = ids[len(question.ids) :]
        assert answer.ended == (said[-1] in tokenizer.end_ids)
        assert answer.tokens == len(said) - answer.ended
        assert answer.text == tokenizer.decode(said[: answer.tokens]).strip()
        assert answer.question == question.text


def test_nothing_held_out_asks_nothing(tiny_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    probe = AnswerProbe([], load_tokenizer(str(tiny_folder)), 9)
    assert probe.ask(Policy(model), Accelerator(cpu=True)) == ()
