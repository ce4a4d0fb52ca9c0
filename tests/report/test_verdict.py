"""The first sentence of a run's page, and what to know beside it."""

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from simpo_cli.report.run_files import read_run
from simpo_cli.report.verdict import alerts, tone, verdict
from tests.report.made_run import checked, eval_row, measured, outcome, write_run


def _said(path: Path, result: dict[str, Any] | None, **run: Any) -> tuple[str, str]:
    files = read_run(write_run(path / "run", outcome=result, **run))
    return verdict(files), tone(files)


def test_a_rise(tmp_path: Path) -> None:
    said = _said(tmp_path, outcome((0.061, 0.04, 0.082), 0.00002, balanced=(0.022, -0.001, 0.045)))
    assert said == (
        "Held-out accuracy rose 6.1 points, from 50.0 % to 56.1 % (95 % CI of the difference +4.0 to +8.2, n = 40 "
        "pairs of 40 prompts, p < 0.0001, exact McNemar test); length-balanced +2.2 (-0.1 to +4.5): not "
        "distinguishable from zero. One seed.",
        "good",
    )


def test_a_fall(tmp_path: Path) -> None:
    said, colour = _said(tmp_path, outcome((-0.2, -0.3, -0.1), 0.003, balanced=(-0.25, -0.4, -0.1)))
    assert said.startswith("Held-out accuracy fell 20.0 points, from 50.0 % to 30.0 % (95 % CI of the difference -30.0")
    assert "p = 0.003" in said
    assert said.endswith("length-balanced -25.0 (-40.0 to -10.0). One seed.")
    assert "not distinguishable" not in said
    assert colour == "error"


@pytest.mark.parametrize(
    ("gain", "p_value"), [((0.02, -0.01, 0.05), 0.3), ((0.0, -0.05, 0.05), 1.0), ((0.02, 0.001, 0.04), 0.06)]
)
def test_nothing_that_can_be_told(gain: tuple[float, float, float], p_value: float, tmp_path: Path) -> None:
    said, colour = _said(tmp_path, outcome(gain, p_value))
    assert said.startswith("Held-out accuracy went from 50.0 %")
    assert "exact McNemar test): not distinguishable from zero; length-balanced: too few pairs" in said
    assert "rose" not in said
    assert colour == "warning"


def test_what_a_rule_says_of_answers(tmp_path: Path) -> None:
    rise = checked(0.25, 0.75, (0.35, 0.62), 0.00002)
    said, colour = _said(tmp_path / "up", outcome((0.3, 0.2, 0.4), 0.001, checked=rise))
    assert said.endswith(
        "Wholly right answers rose 50.0 points, from 25.0 % to 75.0 % (95 % CI of the difference +35.0 to +62.0, n = "
        "40 prompts, p < 0.0001, exact McNemar test); right parts of answers +50.0 (+35.0 to +62.0). One seed."
    )
    assert colour == "good"
    same = checked(0.25, 0.3, (-0.04, 0.14), 0.4)
    said, colour = _said(tmp_path / "same", outcome((0.3, 0.2, 0.4), 0.001, checked=same))
    assert "Wholly right answers went from 25.0 % to 30.0 % (95 % CI" in said
    assert "exact McNemar test): not distinguishable from zero; right parts" in said
    assert colour == "good"


def test_a_rise_with_worse_answers_is_not_called_good(tmp_path: Path) -> None:
    fall = checked(0.5, 0.2, (-0.45, -0.12), 0.002)
    said, colour = _said(tmp_path, outcome((0.3, 0.2, 0.4), 0.001, checked=fall))
    assert said.startswith("Held-out accuracy rose 30.0 points")
    assert "Wholly right answers fell 30.0 points, from 50.0 % to 20.0 %" in said
    assert colour == "warning"


