"""Every code at its threshold: said once, counted, remembered over a restart, and obeyed where the recipe says so."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from simpo_cli.errors import ExitCode
from simpo_cli.recipe.schema import DataRecipe, HealthRecipe, ModelRecipe, Recipe, TrainRecipe
from simpo_cli.run.events import EvalRecord, ProbeAnswer, StepRecord
from simpo_cli.train.health import Health, UnhealthyError

STEP = StepRecord(
    step=1,
    epoch=0.1,
    loss=0.7,
    rewards_chosen=-2.0,
    rewards_rejected=-5.0,
    rewards_margins=3.0,
    rewards_accuracies=0.9,
    rewards_target_reached=0.75,
    logps_chosen=-1.0,
    logps_rejected=-2.5,
    sft_loss=None,
    grad_norm=1.0,
    learning_rate=1e-6,
    pairs=8,
    tokens=100,
    pairs_per_second=1.0,
    tokens_per_second=1.0,
    memory_gb=1.0,
    seconds=1.0,
    gradient_weight=0.3,
)
EVALUATION = EvalRecord(
    step=50,
    pairs=100,
    prompts=100,
    loss=0.7,
    accuracy=0.8,
    accuracy_low=0.7,
    accuracy_high=0.9,
    margin=1.0,
    target_reached=0.5,
    logps_chosen=-1.0,
    logps_rejected=-1.5,
    logps_chosen_delta=0.0,
    logps_rejected_delta=0.0,
    probe_pairs=64,
    seconds=1.0,
)


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


def _steps(health: Health, *, count: int = 20, first: int = 1, lost: float | None = None, **values: Any) -> None:
    for step in range(first, first + count):
        health.step(replace(STEP, step=step, **values), lost)


def _answers(*looping_and_ended: tuple[bool, bool]) -> tuple[ProbeAnswer, ...]:
    return tuple(
        ProbeAnswer("How?", "Like that.", 12, 0.9 if loops else 0.0, ends) for loops, ends in looping_and_ended
    )


def _evaluate(health: Health, step: int = 50, **values: Any) -> None:
    health.evaluated(replace(EVALUATION, step=step, **values))


def _codes(said: Sequence[str]) -> list[str]:
    return [line.split()[0] for line in said]


def test_a_healthy_run_is_told_nothing() -> None:
    health, said = _health()
    _steps(health)
    _evaluate(health, logps_chosen_delta=0.1, logps_rejected_delta=-0.4, answers=_answers((False, True)))
    _evaluate(health, export_kept_share=0.95, answers=_answers((False, True)))
    assert said == []
    assert health.alerts == []


@pytest.mark.parametrize(
    ("chosen", "rejected", "codes"),
    [
        (-0.25, -0.5, ["HEA001"]),
        (-0.15, -0.5, []),  # above the threshold
        (-0.25, -0.2, []),  # the margin fell
        (-1.5, -1.25, ["HEA002"]),
        (-1.5, -1.75, ["HEA001", "HEA002"]),
        (0.5, -3.0, []),
        (-0.9, -4.0, ["HEA001"]),
    ],
)
def test_drift_of_the_responses(chosen: float, rejected: float, codes: list[str]) -> None:
    health, said = _health()
    _evaluate(health, logps_chosen_delta=chosen, logps_rejected_delta=rejected)
    assert _codes(said) == codes


def test_a_line_names_code_step_numbers_threshold_key_and_remedy() -> None:
    health, said = _health()
    _evaluate(health, logps_chosen_delta=-0.25, logps_rejected_delta=-0.5)
    assert said == [
        "HEA001 step 50: chosen responses fell by 0.25 nats/token while the margin rose (rejected fell by 0.50, probe "
        "of 64 pairs) (health.chosen_fall 0.2); try loss.sft_weight=0.1 or a lower loss.gamma_beta_ratio"
    ]


@pytest.mark.parametrize(("weight", "count", "codes"), [(0.04, 16, ["HEA003"]), (0.06, 40, []), (0.04, 15, [])])
def test_saturation_is_judged_over_several_steps(weight: float, count: int, codes: list[str]) -> None:
    health, said = _health()
    _steps(health, count=count, gradient_weight=weight)
    assert _codes(said) == codes


def test_saturation_goes_by_the_latest_steps() -> None:
    health, said = _health()
    _steps(health, count=40, gradient_weight=0.9)
    _steps(health, first=41, count=30, gradient_weight=0.0)
    assert said == []  # two of the 32 are of before: 0.9 * 2 / 32 = 0.056
    _steps(health, first=71, count=1, gradient_weight=0.0)
    assert _codes(said) == ["HEA003"]


@pytest.mark.parametrize(("norm", "seen", "codes"), [(21.0, 16, ["HEA004"]), (19.0, 16, []), (21.0, 15, [])])
def test_a_spike_is_a_multiple_of_the_median_before(norm: float, seen: int, codes: list[str]) -> None:
    health, said = _health()
    for step in range(1, seen + 1):  # medians are not moved by a few large ones
        _steps(health, first=step, count=1, grad_norm=1.0 if step % 4 else 15.0)
    _steps(health, first=seen + 1, count=1, grad_norm=norm)
    assert _codes(said) == codes


def test_lost_updates_are_judged_once_the_warm_up_is_over() -> None:
    health, said = _health()
    _steps(health, lost=1.0, learning_rate=1e-8)
    assert said == []
    _steps(health, first=21, count=10, lost=0.4)
    assert said == []
    _steps(health, first=31, count=30, lost=0.6)
    assert _codes(said) == ["HEA005"]
    assert said[0].startswith("HEA005 step 40: 50 % of the updates are lost: at learning rate 1e-06 they are smaller")


def test_what_a_save_would_keep_is_judged_from_the_middle_of_the_run_on() -> None:
    health, said = _health()
    _evaluate(health, step=49, export_kept_share=0.1)
    assert said == []
    _evaluate(health, step=50, export_kept_share=0.79)
    assert _codes(said) == ["HEA006"]


def test_answers_are_compared_with_those_to_the_same_prompts_before() -> None:
    health, said = _health()
    before = _answers((True, False), (False, True), (False, True), (False, True))
    _evaluate(health, step=0, answers=before)
    _evaluate(health, step=10, answers=before)
    _evaluate(health, step=20, answers=_answers((True, False), (True, False), (False, True), (False, True)))
    assert said == []  # one of four is below 0.3
    _evaluate(health, step=30, answers=_answers((True, False), (True, True), (True, True), (False, True)))
    assert _codes(said) == ["HEA007"]
    assert "2 of 4 probe answers repeat themselves" in said[0]
    _evaluate(health, step=40, answers=_answers((False, True), (False, False), (False, False), (False, True)))
    assert _codes(said) == ["HEA007", "HEA008"]
    assert "2 of 4 probe answers do not end any more within 12 tokens" in said[1]


def test_a_code_is_said_once_and_counted() -> None:
    health, said = _health()
    for step, fall in ((10, -0.3), (20, -0.5), (30, 0.0), (40, -0.4)):
        _evaluate(health, step=step, logps_chosen_delta=fall, logps_rejected_delta=-0.9)
    assert _codes(said) == ["HEA001"]
    [alert] = health.alerts
    assert (alert.step, alert.last_step, alert.times, alert.value, alert.worst) == (10, 40, 3, 0.3, 0.5)


def test_null_switches_a_watch_off_and_another_threshold_moves_it() -> None:
    health, said = _health(chosen_fall=None, both_fall=3.0)
    _evaluate(health, logps_chosen_delta=-2.0, logps_rejected_delta=-2.5)
    assert said == []


def test_what_is_remembered_survives_a_restart_bit_for_bit() -> None:
    draws = [0.1 * (1 + (7 * step) % 11) for step in range(1, 61)]
    draws[40] = 77.7
    unbroken, said = _health(gradient_spike=15.0)
    for cut in (0, 20, 40, 41, 59):
        first, said_first = _health(gradient_spike=15.0)
        second, said_second = _health(gradient_spike=15.0)
        for step, norm in enumerate(draws[:cut], start=1):
            _steps(first, first=step, count=1, grad_norm=norm, lost=norm / 80)
        second.restore(json.loads(json.dumps(first.as_json())), recipe_changed=False)
        for step, norm in enumerate(draws[cut:], start=cut + 1):
            _steps(second, first=step, count=1, grad_norm=norm, lost=norm / 80)
        if cut == 0:
            for step, norm in enumerate(draws, start=1):
                _steps(unbroken, first=step, count=1, grad_norm=norm, lost=norm / 80)
        assert second.as_json() == unbroken.as_json()
        assert second.alerts == unbroken.alerts
        assert said_first + said_second == said
    assert _codes(said) == ["HEA004"]


def test_a_run_stops_for_what_the_recipe_names_and_again_unless_that_changed() -> None:
    health, said = _health(stop_on=["HEA001"])
    saved: list[str] = []

    def save() -> None:
        saved.append("saved")

    _evaluate(health, logps_chosen_delta=-1.5, logps_rejected_delta=-1.25)
    health.require_well(save, "simpo train run.yaml --resume")  # HEA002 only warns
    assert saved == []
    _evaluate(health, step=60, logps_chosen_delta=-0.3, logps_rejected_delta=-0.5)
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
    _evaluate(other, step=70, logps_chosen_delta=-0.2, logps_rejected_delta=-0.5)
    other.require_well(save, "")
    _evaluate(other, step=80, logps_chosen_delta=-0.26, logps_rejected_delta=-0.5)
    with pytest.raises(UnhealthyError, match="step 80"):
        other.require_well(save, "")
    assert said_after == []  # it has been said before
