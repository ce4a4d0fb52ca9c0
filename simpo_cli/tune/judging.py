"""What a trial is worth: whose numbers choose, and what rules a trial out.

Held-out accuracy, margin and gap misled in 80 trials on the built-in world (docs/tuning.md): on own answers they ranked
settings against what the answers were worth. How like its greedy answers were to the chosen responses ranked them
right; but by that alone a model that has learned no preference is as good as one that has. So likeness and, at half its
weight, accuracy choose where nobody gives a better judge: a rule of the user's for what an answer is worth.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from simpo_cli import statistics
from simpo_cli.evaluate.generate.measures import repeated_share
from simpo_cli.evaluate.metrics import PairScores
from simpo_cli.formatting import percent
from simpo_cli.pairs.scorer import Answered, Scorer
from simpo_cli.recipe.command_sections import TuneRecipe
from simpo_cli.recipe.schema import HeldOutPart
from simpo_cli.run.events import LOOPING
from simpo_cli.tune.bench import ANSWER_TOKENS, Bench, Trained
from simpo_cli.tune.folder import LIKENESS, SCORE, UTILITY, Document

_LEAST_LIKENESS = 0.5
"""Answers that have lost more of the start model's likeness to the chosen responses are none, whatever scores them."""

ACCURACY_WEIGHT = 0.5
"""Of length-balanced accuracy beside likeness. Of those 80 trials it would have chosen ones of 6.4 points more accuracy
and 3.5 points fewer right answers on one set of pairs, of 1.3 more and 0.7 fewer on the other (means of draws)."""


class Judge:
    """Measures trials and puts them in order.

    Args:
        recipe: what a trial may not do.
        scorer: scores answers; None compares them with the chosen responses, and counts accuracy as well.
    """

    def __init__(self, recipe: TuneRecipe, scorer: Scorer | None) -> None:
        self._recipe, self._scorer = recipe, scorer
        self._references: dict[HeldOutPart, dict[str, list[list[int]]]] = {}
        self.objective = UTILITY if scorer is None else SCORE

    def outcome(self, trained: Trained, bench: Bench, part: HeldOutPart, start: Document | None) -> Document:
        """What the file of a trial holds beside its settings.

        Args:
            start: the same of the start model; None for itself.
        """
        if trained.scores is None:
            return {"measures": {"objective": None, "reasons": [trained.problem]}, "scores": None, "answers": None}
        references = self._chosen(bench, part)
        answers: Document = {
            "key": [one.key for one in trained.answers],
            "text": [one.text for one in trained.answers],
            "ended": [float(one.ended) for one in trained.answers],
            "repeating": [float(repeated_share(one.ids) >= LOOPING) for one in trained.answers],
            LIKENESS: [likeness(one.ids, references[one.key]) for one in trained.answers],
        }
        if self._scorer is None:
            keys = [pair.prompt_key for pair in bench.pairs(part)]
            answers[UTILITY] = utilities(answers[LIKENESS], answers["key"], trained.scores, keys)
        else:
            asked = zip(bench.prompts(part), trained.answers, strict=True)
            scores = self._scorer.score([Answered(*both) for both in asked])
            answers[SCORE] = [score.value for score in scores]
        measures = self._measures(trained.scores, answers)
        measures["reasons"] = [] if start is None else self.reasons(answers, start["answers"])
        scores_of = {"chosen": trained.scores.chosen.tolist(), "rejected": trained.scores.rejected.tolist()}
        return {"measures": measures, "scores": scores_of, "answers": answers}

    def _chosen(self, bench: Bench, part: HeldOutPart) -> dict[str, list[list[int]]]:
        """The chosen responses to each prompt, by its key, as tokens without the end token."""
        if part not in self._references:
            found: dict[str, list[list[int]]] = {}
            for pair in bench.pairs(part):
                ids = pair.chosen.tolist()
                found.setdefault(pair.prompt_key, []).append(ids[:-1] if ids[-1] in bench.end_ids else ids)
            self._references[part] = found
        return self._references[part]

    def _measures(self, scores: PairScores, answers: Document) -> Document:
        """Means with intervals: what chooses as `objective`, and what stands beside it."""
        right, groups = scores.correct, scores.groups
        strata = statistics.length_strata(right, scores.longer_by, groups)
        known = [value for value in answers[self.objective] if value is not None]
        return {
            "objective": float(np.mean(known)) if known else None,
            self.objective: statistics.mean(known).as_json() if known else None,
            LIKENESS: statistics.mean(answers[LIKENESS]).as_json(),
            "accuracy": statistics.proportion(right, groups).as_json(),
            "balanced": statistics.as_json(strata["balanced"]),
            "gap": statistics.mean(scores.chosen - scores.rejected, groups).as_json(),
            "logps/chosen": statistics.mean(scores.chosen, groups).as_json(),
            "ended": statistics.proportion(answers["ended"]).as_json(),
            "repeating": statistics.proportion(answers["repeating"]).as_json(),
        }

    def reasons(self, answers: Document, start: Document) -> list[str]:
        """Why these answers, of a trial or of several, rule it out beside the start model's; mostly nothing."""
        guards, reasons = self._recipe.guards, []
        ended, before = float(np.mean(answers["ended"])), float(np.mean(start["ended"]))
        if before - ended > guards.endless:
            reasons.append(f"{percent(ended)} of the answers end, {percent(before)} of the start model's")
        repeating, before = float(np.mean(answers["repeating"])), float(np.mean(start["repeating"]))
        if repeating - before > guards.repeating:
            reasons.append(f"{percent(repeating)} of the answers repeat themselves, {percent(before)} of the start's")
        alike, before = (float(np.mean(both[LIKENESS])) for both in (answers, start))
        if alike < _LEAST_LIKENESS * before:  # noise that ends and does not repeat itself
            reasons.append(f"{LIKENESS} {alike:.3f} to the chosen responses, {before:.3f} of the start model's answers")
        unscored, before = (float(np.mean([one is None for one in both.get(SCORE, [0])])) for both in (answers, start))
        if unscored - before > guards.endless:
            reasons.append(f"{percent(unscored)} of the answers have no score, {percent(before)} of the start's")
        return reasons

    def has_scored(self, start: Document) -> None:
        """Let the scorer know that it has scored answers before, of the start model: perhaps by another process."""
        if self._scorer is not None and any(score is not None for score in start["answers"][SCORE]):
            self._scorer.has_scored = True

    def worth(self, outcome: Document) -> tuple[bool, float]:
        """By which outcomes are compared: those that are ruled out come last."""
        measures = outcome["measures"]
        value = measures["objective"]
        return not measures["reasons"], -np.inf if value is None else value

    def best(self, outcomes: Sequence[Document]) -> Document:
        """The best outcome, the first of equal ones."""
        return max(outcomes, key=self.worth)

    def best_ruled_out(self, outcomes: Sequence[Document], best: Document) -> Document | None:
        """The highest of those that are ruled out, if it is above the best one."""
        ruled_out = [one for one in outcomes if one["measures"]["reasons"]]
        highest = max(ruled_out, key=self.worth, default=best)
        return highest if self.worth(highest)[1] > self.worth(best)[1] else None

    def in_words(self, measures: Mapping[str, Any]) -> str:
        """What a trial came to, in a line."""
        if measures["objective"] is None:
            return f"ruled out: {'; '.join(measures['reasons'])}"
        alike = "" if self.objective == SCORE else f"  {LIKENESS} {measures[LIKENESS]['value']:.3f}"
        accuracy = f"accuracy {percent(measures['accuracy']['value'])}"
        words = f"{self.objective} {measures['objective']:.3f}{alike}  {accuracy}"
        return f"{words}  ruled out: {'; '.join(measures['reasons'])}" if measures["reasons"] else words


