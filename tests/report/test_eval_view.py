"""`simpo eval` for a person: no percentage without its interval and its n."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import ExitCode
from simpo_cli.evaluate.checked import CheckedAnswer, compare_checked
from simpo_cli.evaluate.generate.measures import answers_document
from simpo_cli.report.eval_view import print_answers, print_eval
from simpo_cli.statistics import mean, proportion
from tests.cli.test_help import imported_by
from tests.report import made_run
from tests.report.made_answers import fill_in, likes_trained, write_answers
from tests.report.screen import printed


def measured(value: float, low: float | None, high: float | None, n: int = 500) -> dict[str, Any]:
    return made_run.measured(value, low, high, n)


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
    "margin_median": measured(3.0, 2.9, 3.1),
    "target_reached": measured(0.91, 0.88, 0.93),
    "logps/chosen": measured(-1.2, -1.25, -1.15),
    "logps/rejected": measured(-2.7, -2.9, -2.5),
    "length": {
        "chosen_longer": measured(0.95, 0.89, 0.98, 100),
        "chosen_shorter": measured(0.97, 0.94, 0.98, 400),
        "balanced": measured(0.96, 0.94, 0.97),
        "buckets": [
            {"from": -40, "to": -3, "pairs": 400, "accuracy": measured(0.97, 0.94, 0.98, 400)},
            {"from": 0, "to": 0, "pairs": 4, "accuracy": None},
            {"from": 1, "to": 25, "pairs": 96, "accuracy": measured(0.95, 0.89, 0.98, 96)},
        ],
        "spearman": measured(0.03, -0.05, 0.11),
        "spearman_within": measured(-0.01, -0.1, 0.08),
    },
    "baselines": {"longer_wins": measured(0.2, 0.165, 0.236), "surface": None},
    "calibration": {
        "brier": measured(0.045, 0.036, 0.054),
        "ece": measured(0.112, 0.096, 0.128),
        "ece_by_chance": 0.036,
        "bins": [{"from": 0.9, "to": 0.95, "confidence": 0.93, "accuracy": measured(0.964, 0.944, 0.977)}],
    },
    "noise": {"pairs": 256, "packing": "padded rows", "margin": 1.3e-6, "largest": 3e-7, "accuracy": 0.0},
    "baseline": None,
    "difference": None,
    "not_compared": None,
    "save": None,
    "slices": {},
}
COMPARISON = {
    "baseline": {"model": "builtin:guide", "accuracy": measured(0.512, 0.468, 0.556)},
    "difference": {
        "accuracy": measured(0.452, 0.401, 0.503),
        "p_value": 1e-9,
        "test": "mcnemar-exact",
        "p_value_holm": 1e-9,
        "wins": 230,
        "losses": 4,
        "ties": 266,
        "smallest_effect": 0.066,
        "length_balanced": measured(0.4, 0.35, 0.45),
        "margin": measured(1.97, 1.87, 2.07),
        "margin_p_value": 0.0321,
        "margin_test": "wilcoxon",
        "loss": measured(-0.718, -0.758, -0.678),
        "logps/chosen_delta": measured(-0.084, -0.09, -0.079),
        "logps/rejected_delta": measured(-0.212, -0.22, -0.204),
        "chosen_fell": measured(0.9, 0.87, 0.92),
        "same_tokens": True,
        "is_noise": {"accuracy": False, "margin": False},
    },
}
SLICES = {
    "source": [
        {
            "value": "[bold]web",
            "pairs": 460,
            "accuracy": measured(0.96, 0.94, 0.97, 460),
            "baseline_accuracy": measured(0.5, 0.45, 0.55, 460),
            "difference": measured(0.46, 0.41, 0.5, 460),
            "p_value": 0.01,
            "p_value_holm": 0.02,
        },
        {
            "value": None,
            "pairs": 4,
            "accuracy": None,
            "baseline_accuracy": None,
            "difference": None,
            "p_value": None,
            "p_value_holm": None,
        },
    ]
}


def screen(result: dict[str, Any], width: int = 100) -> str:
    return printed(print_eval, result, width=width)


def test_the_whole_screen() -> None:
    assert (
        screen({**RESULT, **COMPARISON, "slices": SLICES})
        == """runs/demo/model
on builtin:guide, held out

Held-out accuracy rose 45.2 points, from 51.2 % to 96.4 % (95 % CI of the difference +40.1 to +50.3,
n = 500 pairs of 480 prompts, p < 0.0001, exact McNemar test); length-balanced +40.0 (+35.0 to
+45.0).

                                          value      95 % interval     n
