"""What a trial is worth, and what rules it out."""

from typing import Any

import numpy as np
import pytest

from simpo_cli import statistics
from simpo_cli.evaluate.metrics import PairScores
from simpo_cli.recipe.command_sections import GuardsRecipe, TuneRecipe
from simpo_cli.tune.judging import Judge, likeness, utilities


def test_likeness_by_hand() -> None:
    # tokens 1 2 3 against 1 2 4: single tokens 1 2, pair (1, 2): 3 of 5 on either side
    assert likeness([1, 2, 3], [[1, 2, 4]]) == pytest.approx(2 * 3 / 10)
    assert likeness([1, 2, 3], [[1, 2, 3]]) == 1.0
    assert likeness([], [[1, 2]]) == 0.0
    assert likeness([5], [[1, 2], [5]]) == 1.0  # the nearest of the prompt's chosen responses


def test_likeness_counts_a_repeated_token_as_often_as_it_is_wanted() -> None:
    assert likeness([7] * 10, [[7]]) == pytest.approx(2 * 1 / (19 + 1))


def test_a_response_is_cut_where_an_answer_would_be() -> None:
    answer = list(range(64))
    assert likeness(answer, [list(range(300))]) == 1.0


def _outcome(value: float | None, *reasons: str) -> dict[str, Any]:
    return {"measures": {"objective": value, "reasons": list(reasons)}}


def test_what_is_ruled_out_comes_after_everything_else() -> None:
    judge = Judge(TuneRecipe(), None)
    good, best, loud = _outcome(0.2), _outcome(0.3), _outcome(0.9, "answers do not end")
    assert judge.best([good, loud, best]) is best
    assert judge.best([loud, _outcome(None, "not finite")]) is loud


def test_what_is_ruled_out_and_better_but_for_that_is_found() -> None:
    judge, best = Judge(TuneRecipe(), None), _outcome(0.5)
    low, high = _outcome(0.6, "loops"), _outcome(0.7, "loops")
    assert judge.best_ruled_out([low, best, high], best) is high
    assert judge.best_ruled_out([_outcome(0.4, "loops"), best, _outcome(None, "not finite")], best) is None
    assert judge.best_ruled_out([best], best) is None
    assert judge.best_ruled_out([low, high], high) is None


def test_of_equal_ones_the_first_stays() -> None:
    """So the recipe as it is is only left for something that did better."""
    judge, first, second = Judge(TuneRecipe(), None), _outcome(0.5), _outcome(0.5)
    assert judge.best([first, second]) is first


def _scores(longer_by: list[int], right: list[float]) -> PairScores:
    """Of so many pairs: what is longer, and what the model ranks rightly."""
    lengths = np.array(longer_by) + 50, np.full(len(longer_by), 50)
    return PairScores(np.array(right), np.full(len(right), 0.5), lengths, np.arange(len(right)))


def test_utility_is_likeness_plus_half_of_accuracy_by_prompt() -> None:
    """Two pairs of the first prompt, one of the second, which alone is right; the third was not asked."""
    found = utilities([0.2, 0.4], ["a", "b"], _scores([3, 3, 3, 3], [0, 0, 1, 1]), ["a", "a", "b", "c"])
    assert found == pytest.approx([0.2, 0.4 + 0.5 * 2 / 3])
    assert np.mean(found) == pytest.approx(0.3 + 0.5 / 3)


def test_the_accuracy_in_utility_is_length_balanced_where_there_are_pairs_of_both_kinds() -> None:
    """Of thirty pairs whose chosen response is longer all are right, of ten whose is shorter none, of two alike all."""
    longer_by, right = [3] * 30 + [-3] * 10 + [0] * 2, [1.0] * 30 + [0.0] * 10 + [1.0] * 2
    keys = [str(pair // 2) for pair in range(42)]
    asked = list(dict.fromkeys(keys))
    found = utilities([0.0] * 21, asked, _scores(longer_by, right), keys)
    balanced = statistics.length_strata(right, np.array(longer_by))["balanced"]
    assert balanced is not None
    assert np.mean(found) == pytest.approx(0.5 * balanced.value) == pytest.approx(0.25)
    assert found[-1] == 0.0  # of equal lengths: in neither kind


@pytest.mark.parametrize(
    ("ended", "repeating", "count"), [(10, 0, 0), (8, 0, 0), (7, 0, 1), (10, 2, 0), (10, 3, 1), (5, 6, 2)]
)
def test_a_guard_falls_when_it_is_worse_than_the_start_by_more_than_is_allowed(
    ended: int, repeating: int, count: int
) -> None:
    judge = Judge(TuneRecipe(guards=GuardsRecipe(endless=0.2, repeating=0.2)), None)

    def answers(ended: int, repeating: int) -> dict[str, list[float]]:
        ends, repeats = ([float(n < count) for n in range(10)] for count in (ended, repeating))
        return {"ended": ends, "repeating": repeats, "likeness": [0.5] * 10}

    assert len(judge.reasons(answers(ended, repeating), answers(10, 0))) == count


def test_answers_without_a_score_rule_a_trial_out_where_the_start_has_scores() -> None:
    judge = Judge(TuneRecipe(), None)
    fine = {"ended": [1.0] * 10, "repeating": [0.0] * 10, "likeness": [0.5] * 10}
    scored, unscored = {**fine, "score": [1.0] * 10}, {**fine, "score": [9.0] + [None] * 9}
    assert judge.reasons(scored, scored) == []
    assert judge.reasons(unscored, unscored) == []
    assert judge.reasons(unscored, scored) == ["90.0 % of the answers have no score, 0.0 % of the start's"]


def test_noise_that_ends_and_does_not_repeat_itself_is_ruled_out() -> None:
    judge = Judge(TuneRecipe(), None)
    fine = {"ended": [1.0] * 10, "repeating": [0.0] * 10, "likeness": [0.6] * 10}
    assert judge.reasons({**fine, "likeness": [0.31] * 10}, fine) == []
    [reason] = judge.reasons({**fine, "likeness": [0.08] * 10}, fine)
    assert reason == "likeness 0.080 to the chosen responses, 0.600 of the start model's answers"