def test_too_few_prompts_and_rules_that_do_as_well(tmp_path: Path) -> None:
    result = outcome((0.3, 0.1, 0.5), 0.01, prompts=12, export={"kept_share": 0.01, "rounded_back_share": 0.99})
    result["after"]["baselines"] = {"longer_wins": measured(0.78, 0.7, 0.85), "surface": measured(0.6, 0.5, 0.7)}
    evals = [eval_row(0, 0.5), eval_row(4, 0.8, chosen_delta=-0.25)]
    said = alerts(read_run(write_run(tmp_path / "run", outcome=result, evals=evals)))
    assert said[0] == "Only 12 prompts: too few to conclude much, and intervals are rough."
    assert said[1] == (
        "The model does not clearly beat this rule: the longer response wins, 78.0 % (70.0 to 85.0) of 40 pairs."
    )
    assert said[2].startswith("The saved model keeps 1.0 % of the change")
    assert said[3].startswith("The chosen responses became less likely: -0.250 nats a token on the 40 pairs")
    assert len(said) == 4


def test_a_good_run_has_no_alerts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", outcome=outcome((0.3, 0.1, 0.5), 0.01), evals=[eval_row(4, 0.8)])
    assert alerts(read_run(run)) == []


def test_without_held_out_pairs_nothing_is_claimed(tmp_path: Path) -> None:
    said, colour = _said(tmp_path, {"steps": 4, "seconds": 1.0, "answers": []})
    assert said == (
        "No pairs were held out, so nothing says whether the model got better. The loss on the training pairs of a "
        "step went from 1.000 to 0.250. One seed."
    )
    assert colour == "warning"


def test_runs_that_ended_early(tmp_path: Path) -> None:
    evals = [eval_row(0, 0.5), eval_row(2, 0.625)]
    so_far = " Held-out accuracy after step 2: 62.5 % (95 % CI 52.5 to 72.5, n = 40 pairs); before 50.0 %."
    failed = {"error": "gradient is\nnot finite at step 4"}
    assert _said(tmp_path / "a", failed, status="failed", steps=3, evals=evals) == (
        f"The run failed after step 3 of 4: gradient is not finite at step 4.{so_far}",
        "error",
    )
    assert _said(tmp_path / "b", None, status="stopped", steps=3, evals=evals) == (
        f"The run was stopped after step 3 of 4, with everything saved.{so_far}",
        "warning",
    )
    assert _said(tmp_path / "c", None, status="running", steps=3, evals=evals) == (
        f"The process ended after step 3 of 4 without saying why.{so_far}",
        "error",
    )


def test_a_run_that_trains(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", status="running", steps=0, evals=[eval_row(0, 0.5)])
    with FileLock(path / ".lock"):
        run = read_run(path)
    assert verdict(run) == (
        "Still training: step 0 of 4. Held-out accuracy of the start model is 50.0 % (95 % CI 40.0 to 60.0, n = 40 "
        "pairs). The tests come at the end."
    )
    assert tone(run) == "warning"
    assert read_run(path).state == "lost"


def _alert(code: str, **more: Any) -> dict[str, Any]:
    known = {"sentence": "chosen responses fell by 0.24 nats/token", "remedy": "lower train.learning_rate"}
    numbers = {
        "key": "chosen_fall",
        "limit": 0.2,
        "step": 75,
        "value": 0.24,
        "last_step": 75,
        "times": 1,
        "worst": 0.24,
    }
    return {"code": code, **known, **numbers, **more}


def test_what_the_run_saw_of_its_health_comes_first_and_once(tmp_path: Path) -> None:
    seen = [_alert("HEA001", times=3, last_step=125)]
    run = write_run(tmp_path / "run", evals=[eval_row(0, 0.5), eval_row(4, 0.6, chosen_delta=-0.24)], health=seen)
    assert alerts(read_run(run)) == [
        "HEA001 from step 75: chosen responses fell by 0.24 nats/token (health.chosen_fall 0.2). Seen 3 times up to "
        "step 125. Lower train.learning_rate."
    ]


def test_a_run_that_stopped_for_its_health_says_why(tmp_path: Path) -> None:
    error = {"error": "stopped by health.stop_on, with everything saved: HEA001 step 2: chosen responses fell"}
    run = read_run(write_run(tmp_path / "run", status="stopped", outcome=error))
    assert verdict(run).startswith(
        "The run ended early, after step 4 of 4: stopped by health.stop_on, with everything "
    )
    assert "HEA001 step 2: chosen responses fell." in verdict(run)