accuracy                                 96.4 %       94.4 to 97.7   500
  chosen is longer                       95.0 %       89.0 to 98.0   100
  chosen is shorter                      97.0 %       94.0 to 98.0   400
  length-balanced                        96.0 %       94.0 to 97.0   500
to beat
  random baseline                        50.0 %
  the longer response wins               20.0 %       16.5 to 23.6   500
mean margin                                3.11       3.00 to 3.20   500
  median                                   3.00       2.90 to 3.10   500
  past gamma                             91.0 %       88.0 to 93.0   500
loss                                      0.212     0.190 to 0.230   500
chosen log-prob, nats/token              -1.200   -1.250 to -1.150   500
rejected log-prob, nats/token            -2.700   -2.900 to -2.500   500
Spearman with length                       0.03      -0.05 to 0.11   500
  within pairs                            -0.01      -0.10 to 0.08   500
accuracy by chosen - rejected, tokens
  -40 to -3                              97.0 %       94.0 to 98.0   400
  0                                     too few                        4
  +1 to +25                              95.0 %       89.0 to 98.0    96
calibration error                         0.112     0.096 to 0.128   500
  Brier score                             0.045     0.036 to 0.054   500
against builtin:guide
  its accuracy                           51.2 %       46.8 to 55.6   500
  difference, points                      +45.2     +40.1 to +50.3   500
    length-balanced                       +40.0     +35.0 to +45.0   500
  mean margin                             +1.97     +1.87 to +2.07   500
  loss                                   -0.718   -0.758 to -0.678   500
  chosen log-prob, nats/token            -0.084   -0.090 to -0.079   500
  rejected log-prob, nats/token          -0.212   -0.220 to -0.204   500
  chosen became less likely              90.0 %       87.0 to 92.0   500
by source
  [bold]web                              96.0 %       94.0 to 97.0   460
    difference, points, Holm p = 0.02     +46.0     +41.0 to +50.0   460
  (none)                                too few                        4

