"""Before the first step: do compiled layers compute what the layers compute as they are?

How pairs go through the model is decided before (see `self_check`), in float32. This is about the run's own arithmetic,
in which compiled code rightly rounds elsewhere: it keeps in registers what the layers write down between two
operations. So what is allowed is measured there and then: what becomes of log-probs and gradient when the states
between layers are rounded once more, up or down at random. (The difference between prompts shared and padded rows would
be too small a measure: on a CPU in bf16 compiled code was 1.4 to 1.7 times as far from eager as padded rows were.)
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simpo_cli.model.backend import backend_of
from simpo_cli.model.packed import PackedPairs, pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.self_check import (
    MOST_GRADIENT_DIFFERENCE,
    MOST_MEAN_DIFFERENCE,
    CheckPairs,
    gradient_norm,
    without_dropout,
)
from simpo_cli.stages import stage

Autocast = Callable[[], AbstractContextManager[Any]]
"""What opens a block in the run's own arithmetic."""

MOST_ROUNDING = 1.5  # times what one more rounding between layers makes
# By arithmetic, not yet measured on a card: at 200 TFLOP/s some eight minutes, of which compiling takes one or two.
_FEWEST_OPERATIONS = 1e17


def is_worth_compiling(device: torch.device, parameters: int, tokens: int) -> bool:
    """Whether `model.compile: auto` tries it: on a card, in a run that is long enough to repay the compiler's time."""
    is_long = 6.0 * parameters * tokens > _FEWEST_OPERATIONS
    return is_long and backend_of(device).compiles and find_spec("triton") is not None


@stage("checking compiled layers")
def choose_compiling(
    policy: Policy, wanted: bool | Literal["auto"], pairs: CheckPairs, autocast: Autocast, *, is_worth_it: bool
) -> str | None:
    """Let the policy's layers run as compiled code, where that is wanted and computes the same.

    Args:
        policy: its packing decided, its gradients empty; they are empty afterwards.

    Returns:
        What to tell: that the layers are compiled, or why they are not; None where nothing was tried.
    """
    if wanted is False or (wanted == "auto" and not is_worth_it):
        return None
    why_not = "rows are padded" if policy.packing == "padded" else _why_not(policy, pairs, autocast)
    if why_not is not None:
        return f"layers not compiled: {why_not}"
    compile_for_training(policy, pairs, autocast)
    return "layers compiled"


def compile_for_training(policy: Policy, pairs: CheckPairs, autocast: Autocast) -> None:
    """Let the policy's layers run as compiled code, which is made here and now.

    The compiler goes by the first sizes that it sees. So these are always the same: a resumed run has to have the code,
    and with it the bits, of the run that it resumes.
    """
    policy.compile_layers(True)
    with in_training(policy):
        _add_gradient(policy, pack(pairs.batches[0], policy.device), autocast, 1.0)


def _why_not(policy: Policy, pairs: CheckPairs, autocast: Autocast) -> str | None:
    """Why compiled layers cannot be used, or None: whatever a compiler raises here, it would raise in training."""
    torch.compiler.reset()  # of another model in this process, whose graphs count towards a limit
    try:
        with in_training(policy), without_dropout(policy):
            for batch in pairs.batches:  # of different sizes, which one graph has to serve
                packed = pack(batch, policy.device)
                rounding = _difference(policy, packed, autocast, _rounded_once_more(policy, autocast))
                compiled = _difference(policy, packed, autocast, _compiled(policy))
                for what, apart, other, least in (
                    ("log-probs", compiled[0], rounding[0], MOST_MEAN_DIFFERENCE),
                    ("the gradient", compiled[1], rounding[1], MOST_GRADIENT_DIFFERENCE),
                ):
                    if not apart <= MOST_ROUNDING * other + least:  # what is not finite is not less either
                        return f"{what} would differ by {apart:.1g}, and rounding makes {other:.1g}"
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error.__cause__ or error}".split())[:200]
    return None


@contextmanager
def in_training(policy: Policy) -> Iterator[None]:
    """In training mode for a while, without a trace of it in modules and gradients."""
    evaluating = [module for module in policy.modules() if not module.training]
    policy.train()
    try:
        yield
    finally:
        for module in evaluating:
            module.training = False
        policy.zero_grad()


@contextmanager
def _compiled(policy: Policy) -> Iterator[None]:
    policy.compile_layers(True, strict=True)
    try:
        yield
    finally:
        policy.compile_layers(False)


@contextmanager
def _rounded_once_more(policy: Policy, autocast: Autocast) -> Iterator[None]:
    """What goes into each layer is moved by as much as a rounding can move it in the type that the run computes in."""
    device = policy.device
    with autocast():
        narrow = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if narrow else next(policy.parameters()).dtype
    most = torch.finfo(dtype).eps / 2

    def nudge(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, *others = inputs
        # the same signs each time, since checkpointing may come here again
        generator = torch.Generator(device).manual_seed(0)
        up = torch.randint(0, 2, states.shape, generator=generator, device=device, dtype=torch.bool)
        return torch.where(up, states * (1 + most), states * (1 - most)), *others

    hooks = [layer.register_forward_pre_hook(nudge) for layer in policy.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _difference(
    policy: Policy, packed: PackedPairs, autocast: Autocast, other: AbstractContextManager[None]
) -> tuple[float, float]:
    """How far another way to compute is from the layers as they are.

    Returns:
        Mean absolute difference of the log-probs, nats; norm of the gradients' difference over that of the gradient.
    """
    policy.zero_grad()
    own = _add_gradient(policy, packed, autocast, -1.0)
    norm = gradient_norm(policy)
    with other:
        theirs = _add_gradient(policy, packed, autocast, 1.0)  # onto the negative one: there is never more than one
    return float((theirs - own).abs().mean()), gradient_norm(policy) / norm


def _add_gradient(policy: Policy, packed: PackedPairs, autocast: Autocast, sign: float) -> Tensor:
    """Add the gradient of an uneven sum, no part of which cancels, and return the log-probs."""
    with autocast():
        logps: Tensor = policy(packed)
    weights = torch.linspace(0.5, 1.0, len(logps), device=logps.device) * sign / len(logps)
    torch.autograd.backward((logps * weights).sum())
    return logps.detach()
