"""What scored pairs say: of one model, of two models on the pairs that both have, and by a column of the records.

Each number comes with its interval and its count, each difference with its test. All intervals are 95 % and go by
prompt where prompts repeat (see `statistics`). Results are dataclasses whose fields are the keys of the JSON documents.
"""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli import statistics
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import lengths_of, prompt_keys_of
from simpo_cli.errors import UserError
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.statistics import MIN_STRATUM_PAIRS, Measured, as_json

SCHEMA_VERSION = 2
MOST_VALUES = 50
"""Most values of a column to slice by."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairScores:
    """What a model says of pairs, each array of shape (P,) in the order of the pairs.

    Attributes:
        chosen, rejected: mean log-probability of each response, nats per token, float64 copies of float32 results.
        lengths: scored tokens, of the chosen responses and of the rejected ones.
        groups: a hash of each pair's prompt, as intervals take them.
    """

    chosen: Floats
    rejected: Floats
    lengths: tuple[NDArray[np.int64], NDArray[np.int64]]
    groups: NDArray[Any]

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], chosen: Floats, rejected: Floats) -> "PairScores":
        """The scores of these pairs, in their order."""
        lengths = lengths_of(pairs)
        return cls(chosen, rejected, (lengths[:, 1], lengths[:, 2]), prompt_keys_of(pairs))

    def __len__(self) -> int:
        return len(self.groups)

    def select(self, positions: Sequence[int]) -> "PairScores":
        """The scores of some of the pairs."""
        at, (chosen_lengths, rejected_lengths) = list(positions), self.lengths
        lengths = chosen_lengths[at], rejected_lengths[at]
        return PairScores(self.chosen[at], self.rejected[at], lengths, self.groups[at])

    @property
    def correct(self) -> Floats:
        """(P,) 1 where the chosen response has the higher mean log-probability, 0.5 where both are equal, else 0."""
        return (np.sign(self.chosen - self.rejected) + 1) / 2

    @property
    def longer_by(self) -> NDArray[np.int64]:
        """(P,) scored tokens of the chosen response less those of the rejected one."""
        return self.lengths[0] - self.lengths[1]


@dataclass(frozen=True, kw_only=True)
class EvalSummary:
    """The numbers of one model on one set of pairs; see `summarise`.

    Attributes:
        length: accuracy freed of length (see `statistics.length_strata`), `buckets` of length, and Spearman's rank
            correlation of reward and length: `spearman` over all responses, and `spearman_within` pairs, where both are
            taken less their mean over the pair, so what prompts differ in plays no part.
        baselines: accuracy on the same pairs without any model: `longer_wins`, and `surface`, a classifier of surface
            features.
    """

    pairs: int
    prompts: int
    effective_prompts: float
    loss: Measured
    accuracy: Measured
    ties: int
    margin: Measured
    margin_median: Measured
    target_reached: Measured
    logps_chosen: Measured = field(metadata={"json": "logps/chosen"})
    logps_rejected: Measured = field(metadata={"json": "logps/rejected"})
    length: Mapping[str, Any]
    baselines: Mapping[str, Measured | None]
    calibration: statistics.Calibration

    def as_json(self, *, model: str, data: str) -> dict[str, Any]:
        """What `simpo eval --json` says of one model, and run.json of the start model and the saved one."""
        return {"schema_version": SCHEMA_VERSION, "model": model, "data": data, **as_json(self)}


def summarise(scores: PairScores, loss: LossRecipe, surface: Measured | None = None) -> EvalSummary:
    """Loss, accuracy, margin and log-probs of at least one scored pair under an objective.

    `surface` is the accuracy of a classifier of surface features on the same pairs, where it is known.
    """
    groups, right, objective = scores.groups, scores.correct, Objective(loss)
    _, codes = np.unique(groups, return_inverse=True)
    margins = objective.margin(scores.chosen, scores.rejected)
    rewards, lengths = np.stack([scores.chosen, scores.rejected]), np.stack(scores.lengths).astype(np.float64)
    return EvalSummary(
        pairs=len(scores),
        prompts=int(codes.max()) + 1,
        effective_prompts=statistics.effective_prompts(codes),
        loss=statistics.mean(objective.losses(scores.chosen, scores.rejected), groups),
        accuracy=statistics.proportion(right, groups),
        ties=int((right == 0.5).sum()),
        margin=statistics.mean(margins, groups),
        margin_median=statistics.median(margins, groups),
        target_reached=statistics.proportion((margins > objective.gamma).astype(np.float64), groups),
        logps_chosen=statistics.mean(scores.chosen, groups),
        logps_rejected=statistics.mean(scores.rejected, groups),
        length={
            **statistics.length_strata(right, scores.longer_by, groups),
            "buckets": statistics.length_buckets(right, scores.longer_by, groups),
            "spearman": _correlation(rewards, lengths, scores),
            "spearman_within": _correlation(rewards - rewards.mean(0), lengths - lengths.mean(0), scores),
        },
        baselines={"longer_wins": statistics.longer_wins(scores.longer_by, groups), "surface": surface},
        calibration=statistics.calibration(margins, groups),
    )


def _correlation(rewards: Floats, lengths: Floats, scores: PairScores) -> Measured | None:
    """Spearman's over the (2, P) responses; n counts pairs."""
    measured = statistics.spearman(rewards.ravel(), lengths.ravel(), np.tile(scores.groups, 2))
    return measured and replace(measured, n=len(scores))


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """A second model less a first on the same pairs; the key `difference` of the documents. See `compare_scores`.

    Attributes:
        accuracy, p_value, test, wins, losses, ties: see `statistics.compare_accuracy`.
        smallest_effect, length_balanced: see `statistics`.
        margin, loss: mean change, in units of the reward and of the loss.
        margin_p_value, margin_test: whether margins lie around where they were.
        chosen_delta, rejected_delta: mean change of the log-probs, nats per token.
        chosen_fell: share of pairs whose chosen response became less likely.
    """

    accuracy: Measured
    p_value: float
    test: str
    wins: int
    losses: int
    ties: int
    smallest_effect: float | None
    length_balanced: Measured | None
    margin: Measured | None = None
    margin_p_value: float | None = None
    margin_test: str | None = None
    loss: Measured | None = None
    chosen_delta: Measured | None = field(default=None, metadata={"json": "logps/chosen_delta"})
    rejected_delta: Measured | None = field(default=None, metadata={"json": "logps/rejected_delta"})
    chosen_fell: Measured | None = None