500 pairs of 480 prompts; intervals are by prompt.
Equal rewards: 3 pairs, counted one half.
Difference: p < 0.0001 (exact McNemar test); 230 pairs won, 4 pairs lost, 266 pairs the same.
Margin: p = 0.032 (Wilcoxon's signed-rank test).
A true difference under 6.6 points would often be missed with so many pairs.
Calibration error: a model whose confidence is right shows about 0.036 on so many pairs.
Arithmetic: scored again as padded rows, the baseline moves the margins of 256 pairs by 1e-06 (root
mean square), and 0 of them change sides.
"""
    )


@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_measured_percentage_is_bare_at_any_width(width: int) -> None:
    text = screen({**RESULT, **COMPARISON, "slices": SLICES}, width)
    assert all(len(line) <= width for line in text.splitlines())
    for line in text[text.index("\naccuracy") :].splitlines():
        if re.search(r"\d %", line) and "50.0 %" not in line and "95 % interval" not in line:
            assert re.search(r"[\d.]+ % +\(?[\d.]+ to [\d.]+,? +(n )?\d+\)?$", line), line


def test_a_narrow_terminal_gets_two_lines_a_number() -> None:
    assert "accuracy\n  96.4 % (94.4 to 97.7, n 500)\n  chosen is longer\n    95.0 % (89.0 to 98.0, n 100)\n" in screen(
        RESULT, 40
    )


def test_few_prompts_are_called_few() -> None:
    assert "Only 29 prompts: too few" in screen({**RESULT, "prompts": 29})
    assert "too few to conclude" not in screen({**RESULT, "prompts": 30})
    assert "Only 480 prompts (they count as 12: a few of them" in screen({**RESULT, "effective_prompts": 12.0})


def test_what_could_not_be_measured_is_said_and_not_guessed() -> None:
    result = copy.deepcopy(RESULT)
    result["length"] = {"chosen_longer": None, "chosen_shorter": None, "balanced": None, "spearman": None}
    result["length"]["buckets"] = []
    result["margin"] = measured(1.0, None, None, 1)
    result["loss"] = {"value": None, "ci": [None, None], "n": 500}
    result["baselines"] = {"longer_wins": None}
    text = screen(result)
    assert re.search(r"chosen is longer +too few\n", text)
    assert re.search(r"the longer response wins +too few\n", text)
    assert re.search(r"mean margin +1\.00 +no interval +1\n", text)
    assert re.search(r"loss +nan +500\n", text)
    assert "Spearman" not in text
    assert "Too few: under 10 pairs" in text


def test_what_the_statistics_give_is_what_the_view_takes() -> None:
    result = copy.deepcopy(RESULT)
    result["accuracy"] = proportion([1, 0, 1, 1]).as_json()
    result["margin"] = mean([0.5], ["p"]).as_json()
    assert "75.0 %       30.1 to 95.4     4" in screen(result)


def test_noise_and_other_tokens_are_called_that() -> None:
    difference = {**COMPARISON["difference"], "is_noise": {"accuracy": True, "margin": True}}
    assert "The difference in accuracy and in margin is no more than that: noise." in screen(
        {**RESULT, **COMPARISON, "difference": difference}, 200
    )
    rewards = ("margin", "margin_p_value", "margin_test", "loss", "logps/chosen_delta", "logps/rejected_delta")
    difference = {**COMPARISON["difference"], **dict.fromkeys((*rewards, "chosen_fell")), "same_tokens": False}
    text = screen({**RESULT, **COMPARISON, "difference": difference}, 300)
    assert "The two score other tokens" in text
    assert "became less likely" not in text


def test_a_rule_without_a_model_that_does_as_well_is_named() -> None:
    text = screen({**RESULT, "baselines": {"longer_wins": measured(0.95, 0.93, 0.97), "surface": None}}, 200)
    assert "does not clearly beat this rule: the longer response wins, 95.0 % (93.0 to 97.0) of 500 pairs." in text


def test_what_the_save_cost_is_shown() -> None:
    save = {
        "checkpoint": "runs/demo/checkpoints/step-00000062",
        "accuracy": measured(0.97, 0.95, 0.98),
        "difference": {"accuracy": measured(-0.006, -0.02, 0.008), "margin": measured(-0.004, -0.006, -0.002)},
    }
    text = screen({**RESULT, "save": save})
    assert re.search(r"what the save cost, against float32\n  difference, points +-0\.6 +-2\.0 to \+0\.8 +500\n", text)
    assert re.search(r"  mean margin +-0\.004 +-0\.006 to -0\.002 +500\n", text)


def together() -> dict[str, Any]:
    """A document of two models, and one that failed."""
    other = {**copy.deepcopy(RESULT), **COMPARISON, "model": "runs/other/model"}
    alone = {**copy.deepcopy(RESULT), "baseline": None, "difference": None}
    return {
        "schema_version": 2,
        "evaluations": [alone, other],
        "comparisons": [
            {
                "models": ["runs/demo/model", "runs/other/model"],
                "pairs": 500,
                "swapped": 0,
                "recipes": [{"key": "train.learning_rate", "values": [1e-6, 3e-6]}],
                "difference": {**COMPARISON["difference"], "same_tokens": True, "same_rewards": True},
            },
            {
                "models": ["runs/other/model", "runs/demo/model"],
                "pairs": 0,
                "swapped": 3,
                "recipes": [],
                "difference": None,
            },
        ],
        "seeds": [
            {
                "models": ["runs/demo/model", "runs/other/model"],
                "seeds": [1, 2],
                "accuracy": measured(0.96, 0.9, 1.02, 2),
                "length_balanced": None,
                "margin": measured(3.0, 2.5, 3.5, 2),
                "loss": measured(0.2, 0.1, 0.3, 2),
                "difference": measured(0.45, 0.4, 0.5, 2),
                "length_balanced_difference": None,
            }
        ],
        "failed": [{"model": "runs/x", "problem": "cannot be read.", "fix": "", "where": "", "exit_code": 2}],
    }


@pytest.mark.parametrize("width", [40, 80, 120])
def test_several_models_have_a_letter_each_and_are_compared(width: int) -> None:
    text = screen(together(), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.startswith("A  runs/demo/model\nB  runs/other/model\n")
    flat = " ".join(text.split())
    assert "B less A, on the 500 pairs that both have" in flat
    assert "train.learning_rate 1e-06 -> 3e-06" in flat
    assert "There is no such pair, so they cannot be compared." in flat
    assert flat.count("3 pairs have chosen and rejected the other way round in the two") == 1
    assert "their recipes are equal" in flat
    assert "A (seed 1), B (seed 2)" in flat
    assert "not scored runs/x: cannot be read." in flat


def test_names_of_others_are_escaped_and_ascii_streams_served() -> None:
    hostile = {**RESULT, "model": "\x1b[2J[red]modèle", "data": "données"}
    text = printed(print_eval, hostile, width=60, encoding="ascii")
    assert text.startswith("\\x1b[2J[red]mod\\xe8le\non donn\\xe9es\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_answers(tmp_path / "answers").path


def shown(folder: Path, width: int) -> list[str]:
    return printed(print_answers, answers_document(folder), width=width).splitlines()


@pytest.mark.parametrize("width", [100, 80])
def test_a_line_a_measure(folder: Path, width: int) -> None:
    lines = shown(folder, width)
    assert lines[0] == "answers of mine and smol"
    assert "40 prompts of held.jsonl" in lines[1]
    (ends, sampled_ends) = [line.split() for line in lines if line.startswith("  no end token")]
    assert " ".join(ends) == "no end token 0.0 % (0.0 to 8.8) 5.0 % (1.4 to 16.5) +5.0 (-3.5 to +13.0)"
    assert ends == sampled_ends
    (tokens, _) = [" ".join(line.split()) for line in lines if line.startswith("  tokens")]
    assert tokens.startswith("tokens 14.0 (13.5 to 14.5) 22.0 (21.5 to 22.5) × 1.57 (1.55 to 1.59)")
    assert all(len(line) <= width for line in lines if str(folder.parent) not in line)
    assert "Left out: 3 asked already." in lines
    assert any(line.startswith("to judge") for line in lines)


def test_answers_that_a_rule_checks_have_two_lines_more(folder: Path) -> None:
    document = answers_document(folder)
    assert document["measures"]["greedy"]["checked"] is None
    right, wrong = CheckedAnswer(True, 1.0, True), CheckedAnswer(False, 0.25, True)
    sides = {"base": [right] * 10 + [wrong] * 28, "trained": [right] * 30 + [wrong] * 8}
    document["measures"]["greedy"]["checked"] = compare_checked(sides)
    lines = [" ".join(line.split()) for line in printed(print_answers, document, width=100).splitlines()]
    exact = lines.index("wholly right answers 26.3 % (15.0 to 42.0) 78.9 % (63.7 to 88.9) +52.6 (+33.0 to +67.0)")
    assert lines[exact + 1].startswith("right parts of answers 44.7 % (")
    assert lines.count(lines[exact]) == 1  # not of the sampled ones
    assert "Wholly right answers and right parts, to 38 of the 40 prompts: as builtin:guide knows them." in lines


def test_narrow_terminals_get_a_line_a_model(folder: Path) -> None:
    lines = shown(folder, 50)
    place = lines.index("  no end token")
    assert lines[place + 1 : place + 4] == [
        "    base        0.0 % (0.0 to 8.8)",
        "    trained     5.0 % (1.4 to 16.5)",
        "    difference  +5.0 (-3.5 to +13.0)",
    ]


def test_what_people_said_is_shown_once_they_did(folder: Path) -> None:
    fill_in(folder, likes_trained, 30)
    lines = shown(folder, 80)
    place = lines.index("judged by people")
    assert lines[place + 1] == "  trained wins   100.0 % (88.6 to 100.0, n 30)"
    assert lines[place + 2] == "30 wins, 0 ties, 0 losses, 10 open; a tie counts one half."


def test_a_folder_is_shown_without_torch(folder: Path) -> None:
    code, imported = imported_by("eval", "answers", cwd=folder.parent)
    assert code == ExitCode.DONE
    assert imported.isdisjoint({"torch", "transformers", "datasets", "accelerate", "peft", "openai"})


@pytest.mark.parametrize("width", [100, 60])
def test_three_answers_side_by_side(tmp_path: Path, width: int) -> None:
    lines = shown(write_answers(tmp_path / "answers", said="{side} {last} " + "word " * 20).path, width)
    quoted = [place for place, line in enumerate(lines) if line.startswith('"')]
    assert len(quoted) == 3
    below = lines[quoted[0] + 1 : quoted[1] - 1]
    if width == 100:
        assert below[0].split() == ["base", "trained"]
        assert below[1].startswith("  base 11 word")
        assert "   trained 19 word" in below[1]
    else:
        assert below[0].startswith("  base     base 11 word")
        assert any(line.startswith("  trained  trained 19 word") for line in below)
    assert all(len(line) <= width for line in below)


def test_an_answer_that_did_not_change_is_shown_once(tmp_path: Path) -> None:
    lines = shown(write_answers(tmp_path / "answers", said="the same").path, 100)
    assert [line for line in lines if line.startswith("  both")] == ["  both     the same"] * 3
