"""Before and after on the screen, at every width, with the worst of texts; and the first sentence of a page."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from rich.cells import cell_len

from simpo_cli.formatting import Cell
from simpo_cli.report.console import make_console
from simpo_cli.report.live import print_header, print_outcome
from simpo_cli.report.run_files import read_run
from simpo_cli.report.verdict import alerts, tone, verdict
from simpo_cli.run.events import Note, RunHeader, RunOutcome
from simpo_cli.table import Row, Table
from tests.report.made_run import eval_row, measured, outcome, write_run


def printed(outcome: RunOutcome, width: int) -> str:
    stream = io.StringIO()
    print_outcome(make_console(stream, width=width), outcome)
    return stream.getvalue()


def _table(*rows: tuple[str, str, str, str]) -> Table:
    return Table(("before", "after"), [Row(label, (Cell(one), Cell(two)), remark) for label, one, two, remark in rows])


def test_a_remark_that_does_not_fit_goes_under_the_table(outcome: RunOutcome) -> None:
    assert printed(outcome, 70).startswith("""
                    before                  after
held-out accuracy   51.2 % (46.8 to 55.6)   96.4 % (94.4 to 97.7)
length-balanced     50.9 %                  95.8 %
mean margin         0.02                    3.11
  n = 500 pairs, one seed
""")


def test_several_remarks_under_a_table_name_their_rows(outcome: RunOutcome) -> None:
    rows = (("accuracy", "1", "2", "n = 500 pairs"), ("gain", "", "4", ""), ("margin", "3", "4", "in nats per token"))
    assert printed(replace(outcome, table=_table(*rows)), 36).startswith("""
           before   after
accuracy   1        2
gain                4
margin     3        4

accuracy   n = 500 pairs
margin     in nats per token
""")


def test_a_stacked_table_leaves_out_what_is_empty(outcome: RunOutcome) -> None:
    table = _table(("change kept by the save", "", "99.1 % of all the changes made", ""))
    assert printed(replace(outcome, table=table), 40).startswith("""
change kept by the save
    after   99.1 % of all the changes made
""")


def test_a_table_too_wide_for_columns_is_stacked(outcome: RunOutcome) -> None:
    assert printed(outcome, 40).startswith("""
held-out accuracy
    before  51.2 % (46.8 to 55.6)
    after   96.4 % (94.4 to 97.7)
    n = 500 pairs, one seed
length-balanced
    before  50.9 %
    after   95.8 %
""")


def test_no_table_and_no_answers_leave_where_and_next(outcome: RunOutcome) -> None:
    bare = replace(outcome, table=_table(), answers=(), next_commands=())
    assert printed(bare, 80).split() == ["model", "runs/demo/model"]


def test_paths_and_commands_stay_whole_on_a_narrow_terminal(outcome: RunOutcome) -> None:
    path = "/home/somebody/projects/" + "long/" * 20 + "model"
    command = "simpo eval runs/demo --json " + "data.eval=" + "x" * 60
    text = printed(replace(outcome, model_dir=path, next_commands=((command, "what it does"),)), 40)
    assert f"model   {path}\n" in text
    assert f"next    {command}\n          what it does\n" in text


def test_the_report_is_named_when_there_is_one(outcome: RunOutcome, tmp_path: Path) -> None:
    here = replace(outcome, run_dir=str(tmp_path))
    assert "report  " not in printed(here, 200)
    (tmp_path / "report.html").write_text("<html>")
    assert f"report  {tmp_path}/report.html\n" in printed(here, 200)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_answers_are_wrapped_escaped_and_cut(width: int, outcome: RunOutcome) -> None:
    answers = (
        ("[bold]How?[/bold] \x1b[2J\n" + "why " * 100, "中文" * 200, "1. Open\n\n2.\tChoose \u202eabc"),
        ("", "", "w" * 500),
    )
    text = printed(replace(outcome, answers=answers), width)
    answered = text[text.index('"') : text.index("model ")]
    assert all(cell_len(line) <= width for line in answered.splitlines())
    assert answered.startswith(r'"[bold]How?[/bold] \x1b[2J\nwhy')
    assert "  after   1. Open\n          2.    Choose \\u202eabc\n" in answered
    assert "  before  (empty)\n" in answered
    assert "more characters" in answered
    assert len(answered.splitlines()) < 30


def test_a_header_is_wrapped_under_its_own_text_and_says_what_it_was_given() -> None:
    stream = io.StringIO()
    lines = (Note("data", "one two three four five six seven"), Note("", "LEN001 [x]"), Note("held-out set", "\x1b[1m"))
    print_header(make_console(stream, width=40), RunHeader("a · title", lines))
    assert (
        stream.getvalue()
        == r"""a · title
data         one two three four five six
             seven
             LEN001 [x]
held-out set \x1b[1m
"""
    )


def test_an_answer_that_is_the_same_before_and_after_is_shown_once_and_counted(outcome: RunOutcome) -> None:
    same = replace(outcome, answers=(("A?", "So.", "So."), ("B?", "No.", "Yes."), ("C?", "Hm.", "Hm.")))
    text = printed(same, 80)
    assert '"A?"\n  both    So.\n' in text
    assert '"B?"\n  before  No.\n  after   Yes.\n' in text
    assert "\n2 of 3 answers are the same before and after.\n" in text
    assert "same before and after" not in printed(outcome, 80)


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
