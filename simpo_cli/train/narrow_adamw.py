"""AdamW of weights in bfloat16 or float16: arithmetic and moments are float32, or 8 bits, whatever the weights are.

torch's AdamW keeps both moments in the type of the weights. In bfloat16 the second one then never falls, as 0.999 of a
number rounds to the number itself, and in float16 most squares of gradients are 0. And an update that is smaller than
half the distance to the next weight is rounded away: a bfloat16 weight of 0.02 does not move by 1e-6, however often.

So bfloat16 weights are rounded stochastically: a number between two weights becomes the upper one with the probability
of its share of the way, and the expected weight is the number itself. float16 weights are rounded to the nearest, and
what that takes is counted (HEA005).

The noise is arithmetic on seed, step, tensor and place in the tensor. A resumed run, every rank of ddp and the shards
of fsdp2 round alike, on any device, and no random generator is drawn from.

8-bit moments are torchao's `OptimState8bit`: codes into a map of 256 values, and a scale for each 256 numbers. Its
`AdamW8bit` is not used for three reasons: it compiles the step anew for each shape, which took 88 s for a model of four
small ones and needs a C++ compiler on a CPU; it keeps the moments of small tensors in bfloat16; and it draws from
torch's global generator.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn, optim

from simpo_cli.distributed.sharded import is_sharded, local, rows_of
from simpo_cli.model.moments import BLOCK, is_held_in_8_bits

_PIECE = 2**22  # numbers that are moved at once, whole blocks: what is made on the way stays small beside the state


class NarrowAdamW(optim.Optimizer):
    """See the module; float32 weights among the others are moved as torch's AdamW moves them.

    Args:
        weights: what is trained.
        weight_decay: decoupled, as in torch's AdamW.
        seed: of the noise that rounds bfloat16 weights.
        state_type: `OptimState8bit` for 8-bit moments; None for float32 ones.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], *, weight_decay: float, seed: int, state_type: Any = None
    ) -> None:
        defaults = {"lr": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay}
        super().__init__(weights, defaults)
        self._seed, self._state_type = seed, state_type

    def start(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Make the state of a parameter: both moments are 0."""
        moments = {"exp_avg": self._zeros(parameter, signed=True), "exp_avg_sq": self._zeros(parameter, signed=False)}
        state = self.state[parameter] = {"step": 0, **moments}
        return state

    def _zeros(self, parameter: nn.Parameter, *, signed: bool) -> Tensor:
        if self._state_type is not None and is_held_in_8_bits(parameter.numel(), whole_blocks=True):
            zeros: Tensor = self._state_type.zeros(parameter.shape, signed, BLOCK, parameter.device, torch.float32)
            return zeros
        return torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, number, group)

    def _move(self, parameter: nn.Parameter, gradient: Tensor, number: int, group: dict[str, Any]) -> None:
        """Take one step of one tensor, or of this rank's shard of it."""
        state = self.state[parameter] or self.start(parameter)
        state["step"] += 1
        rate, (beta1, beta2), epsilon = group["lr"], group["betas"], group["eps"]
        correction1, correction2 = 1 - beta1 ** state["step"], math.sqrt(1 - beta2 ** state["step"])
        weights = local(parameter.detach())
        flat, flat_gradient = weights.reshape(-1), local(gradient).reshape(-1)
        key = _noise_key(self._seed, state["step"], number)
        first = rows_of(parameter).start * math.prod(parameter.shape[1:]) if is_sharded(parameter) else 0
        for start in range(0, flat.numel(), _PIECE):
            at = slice(start, start + _PIECE)
            kept = [self._piece(local(state[moment]), at) for moment in ("exp_avg", "exp_avg_sq")]
            mean, square = (moment.dequantize() if self._is_8_bit(moment) else moment for moment in kept)
            slope = flat_gradient[at].float()
            mean.lerp_(slope, 1 - beta1)
            square.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            moved = flat[at].float().mul_(1 - rate * group["weight_decay"])
            moved.addcdiv_(mean, (square.sqrt() / correction2).add_(epsilon), value=-rate / correction1)
            if flat.dtype == torch.bfloat16:
                moved = round_to_bfloat16(moved, noise(key, first + start, len(moved), moved.device))
            flat[at] = moved
            for moment, value in zip(kept, (mean, square), strict=True):
                if moment is not value:
                    moment.copy_(value)
        if not weights.is_contiguous():
            weights.copy_(flat.view_as(weights))

    def _piece(self, moment: Tensor, at: slice) -> Tensor:
        """Some of a moment's numbers, in its memory."""
        if not self._is_8_bit(moment):
            return moment.reshape(-1)[at]
        held: Any = moment
        scale = held.scale[at.start // BLOCK : at.stop // BLOCK]
        piece: Tensor = self._state_type(held.codes.view(-1)[at], scale, held.qmap, held.signed, torch.float32)
        return piece

    def _is_8_bit(self, moment: Tensor) -> bool:
        return self._state_type is not None and isinstance(moment, self._state_type)


def round_to_bfloat16(values: Tensor, noise: Tensor) -> Tensor:
    """Each value as one of the two bfloat16 numbers around it, the farther from 0 with probability share of the way.

    Args:
        values: (N,) float32.
        noise: (N,) int32, uniform in 0 to 65,535: added to the 16 bits that bfloat16 lacks, it carries into the others.
    """
    rounded = (values.view(torch.int32) + noise).bitwise_and_(-65536).view(torch.float32)
    return torch.where(values.isnan(), values, rounded).bfloat16()  # of what is no number a carry would make one


def noise(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """16 random bits for each of `count` places from `first` on, (count,) int32: a hash of key and place.

    The hash xors and multiplies the 32 bits of both until each bit of them has moved every bit of the outcome (the
    constants are those of `lowbias32`, Wellons 2018); integers wrap around.
    """
    mixed = torch.arange(count, dtype=torch.int32, device=device).add_(_wrapped(first)).bitwise_xor_(key)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed ^= (mixed >> shift) & ((1 << (32 - shift)) - 1)  # the sign is a bit like the others
        mixed *= _wrapped(factor)
    return (mixed ^ (mixed >> 16)) & 0xFFFF


def _noise_key(seed: int, step: int, number: int) -> int:
    digest = hashlib.blake2s(f"{seed} {step} {number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def _wrapped(number: int) -> int:
    """The signed integer of 32 bits with the lowest bits of a number."""
    return (number + 2**31) % 2**32 - 2**31
