"""What a round's answers are worth, by prompt, against plain sums; and the guards that stop the rounds."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpo_cli.pairs import held_out
from simpo_cli.pairs.held_out import answer_values, best_of, fallen, measured_round
from simpo_cli.recipe.composition import compose
from tests.pairs.folders import Made, write_answers

PROMPTS = 200


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    return _recipe(tmp_path, 1.0)


def _recipe(folder: Path, bar: float | None) -> Any:
    file = folder / "round.yaml"
    file.write_text(
        json.dumps({"name": "r", "model": {"path": "m"}, "data": {"train": "-"}, "pairs": {"min_score": bar}}),
        encoding="utf-8",
    )
    return compose(str(file)).recipe


@pytest.fixture(autouse=True)
def _no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "on_pairs", lambda *_: None)


def _measured(path: Path, recipe: Any, rounds: list[list[Made]]) -> list[dict[str, Any]]:
    made = []
    for number, answers in enumerate(rounds):
        folder = path / f"round-{number}"
        write_answers(folder / "held-out", {f"question {place}": [one] for place, one in enumerate(answers)})
        account = {"prompts": 9, "pairs": 5, "without_pair": {"none": 4}, "chosen_longer": {}}
        (folder / "pairs.jsonl.made.json").write_text(json.dumps(account), encoding="utf-8")
        made.append(measured_round(path, number, "rule", recipe))
    return made


def _answers(right: int, *, ended: int = PROMPTS, repeated: int = 0, seed: int = 1) -> list[Made]:
    """So many right answers, so many that ended and so many that repeat themselves, which are among the first."""
    rng = random.Random(seed)
    return [
        Made("again and " * 20 if place < repeated else "some words here", float(place < right), place < ended)
        for place in sorted(range(PROMPTS), key=lambda place: (place // 50, rng.random()))
    ]


def test_values_are_counted_by_prompt(tmp_path: Path) -> None:
    answers = {
        "one": [Made("a b c d e f", 1.0)],
        "two": [Made("a b c", 1.0, ended=False)],
        "three": [Made("a b", 0.4)],
        "four": [Made("a", None)],
    }
    values = answer_values(write_answers(tmp_path / "held", answers), "rule", 0.5)
    assert values["passed"].tolist() == [1, 0, 0, 0]
    assert values["ended"].tolist() == [1, 0, 1, 1]
    assert values["tokens"].tolist() == [6, 3, 2, 1]
    assert values["score"][:3].tolist() == [1.0, 1.0, 0.4]
    assert np.isnan(values["score"][3])
    assert "passed" not in answer_values(tmp_path / "held", "rule", None)


def test_a_change_is_taken_prompt_by_prompt(tmp_path: Path, recipe: Any) -> None:
    before, after = _answers(80), _answers(120)
    start, first = _measured(tmp_path, recipe, [before, after])
    assert start["held_out"]["passed"]["value"] == 0.4
    gains = [float(other.score or 0) - float(one.score or 0) for one, other in zip(before, after, strict=True)]
    assert first["change"]["start"]["passed"]["value"] == pytest.approx(sum(gains) / PROMPTS)
    low, high = first["change"]["start"]["passed"]["ci"]
    assert 0 < low < 0.2 < high
    assert first["pairs"] == {"prompts": 9, "pairs": 5, "without_pair": {"none": 4}, "chosen_longer": {}}
    assert (best_of([start, first]), fallen([start, first])) == (1, None)


@pytest.mark.parametrize(
    ("later", "guard"),
    [
        ({"right": 60}, "passed"),
        ({"right": 100, "ended": 180}, "ended"),
        ({"right": 140, "repeated": 40}, "repeated"),
        ({"right": 96}, None),  # within chance
        ({"right": 100, "ended": 198}, None),  # tolerated
        ({"right": 140}, None),
    ],
)
def test_a_guard_that_falls_beyond_chance_is_the_reason(
    tmp_path: Path, recipe: Any, later: dict[str, int], guard: str | None
) -> None:
    made = _measured(tmp_path, recipe, [_answers(100), _answers(**later, seed=2)])
    found = fallen(made)
    assert (found and found["guard"]) == guard
    if found is not None:
        assert found["round"] == 1
        assert "(start model) to" in found["reason"] or "(the start model) to" in found["reason"]
        assert "n = 200 prompts" in found["reason"]


def test_a_fall_since_the_round_before_counts_too(tmp_path: Path, recipe: Any) -> None:
    made = _measured(tmp_path, recipe, [_answers(60), _answers(150), _answers(90)])
    found = fallen(made)
    assert found is not None
    assert (found["round"], found["guard"]) == (2, "passed")
    assert "75.0 % (round 1) to 45.0 %" in found["reason"]
    assert best_of(made) == 1


def test_without_a_bar_the_mean_score_counts(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, None)
    made = _measured(tmp_path, recipe, [_answers(100), _answers(50)])
    assert "passed" not in made[0]["held_out"]
    found = fallen(made)
    assert found is not None
    assert found["guard"] == "score"
    assert best_of(made) == 0


def test_of_equally_good_rounds_the_first_is_the_best(tmp_path: Path, recipe: Any) -> None:
    assert best_of(_measured(tmp_path, recipe, [_answers(50), _answers(90), _answers(90, seed=3)])) == 1


def test_a_round_without_any_score_is_the_worst(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, None)
    made = _measured(tmp_path, recipe, [[Made("some words", -2.0)] * 3])
    scored = made[0]["held_out"]
    row = {"round": 1, "held_out": {**scored, "score": None}}
    assert best_of([*made, row]) == 0
    assert best_of([{**row, "round": 0}, {**made[0], "round": 1}]) == 1
    assert best_of([row]) == 1
