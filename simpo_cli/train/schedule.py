"""The learning rate of a step: a function of the step alone, so that there is nothing to save."""

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    highest: float,
    num_steps: int,
    warmup_ratio: float,
    kind: Literal["cosine", "linear", "constant"],
) -> float:
    """The learning rate of an update, with the semantics of transformers' schedulers.

    Warm-up steps are rounded up and rise linearly from 0, so with warm-up the first update moves nothing; then the rate
    falls to 0 by half a cosine or a line, or stays.

    Args:
        step: 0 is the first update.
        highest: the rate at the end of the warm-up.
        num_steps: updates of the whole run.
        warmup_ratio: share of the updates that warm up.
        kind: shape after the warm-up.
    """
    warmup = math.ceil(num_steps * warmup_ratio)
    if step < warmup:
        return highest * step / max(1, warmup)
    done = (step - warmup) / max(1, num_steps - warmup)
    match kind:
        case "cosine":
            return highest * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
        case "linear":
            return highest * max(0.0, 1.0 - done)
        case "constant":
            return highest
