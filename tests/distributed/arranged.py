"""What goes wrong on the second of two ranks, arranged in its process before it begins."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch

from simpo_cli.data import prepare
from simpo_cli.distributed.sharded import local
from simpo_cli.model.policy import Policy
from simpo_cli.train import loop

_CALLS_BEFORE = 6  # of the policy: after a whole step, and before the last


def _on_rank_1(*, in_call: int = _CALLS_BEFORE) -> Callable[[Callable[[], Any]], None]:
    """Have the second rank do something once, in the middle of the forward pass of its last layer."""

    def arrange(act: Callable[[], Any]) -> None:
        if os.environ["RANK"] != "1":
            return
        real, calls = Policy.response_means, 0

        def response_means(policy: Policy, packed: Any) -> Any:
            nonlocal calls
            calls += policy.training
            if calls != in_call or not policy.training:
                return real(policy, packed)
            hook = policy.layers[-1].register_forward_pre_hook(lambda *_: act())
            try:
                return real(policy, packed)
            finally:
                hook.remove()

        Policy.response_means = response_means  # type: ignore[method-assign]

    return arrange


def out_of_memory() -> None:
    _on_rank_1()(lambda: _raise(torch.OutOfMemoryError("no memory")))


def out_of_memory_before_the_first_step() -> None:
    if os.environ["RANK"] == "1":
        # is first called by an evaluation of the start model
        Policy.response_means = lambda *_: _raise(torch.OutOfMemoryError("no memory"))  # type: ignore[method-assign]


def bug() -> None:
    _on_rank_1()(lambda: _raise(ValueError("planted in one layer of one rank")))


def hanging() -> None:
    _on_rank_1()(lambda: time.sleep(600))


def killed() -> None:
    _on_rank_1()(lambda: os.kill(os.getpid(), signal.SIGKILL))


def told_to_stop() -> None:
    _on_rank_1()(lambda: os.kill(os.getpid(), signal.SIGTERM))


def other_data() -> None:
    if os.environ["RANK"] == "1":
        prepare.PreparedData.identity = property(lambda _: "others")  # type: ignore[assignment,method-assign]


def not_finite() -> None:
    """A weight of its shard is spoilt after the second update."""
    if os.environ["RANK"] == "1":
        real = loop._update

        def update(training: Any) -> Any:
            lost = real(training)
            if training.steps_done == 1:
                parameter = next(training.policy.parameters()).data
                local(parameter).fill_(torch.nan)
            return lost

        loop._update = update


def _raise(error: Exception) -> None:
    raise error