def compare_scores(before: PairScores, after: PairScores, loss: LossRecipe | None) -> ModelComparison:
    """Compare two models pair by pair.

    Args:
        before, after: the same pairs in the same order.
        loss: the objective that gives both their rewards; None where the two score other tokens, or under other
            objectives: then a log-prob per token of one says nothing beside one of the other, while which response each
            prefers still does.
    """
    groups, right = after.groups, (before.correct, after.correct)
    accuracy = statistics.compare_accuracy(*right, groups)
    comparison = ModelComparison(
        accuracy=accuracy.difference,
        p_value=accuracy.p_value,
        test=accuracy.test,
        wins=accuracy.wins,
        losses=accuracy.losses,
        ties=accuracy.ties,
        smallest_effect=statistics.smallest_effect(*right, groups),
        length_balanced=statistics.balanced_difference(*right, after.longer_by, groups),
    )
    if loss is None:
        return comparison
    objective = Objective(loss)
    then, now = ((scores.chosen, scores.rejected) for scores in (before, after))
    margins, chosen = objective.margin(*now) - objective.margin(*then), after.chosen - before.chosen
    margin_test = statistics.signed_rank_test(margins, groups)
    return replace(
        comparison,
        margin=statistics.mean(margins, groups),
        margin_p_value=margin_test.p_value,
        margin_test=margin_test.test,
        loss=statistics.mean(objective.losses(*now) - objective.losses(*then), groups),
        chosen_delta=statistics.mean(chosen, groups),
        rejected_delta=statistics.mean(after.rejected - before.rejected, groups),
        chosen_fell=statistics.proportion((chosen < 0).astype(np.float64), groups),
    )


