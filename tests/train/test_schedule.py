"""The learning rate against the schedulers of transformers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from simpo_cli.train.optimizer import learning_rate

_NAMES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(_NAMES)), steps=st.integers(1, 60), ratio=st.sampled_from([0.0, 0.03, 0.1, 0.5]))
def test_every_rate_is_that_of_transformers(kind: str, steps: int, ratio: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    warmup = -(-steps * ratio // 1)  # rounded up
    scheduler = get_scheduler(_NAMES[kind], optimizer, num_warmup_steps=int(warmup), num_training_steps=steps)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        got = learning_rate(step, highest=3e-4, num_steps=steps, warmup_ratio=ratio, kind=kind)  # type: ignore[arg-type]
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        scheduler.step()


def test_the_first_update_moves_nothing_when_there_is_warm_up() -> None:
    assert learning_rate(0, highest=1.0, num_steps=62, warmup_ratio=0.1, kind="cosine") == 0.0
    assert learning_rate(7, highest=1.0, num_steps=62, warmup_ratio=0.1, kind="cosine") == 1.0
    assert learning_rate(0, highest=1.0, num_steps=62, warmup_ratio=0.0, kind="cosine") == 1.0
