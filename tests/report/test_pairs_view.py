"""Rounds for a person: on an 80-column terminal and as a page, with intervals, and why they stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.pairs.rounds import read_rounds, require_good_end
from simpo_cli.report.pairs_view import conclusions, print_rounds
from simpo_cli.report.rounds_page import rounds_page, write_rounds_report
from tests.report.made_run import measured
from tests.report.screen import printed

_PAIRS = {
    "prompts": 500,
    "pairs": 210,
    "without_pair": {"all scores are equal": 290},
    "chosen_longer": {"longer": 90, "equal": 10, "shorter": 110},
}


def _round(number: int, passed: float, score: float, accuracy: float | None, change: Any) -> dict[str, Any]:
    held_out = {
        "passed": measured(passed, passed - 0.04, passed + 0.04, 300),
        "score": measured(score, score - 0.03, score + 0.03, 300),
        "ended": measured(0.99, 0.97, 1.0, 300),
        "repeated": measured(0.001, 0.0, 0.002, 300),
        "tokens": measured(20.0, 19.0, 21.0, 300),
    }
    return {
        "round": number,
        "model": f"runs/r/round-{number}/run/model" if number else "builtin:guide",
        "held_out": held_out,
        "pairs": _PAIRS if number else None,
        "on_pairs": None
        if accuracy is None
        else {"accuracy": measured(accuracy, accuracy - 0.04, accuracy + 0.04, 500), "balanced": None, "gap": 0.125},
        "change": {"start": change, "before": change} if number else {},
    }


@pytest.fixture
def document() -> dict[str, Any]:
    gain = {"passed": measured(0.4, 0.33, 0.46, 300), "score": measured(0.2, 0.1, 0.3, 300)}
    fall = {"passed": measured(0.1, 0.02, 0.18, 300), "score": measured(0.1, 0.0, 0.2, 300)}
    return {
        "schema_version": 1,
        "kind": "rounds",
        "tool": "simpo",
        "name": "r",
        "model": "builtin:guide",
        "scoring": ["--rule", "builtin:guide"],
        "recipe_sha256": "0",
        "held_out_prompts": 300,
        "prompts": 3400,
        "rounds": [_round(0, 0.27, 0.5, 0.5, {}), _round(1, 0.67, 0.7, 0.65, gain), _round(2, 0.37, 0.6, 0.7, fall)],
        "best": 1,
        "stopped": {"round": 2, "guard": "passed", "reason": "the share of answers that reach the bar went down"},
    }


def test_the_screen_fits_into_80_columns_and_says_it_all(document: dict[str, Any]) -> None:
    assert printed(print_rounds, document, width=80) == SCREEN
    assert max(map(len, SCREEN.splitlines())) <= 80


SCREEN = """\
answers  pairs  wholly right  95 % interval  right parts     end  repetition
start                 27.0 %   23.0 to 31.0        0.500  99.0 %       0.1 %
round 1    210        67.0 %   63.0 to 71.0        0.700  99.0 %       0.1 %
round 2    210        37.0 %   33.0 to 41.0        0.600  99.0 %       0.1 %
greedy answers to 300 held-out prompts, scored as the training answers were

pairs                  accuracy   length-balanced   gap, nats/token
start     50.0 % (46.0 to 54.0)           too few             0.125
round 1   65.0 % (61.0 to 69.0)           too few             0.125
round 2   70.0 % (66.0 to 74.0)           too few             0.125
On held-out pairs a model may get better while its answers get worse: judge
rounds by the answers.

best is round 1: wholly right +40.0 points against the start model (95 % CI
+33.0 to +46.0, by prompt, n = 300; one seed, and the best of 2 on these
prompts)
model   runs/r/round-1/run/model
stopped in round 2: the share of answers that reach the bar went down
"""


def test_a_page_has_the_curves_and_what_became_of_the_prompts(document: dict[str, Any], tmp_path: Path) -> None:
    page = rounds_page(document)
    assert page.count("<svg") == 5
    for words in ("wholly right", "all scores are equal", "stopped in round 2", "length-balanced", "95 % intervals"):
        assert words in page, words
    (tmp_path / "rounds.json").write_text(json.dumps(document), encoding="utf-8")
    assert write_rounds_report(tmp_path).read_text("utf-8") == page
    assert rounds_page({**document, "rounds": [], "best": 0, "stopped": None})


def test_without_a_better_round_it_is_said(document: dict[str, Any]) -> None:
    assert conclusions({**document, "best": 0, "stopped": None}) == ["no round is better than the start model"]


def test_a_guard_ends_the_command_with_exit_code_5_and_names_the_best_model(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="round 2 stopped the rounds") as caught:
        require_good_end(document, Path("runs/r"))
    assert caught.value.exit_code == ExitCode.NUMBERS
    assert "runs/r/round-1/run/model" in caught.value.fix
    require_good_end({**document, "stopped": None}, Path("runs/r"))
    require_good_end({**document, "stopped": {"round": 2, "guard": "pairs", "reason": "none"}}, Path("runs/r"))


@pytest.mark.parametrize("content", ["{", '{"kind": "answers", "schema_version": 1}', "[]"])
def test_a_damaged_file_of_rounds_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "rounds.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        read_rounds(tmp_path)
