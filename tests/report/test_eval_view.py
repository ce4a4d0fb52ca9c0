"""`simpo eval` for a person: no percentage without its interval and its n."""

import copy
import io
import re
from typing import Any

import pytest

from simpo_cli.report.console import make_console
from simpo_cli.report.eval_view import print_eval
from simpo_cli.statistics import mean, proportion


def measured(value: float, low: float | None, high: float | None, n: int = 500) -> dict[str, Any]:
    return {"value": value, "ci": [low, high], "n": n}


RESULT: dict[str, Any] = {
    "schema_version": 1,
    "model": "runs/demo/model",
    "data": "builtin:guide, held out",
    "pairs": 500,
    "prompts": 480,
    "loss": measured(0.212, 0.19, 0.23),
    "accuracy": measured(0.964, 0.944, 0.977),
    "ties": 3,
    "margin": measured(3.11, 3.0, 3.2),
    "target_reached": measured(0.91, 0.88, 0.93),
    "logps/chosen": measured(-1.2, -1.25, -1.15),
    "logps/rejected": measured(-2.7, -2.9, -2.5),
    "length": {
        "chosen_longer": measured(0.95, 0.89, 0.98, 100),
        "chosen_shorter": measured(0.97, 0.94, 0.98, 400),
        "balanced": measured(0.96, 0.94, 0.97),
        "spearman": 0.03,
    },
    "baselines": {"longer_wins": measured(0.2, 0.165, 0.236)},
}
COMPARISON = {
    "baseline": {"model": "builtin:guide", "accuracy": measured(0.512, 0.468, 0.556)},
    "difference": {
        "accuracy": measured(0.452, 0.401, 0.503),
        "p_value": 1e-9,
        "test": "mcnemar-exact",
        "wins": 1230,
        "losses": 4,
        "ties": 266,
    },
}


def printed(result: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    print_eval(make_console(stream, width=width), result)
    return stream.getvalue()


def test_the_whole_screen() -> None:
    assert (
        printed({**RESULT, **COMPARISON})
        == """runs/demo/model
on builtin:guide, held out

                                value      95 % interval     n
accuracy                       96.4 %       94.4 to 97.7   500
  chosen is longer             95.0 %       89.0 to 98.0   100
  chosen is shorter            97.0 %       94.0 to 98.0   400
  length-balanced              96.0 %       94.0 to 97.0   500
to beat
  a coin                       50.0 %
  the longer wins              20.0 %       16.5 to 23.6   500
loss                            0.212     0.190 to 0.230   500
margin                           3.11       3.00 to 3.20   500
margin past gamma              91.0 %       88.0 to 93.0   500
chosen, nats/token             -1.200   -1.250 to -1.150   500
rejected, nats/token           -2.700   -2.900 to -2.500   500
reward with length, Spearman     0.03
against builtin:guide
  its accuracy                 51.2 %       46.8 to 55.6   500
  difference, points            +45.2     +40.1 to +50.3   500

500 pairs of 480 prompts; intervals are by prompt.
Equal rewards: 3 pairs, counted one half.
Difference: p < 0.001 (exact McNemar test); 1,230 pairs won, 4 pairs lost, 266 pairs the same.
"""
    )


@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_measured_percentage_is_bare_at_any_width(width: int) -> None:
    text = printed({**RESULT, **COMPARISON}, width)
    assert all(len(line) <= width for line in text.splitlines())
    for line in text.splitlines():
        if re.search(r"\d %", line) and "50.0 %" not in line and "95 % interval" not in line:
            assert re.search(r"[\d.]+ % +\(?[\d.]+ to [\d.]+,? +(n )?\d+\)?$", line), line


def test_a_narrow_terminal_gets_two_lines_a_number() -> None:
    assert (
        "accuracy\n  96.4 % (94.4 to 97.7, n 500)\n  chosen is longer\n    95.0 % (89.0 to 98.0, n 100)\n"
        in printed(RESULT, 40)
    )


def test_few_prompts_are_called_few() -> None:
    assert "Only 29 prompts: too few" in printed({**RESULT, "prompts": 29})
    assert "too few" not in printed({**RESULT, "prompts": 30})
    without = {name: value for name, value in RESULT.items() if name != "prompts"}
    assert "Only 12 prompts" in printed({**without, "pairs": 12})


def test_what_could_not_be_measured_is_said_and_not_guessed() -> None:
    result = copy.deepcopy(RESULT)
    result["length"] = {"chosen_longer": None, "chosen_shorter": None, "balanced": None, "spearman": None}
    result["margin"] = measured(1.0, None, None, 1)
    result["loss"] = {"value": None, "ci": [None, None], "n": 500}
    result["baselines"] = {"longer_wins": None}
    text = printed(result)
    assert re.search(r"chosen is longer +too few\n", text)
    assert re.search(r"the longer wins +too few\n", text)
    assert re.search(r"margin +1\.00 +unknown +1\n", text)
    assert re.search(r"loss +nan +500\n", text)
    assert "Spearman" not in text
    assert "Too few: under 10 pairs" in text


def test_only_what_is_required_is_enough() -> None:
    required = {name: value for name, value in RESULT.items() if name not in ("length", "baselines", "ties", "prompts")}
    text = printed({**required, "loss": 0.3, "baseline": None})
    assert re.search(r"loss +0\.300\n", text)


def test_what_the_statistics_give_is_what_the_view_takes() -> None:
    result = copy.deepcopy(RESULT)
    result["accuracy"] = proportion([1, 0, 1, 1]).as_json()
    result["margin"] = mean([0.5], ["p"]).as_json()
    assert "75.0 %       30.1 to 95.4     4" in printed(result)


def test_names_of_others_are_escaped_and_ascii_streams_served() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    print_eval(make_console(stream, width=60), {**RESULT, "model": "\x1b[2J[red]modèle", "data": "données"})
    assert written.getvalue().decode("ascii").startswith("\\x1b[2J[red]mod\\xe8le\non donn\\xe9es\n")