def utilities(alike: Sequence[float], asked: Sequence[str], scores: PairScores, keys: Sequence[str]) -> list[float]:
    """What each answered prompt is worth where no rule says it: likeness plus ACCURACY_WEIGHT times accuracy.

    A pair counts so much that the mean over prompts holds the length-balanced accuracy of the pairs of these prompts;
    where there are too few pairs of a kind, all count alike (see `statistics.length_strata`).

    Args:
        alike: the likeness of the answer to each prompt.
        asked: the keys of these prompts.
        scores: of all pairs.
        keys: the key of each pair's prompt.
    """
    row_of = {key: row for row, key in enumerate(asked)}
    some = [pair for pair, key in enumerate(keys) if key in row_of]
    scores = scores.select(some)
    sides = [scores.longer_by > 0, scores.longer_by < 0]
    counts = [int(side.sum()) for side in sides]
    share_of = np.full(len(some), 1 / max(len(some), 1))
    if min(counts) >= statistics.MIN_STRATUM_PAIRS:
        share_of = np.select(sides, [1 / (2 * count) for count in counts])
    found = np.array(alike, np.float64)
    rows = [row_of[keys[pair]] for pair in some]
    np.add.at(found, rows, ACCURACY_WEIGHT * len(asked) * share_of * scores.correct)
    values: list[float] = found.tolist()
    return values


def likeness(answer: Sequence[int], references: Sequence[Sequence[int]]) -> float:
    """How like an answer is to the nearest of some responses, 0..1.

        F1 = 2 * |A and R| / (|A| + |R|)

    of the multisets of their tokens and pairs of neighbouring tokens, as ROUGE-1 and ROUGE-2 count them (Lin 2004),
    taken together. A response is cut where an answer would be.
    """
    ours = _grams(answer)
    return max(_f1(ours, _grams(reference[:ANSWER_TOKENS])) for reference in references)


def _grams(ids: Sequence[int]) -> Counter[tuple[int, ...]]:
    return Counter([*((one,) for one in ids), *pairwise(ids)])


def _f1(ours: Counter[tuple[int, ...]], theirs: Counter[tuple[int, ...]]) -> float:
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 0.0
