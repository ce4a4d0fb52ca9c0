"""Log-probabilities of given tokens without the whole of the logits.

Logits of one token take as many numbers as the vocabulary has entries; for a micro-batch they would outweigh everything
else. So the head works on a chunk of positions at a time, the log-softmax of the chunk is taken in float32, one number
a token is kept, and the backward pass computes the chunk again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MB as float32


@dataclass(frozen=True, slots=True)
class LogitScale:
    """What a model does to its logits behind the head.

    Attributes:
        factor: multiplied in first (cohere: logit_scale; granite: 1 / logits_scaling).
        soft_cap: then cap * tanh(logits / cap), as gemma2 has it; None for none.
    """

    factor: float = 1.0
    soft_cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.factor != 1.0:
            logits = logits * self.factor
        if self.soft_cap is not None:
            logits = self.soft_cap * torch.tanh(logits / self.soft_cap)
        return logits


def logit_scale_of(config: Any) -> LogitScale:
    """Read a model's logit scaling from its (text) configuration."""
    factor = float(getattr(config, "logit_scale", None) or 1.0)
    if scaling := getattr(config, "logits_scaling", None):
        factor = 1.0 / float(scaling)
    return LogitScale(factor, getattr(config, "final_logit_softcapping", None))


def token_logprobs(states: Tensor, targets: Tensor, head: nn.Module, scale: LogitScale, vocab_size: int) -> Tensor:
    """log p(target | states) of each position.

    Args:
        states: (N, H) hidden states, each before the token it predicts.
        targets: (N,) int64 ids.
        head: the model's output head; called as a module, so that hooks and adapters on it count.
        scale: what the model does to its logits.
        vocab_size: number of logits of a position, which sets the chunk.

    Returns:
        (N,) float32.
    """
    chunk = max(1, _CHUNK_ELEMENTS // vocab_size)
    step: Callable[..., Tensor] = _chunk_logprobs
    pieces = []
    for start in range(0, len(targets), chunk):
        arguments = (states[start : start + chunk], targets[start : start + chunk], head, scale)
        if torch.is_grad_enabled():
            pieces.append(checkpoint(step, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(step(*arguments))
    return torch.cat(pieces)


def _chunk_logprobs(states: Tensor, targets: Tensor, head: nn.Module, scale: LogitScale) -> Tensor:
    logits = scale(head(states).float())
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)
