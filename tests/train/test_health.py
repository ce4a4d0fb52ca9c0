"""Every code at its threshold: said once, counted, remembered over a restart, and obeyed where the recipe says so."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import ExitCode
from simpo_cli.evaluate.answers import Question
from simpo_cli.evaluate.generate.measures import repeated_share
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import DataRecipe, HealthRecipe, ModelRecipe, Recipe, TrainRecipe
from simpo_cli.run.events import LOOPING, ProbeAnswer
from simpo_cli.train.health import AnswerProbe, Health, UnhealthyError
from tests.report import screen as report
from tests.train.runs import Memory, Runs, final_state, timeless

STEP = replace(report.STEP, grad_norm=1.0)


Event = Callable[[Health], None]


def _health(**thresholds: Any) -> tuple[Health, list[str]]:
    recipe = Recipe(
        name="run",
        model=ModelRecipe(path="builtin:guide"),
        data=DataRecipe(train="builtin:guide"),
        train=TrainRecipe(learning_rate=1e-6),
        health=HealthRecipe(**thresholds),
    )
    said: list[str] = []
    return Health(recipe, 100, lambda line, _: said.append(line)), said


def _steps(count: int = 20, *, first: int = 1, lost: float | None = None, **values: Any) -> Event:
    def event(health: Health) -> None:
        for step in range(first, first + count):
            health.step(replace(STEP, step=step, **values), lost)

    return event


def _evaluated(chosen: float = 0.0, rejected: float = 0.0, *, step: int = 50, **values: Any) -> Event:
    """An evaluation in which both responses have come to these differences from the start."""
    record = replace(report.EVALUATION, step=step, logps_chosen_delta=chosen, logps_rejected_delta=rejected, **values)
    return lambda health: health.evaluated(record)


def _answers(*looping_and_ended: tuple[bool, bool]) -> tuple[ProbeAnswer, ...]:
    return tuple(
        ProbeAnswer("How?", "Like that.", 12, 0.9 if loops else 0.0, ends) for loops, ends in looping_and_ended
    )


def _after(*events: Event, **thresholds: Any) -> tuple[Health, list[str]]:
    """The watch over a run in which this has happened, and what it has said."""
    health, said = _health(**thresholds)
    for event in events:
        event(health)
    return health, said


def _codes(said: Sequence[str]) -> list[str]:
    return [line.split()[0] for line in said]


LOOPS, ENDS, GOES_ON, DOES_BOTH = (True, False), (False, True), (False, False), (True, True)
NORMS = [_steps(1, first=step, grad_norm=1.0 if step % 4 else 15.0) for step in range(1, 17)]
LOST = (_steps(lost=1.0, learning_rate=1e-8), _steps(10, first=21, lost=0.4))  # the first in the warm-up
ANSWERED = (
    _evaluated(step=0, answers=_answers(LOOPS, ENDS, ENDS, ENDS)),
    _evaluated(step=10, answers=_answers(LOOPS, ENDS, ENDS, ENDS)),
    _evaluated(step=20, answers=_answers(LOOPS, LOOPS, ENDS, ENDS)),  # one of four is below 0.3
)
LOOPED = _evaluated(step=30, answers=_answers(LOOPS, DOES_BOTH, DOES_BOTH, ENDS))
ENDLESS = _evaluated(step=40, answers=_answers(ENDS, GOES_ON, GOES_ON, ENDS))


@pytest.mark.parametrize(
    ("events", "codes"),
    [
        ([_steps(), _evaluated(0.1, -0.4, answers=_answers(ENDS)), _evaluated(export_kept_share=0.95)], []),
        ([_evaluated(-0.25, -0.5)], ["HEA001"]),
        ([_evaluated(-0.15, -0.5)], []),  # above the threshold
        ([_evaluated(-0.25, -0.2)], []),  # the margin fell
        ([_evaluated(-1.5, -1.25)], ["HEA002"]),
        ([_evaluated(-1.5, -1.75)], ["HEA001", "HEA002"]),
        ([_evaluated(0.5, -3.0)], []),
        ([_evaluated(-0.9, -4.0)], ["HEA001"]),
        ([_steps(16, gradient_weight=0.04)], ["HEA003"]),
        ([_steps(15, gradient_weight=0.04)], []),  # too few
        ([_steps(40, gradient_weight=0.06)], []),
        # two of the latest 32 are of before: 0.9 * 2 / 32 = 0.056
        ([_steps(40, gradient_weight=0.9), _steps(30, first=41, gradient_weight=0.0)], []),
        ([_steps(40, gradient_weight=0.9), _steps(31, first=41, gradient_weight=0.0)], ["HEA003"]),
        # a multiple of the median before, which is not moved by a few large ones
        ([*NORMS, _steps(1, first=17, grad_norm=21.0)], ["HEA004"]),
        ([*NORMS, _steps(1, first=17, grad_norm=19.0)], []),
        ([*NORMS[:15], _steps(1, first=16, grad_norm=21.0)], []),
        (LOST, []),
        ([*LOST, _steps(30, first=31, lost=0.6)], ["HEA005"]),
        ([_evaluated(step=49, export_kept_share=0.1)], []),  # not before the middle of the run
        ([_evaluated(step=50, export_kept_share=0.79)], ["HEA006"]),
        (ANSWERED, []),
        ([*ANSWERED, LOOPED], ["HEA007"]),
        ([*ANSWERED, LOOPED, ENDLESS], ["HEA007", "HEA008"]),
    ],
)
def test_every_code_at_its_threshold(events: Sequence[Event], codes: list[str]) -> None:
    health, said = _after(*events)
    assert _codes(said) == codes
    assert [alert.code for alert in health.alerts] == codes


@pytest.mark.parametrize(
    ("events", "line"),
    [
        (
            [_evaluated(-0.25, -0.5)],
            "HEA001 step 50: chosen responses fell by 0.25 nats/token while the margin rose (rejected fell by 0.50, "
            "probe of 64 pairs) (health.chosen_fall 0.2); try loss.sft_weight=1, or a third of train.learning_rate",
        ),
        (
            [_steps(16, gradient_weight=0.028, rewards_target_reached=0.75, rewards_margins=3.0)],
            "HEA003 step 16: the loss is saturated: its mean gradient weight is 0.028 (last 16 steps), and 75 % of "
            "this step's pairs are past gamma, by 2 on average (health.gradient_weight 0.05); a shorter run or a "
            "higher loss.gamma_beta_ratio",
        ),
        (
            [*LOST, _steps(30, first=31, lost=0.6)],
            "HEA005 step 40: 50 % of the updates are lost: at learning rate 1e-06 they are smaller than the rounding "
            "of the weights (health.lost_updates 0.5); set model.weights_dtype=fp32",
        ),
        (
            [*ANSWERED, LOOPED],
            'HEA007 step 30: 2 of 4 probe answers repeat themselves, such as "Like that." (health.looping_answers '
            "0.3); try loss.sft_weight=1, or a third of train.learning_rate",
        ),
        (
            [*ANSWERED, ENDLESS],
            "HEA008 step 40: 2 of 4 probe answers do not end any more within 12 tokens (health.endless_answers 0.3); "
            "try loss.sft_weight=1, or a third of train.learning_rate",
        ),
    ],
)
def test_a_line_names_code_step_numbers_threshold_key_and_remedy(events: Sequence[Event], line: str) -> None:
    assert _after(*events)[1] == [line]


def test_a_code_is_said_once_and_counted() -> None:
    falls = ((10, -0.3), (20, -0.5), (30, 0.0), (40, -0.4))
    health, said = _after(*(_evaluated(fall, -0.9, step=step) for step, fall in falls))
    assert _codes(said) == ["HEA001"]
    [alert] = health.alerts
    assert (alert.step, alert.last_step, alert.times, alert.value, alert.worst) == (10, 40, 3, 0.3, 0.5)


def test_null_switches_a_watch_off_and_another_threshold_moves_it() -> None:
    assert _after(_evaluated(-2.0, -2.5), chosen_fall=None, both_fall=3.0)[1] == []


def test_what_is_remembered_survives_a_restart_bit_for_bit() -> None:
    draws = [0.1 * (1 + (7 * step) % 11) for step in range(1, 61)]
    draws[40] = 77.7
    steps = [_steps(1, first=step, grad_norm=norm, lost=norm / 80) for step, norm in enumerate(draws, start=1)]
    unbroken, said = _after(*steps, gradient_spike=15.0)
    assert _codes(said) == ["HEA004"]
    for cut in (0, 20, 40, 41, 59):
        first, said_first = _after(*steps[:cut], gradient_spike=15.0)
        second, said_second = _health(gradient_spike=15.0)
        second.restore(json.loads(json.dumps(first.as_json())), recipe_changed=False)
        for step in steps[cut:]:
            step(second)
        assert second.as_json() == unbroken.as_json()
        assert second.alerts == unbroken.alerts
        assert said_first + said_second == said


def test_a_run_stops_for_what_the_recipe_names_and_again_unless_that_changed() -> None:
    health, said = _health(stop_on=["HEA001"])
    saved: list[str] = []

    def save() -> None:
        saved.append("saved")

    _evaluated(-1.5, -1.25)(health)
    health.require_well(save, "simpo train run.yaml --resume")  # HEA002 only warns
    assert saved == []
    _evaluated(-0.3, -0.5, step=60)(health)
    with pytest.raises(UnhealthyError, match="HEA001 step 60: chosen responses fell by 0.30") as caught:
        health.require_well(save, "simpo train run.yaml --resume")
    assert saved == ["saved"]
    assert caught.value.exit_code == ExitCode.NUMBERS
    assert "health.chosen_fall" in caught.value.fix
    assert "simpo train run.yaml --resume" in caught.value.fix
    assert _codes(said) == ["HEA002", "HEA001"]

    remembered = json.loads(json.dumps(health.as_json()))
    same, _ = _health(stop_on=["HEA001"])
    same.restore(remembered, recipe_changed=False)
    with pytest.raises(UnhealthyError):
        same.require_well(save, "")
    other, said_after = _health(stop_on=["HEA001"], chosen_fall=0.25)
    other.restore(remembered, recipe_changed=True)
    other.require_well(save, "")
    _evaluated(-0.2, -0.5, step=70)(other)
    other.require_well(save, "")
    _evaluated(-0.26, -0.5, step=80)(other)
    with pytest.raises(UnhealthyError, match="step 80"):
        other.require_well(save, "")
    assert said_after == []  # it has been said before


# In real runs of the embedded model

# a rate at which nothing but noise is learned: drift is at its threshold by step 2
WILD = ("train.learning_rate=5e-2", "train.warmup_ratio=0", "health.both_fall=0.5", "health.endless_answers=null")
STOP = "health.stop_on=[HEA002]"


def test_an_alert_is_on_the_screen_in_the_notes_in_run_json_and_in_the_table(guide: Runs) -> None:
    memory = guide.train("run", *WILD)
    assert memory.outcome is not None
    [said] = memory.said("HEA002")
    assert said.startswith("HEA002 step 2: chosen and rejected responses fell by ")
    assert said.endswith(" (health.both_fall 0.5); try loss.sft_weight=1, or a third of train.learning_rate")
    assert said in [row["text"] for row in guide.log("run", "notes") if row["label"] == "note"]
    [alert] = [alert for alert in guide.receipt("run")["health"] if alert["code"] == "HEA002"]
    assert (alert["step"], alert["key"], alert["limit"]) == (2, "both_fall", 0.5)
    falls = [min(-row["logps/chosen_delta"], -row["logps/rejected_delta"]) for row in guide.log("run", "evals")]
    assert alert["value"] == falls[1]
    assert alert["worst"] == max(falls)
    assert alert["times"] == sum(fall >= 0.5 for fall in falls)
    [row] = [row for row in memory.outcome.table.rows if row.label == "health"]
    assert "HEA002" in row.remark


def test_stop_on_stops_at_a_whole_step_again_and_again_until_the_recipe_changes(
    guide: Runs, monkeypatch: pytest.MonkeyPatch
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
    assert [one["overrides"] for one in receipt["outcome"]["suggestions"]] == [
        ["loss.sft_weight=1"],
        ["train.learning_rate=0.017"],
    ]
    assert "Train anew with: simpo " in caught.value.fix
    assert f" loss.sft_weight=1 output_dir={guide.folder / 'run'}-2\n" in caught.value.fix

    memory = Memory()
    with pytest.raises(UnhealthyError, match="HEA002 step 2"):
        guide.train("run", *wild, STOP, "checkpoint.every=null", resume=True, observer=memory)
    assert memory.steps == []

    memory = guide.train("run", *wild, "checkpoint.every=null", resume=True)
    assert memory.steps[0].step == 3
    assert memory.said("HEA002") == []  # it was said before the stop
    guide.require_same("run", "unbroken")
    assert guide.receipt("run")["health"] == guide.receipt("unbroken")["health"]


def test_what_is_seen_at_the_very_end_ends_a_complete_run_with_5(guide: Runs) -> None:
    memory = Memory()
    with pytest.raises(UnhealthyError, match="the run is complete and model/ is saved, and .* HEA002 step 5") as caught:
        guide.train("run", *WILD, STOP, "eval.every=null", observer=memory)
    assert caught.value.exit_code == ExitCode.NUMBERS
    assert caught.value.is_shared  # else the launcher ends the first rank, which is still writing the report
    assert memory.outcome is not None
    assert guide.receipt("run")["status"] == "done"
    assert (guide.folder / "run" / "model" / "model.safetensors").is_file()


def test_watching_changes_no_weight_and_no_number(guide: Runs) -> None:
    short = ("train.max_steps=2", "eval.every=1")
    guide.train("watched", *short, "health.num_answers=6")
    guide.train("not", *short, "health.num_answers=0", "health.chosen_fall=null", "health.gradient_spike=null")
    assert final_state(guide.folder / "watched") == final_state(guide.folder / "not")
    assert timeless(guide.folder / "watched" / "metrics.jsonl") == timeless(guide.folder / "not" / "metrics.jsonl")
    assert not (guide.folder / "not" / "answers.jsonl").exists()


def test_probe_answers_are_kept_step_by_step(guide: Runs) -> None:
    guide.short_answers = False
    guide.train("run", "health.num_answers=2", "health.answer_tokens=40", "train.max_steps=2")
    answers = guide.log("run", "answers")
    assert [answer["step"] for answer in answers] == [0, 0, 2, 2]
    assert all(answer["ended"] and 5 < answer["tokens"] < 40 and answer["repeated"] == 0.0 for answer in answers[:2])
    assert answers[0]["question"] != answers[1]["question"]
    assert answers[0]["question"] == answers[2]["question"]
    evaluation = guide.log("run", "evals")[0]
    assert evaluation["answers/endless"] == evaluation["answers/looping"] == 0.0


def test_lost_updates_and_a_lost_change_are_seen(guide: Runs) -> None:
    rate = "train.learning_rate=1e-6"
    assert guide.train("rounded by chance", "model.weights_dtype=bf16", rate).said("HEA005") == []
    [said] = guide.train("run", "model.weights_dtype=fp16", rate).said("HEA005")
    assert "of the updates are lost" in said
    assert "model.weights_dtype=fp32" in said
    [said] = guide.train("narrow", "train.learning_rate=1e-6", "export.dtype=bf16").said("HEA006")
    assert "export.dtype=fp32" in said
    narrow = guide.receipt("narrow")
    [alert] = [alert for alert in narrow["health"] if alert["code"] == "HEA006"]
    kept = narrow["outcome"]["export"]["kept_share"]
    assert alert["worst"] == pytest.approx(kept, abs=0.1)
    assert guide.log("narrow", "evals")[-2]["export/kept_share"] == pytest.approx(kept, abs=0.1)


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