@dataclass(frozen=True)
class Slice:
    """The pairs of one value of a column; what was measured is None under 10 pairs.

    Attributes:
        value: as the records have it; None where a record has none.
        pairs: how many.
        accuracy, baseline_accuracy: of the model, and of what it is compared with.
        difference, p_value: of the two, if there are two.
        p_value_holm: its p-value with those of the other slices in mind.
    """

    value: str | None
    pairs: int
    accuracy: Measured | None = None
    baseline_accuracy: Measured | None = None
    difference: Measured | None = None
    p_value: float | None = None
    p_value_holm: float | None = None


def slices_of(column: str, values: Sequence[str | None], scores: PairScores, base: PairScores | None) -> list[Slice]:
    """Accuracy of each value's pairs, the most frequent value first.

    Args:
        values: of each pair.
        scores, base: the same pairs under the model, and under what it is compared with.

    Raises:
        UserError: there are too many values to look at.
    """
    of_value: dict[str | None, list[int]] = {}
    for position, value in enumerate(values):
        of_value.setdefault(value, []).append(position)
    if len(of_value) > MOST_VALUES:
        raise UserError(
            f"--by {column} has {len(of_value):,} different values.",
            f"Name a column with at most {MOST_VALUES}, such as a source or a category.",
        )
    by_count = sorted(of_value.items(), key=lambda item: (-len(item[1]), str(item[0])))
    slices = [_slice(value, scores.select(at), base and base.select(at)) for value, at in by_count]
    holm = iter(statistics.holm([one.p_value for one in slices if one.p_value is not None]))
    return [one if one.p_value is None else replace(one, p_value_holm=next(holm)) for one in slices]


def _slice(value: str | None, scores: PairScores, base: PairScores | None) -> Slice:
    if len(scores) < MIN_STRATUM_PAIRS:
        return Slice(value, len(scores))
    accuracy = statistics.proportion(scores.correct, scores.groups)
    if base is None:
        return Slice(value, len(scores), accuracy)
    comparison = statistics.compare_accuracy(base.correct, scores.correct, scores.groups)
    before = statistics.proportion(base.correct, scores.groups)
    return Slice(value, len(scores), accuracy, before, comparison.difference, comparison.p_value)


@dataclass(frozen=True, slots=True)
class Matched:
    """Pairs that two lists share.

    Attributes:
        positions: (in the first, in the second) of each, in the order of the first.
        swapped: pairs of the first that the second has only with chosen and rejected the other way round; they are
            other pairs, and not among the positions.
    """

    positions: Sequence[tuple[int, int]]
    swapped: int


def match(first: Sequence[str], second: Sequence[str]) -> Matched:
    """Match pairs by their digests (see `data.encode.pair_key`); one that is there several times, in its order."""
    positions = match_in_order(first, second)
    ours, theirs = {i for i, _ in positions}, set(second)
    swapped = sum(i not in ours and key[16:] + key[:16] in theirs for i, key in enumerate(first))
    return Matched(positions, swapped)


def align(first: Sequence[EncodedPair], second: Sequence[EncodedPair]) -> tuple[Matched, bool]:
    """Match two lists of pairs, and look whether those that both have were cut into the same tokens."""
    matched = match([pair.pair_key for pair in first], [pair.pair_key for pair in second])
    same_tokens = all(
        np.array_equal(getattr(first[i], part), getattr(second[j], part))
        for i, j in matched.positions
        for part in ("prompt", "chosen", "rejected")
    )
    return matched, same_tokens


def match_in_order(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[tuple[int, int]]:
    """(position in the first, in the second) of equal keys; the n-th of a key belongs to the n-th of it there."""
    places: dict[Hashable, deque[int]] = {}
    for position, key in enumerate(second):
        places.setdefault(key, deque()).append(position)
    return [(position, places[key].popleft()) for position, key in enumerate(first) if places.get(key)]
