"""How much of a model's scores is arithmetic: the same pairs scored once more, packed another way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import tokens_of_each
from simpo_cli.data.selection import probe
from simpo_cli.evaluate.metrics import correct
from simpo_cli.evaluate.scoring import OpenModel, PairScores, score_pairs
from simpo_cli.objective import Objective
from simpo_cli.stages import stage

_MOST_SCORED_AGAIN = 256  # pairs: rounding is alike everywhere, and each costs as much as the evaluation of one


@dataclass(frozen=True)
class Noise:
    """The spread between two packings, which are equal but for rounding.

    Attributes:
        pairs: scored again, chosen by the hash of their prompts.
        packing: how, in words.
        margin: root mean square of the change of a margin, in units of the reward.
        largest: the largest change of a mean log-prob, nats per token.
        accuracy: share of the pairs whose preference changed.
    """

    pairs: int
    packing: str
    margin: float
    largest: float
    accuracy: float

    def as_json(self) -> dict[str, Any]:
        """The key `noise` of the document."""
        return {
            "pairs": self.pairs,
            "packing": self.packing,
            "margin": self.margin,
            "largest": self.largest,
            "accuracy": self.accuracy,
        }


@stage("measuring the rounding")
def measure_noise(opened: OpenModel, pairs: Sequence[EncodedPair], scores: PairScores, objective: Objective) -> Noise:
    """Score some of the pairs again: in padded rows where prompts were shared, else one pair at a time.

    Args:
        opened: the model.
        pairs: what was scored, at least one.
        scores: what came out.
        objective: gives the rewards.
    """
    at = probe(pairs, _MOST_SCORED_AGAIN)
    some, first = [pairs[i] for i in at], scores.select(at)
    shared = opened.check.packing == "shared_prefix"
    budget = opened.budget if shared else int(tokens_of_each(some, "padded").min())
    with opened.policy.packed("padded"):
        again = score_pairs(opened.policy, some, opened.accelerator, budget)
    chosen, rejected = again.chosen - first.chosen, again.rejected - first.rejected
    return Noise(
        pairs=len(at),
        packing="padded rows" if shared else "one pair at a time",
        margin=objective.reward(float(np.sqrt(np.mean((chosen - rejected) ** 2)))),
        largest=float(np.abs([chosen, rejected]).max()),
        accuracy=float(np.mean(correct(again) != correct(first))),
    )
