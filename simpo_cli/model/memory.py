"""How much memory a run needs, known before the weights are read, and how large a micro-batch may be."""

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.load import ParameterCounts

_GB = 1e9
_LOGIT_CHUNKS = 4 * (64 << 20)  # logits, their log-softmax and gradients, of one chunk
_CPU_TOKENS = 1024  # larger micro-batches gain nothing on a CPU (seen: 512 to 2,048) and take a megabyte a token
_CUDA_TOKENS = 65536


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes, by what they are for, and what the device has.

    Attributes:
        state: weights, gradients and optimizer state.
        per_token: activations that one token keeps for the backward pass.
        available: what is free on the device.
    """

    state: int
    per_token: int
    available: int

    def total(self, microbatch_tokens: int) -> int:
        return self.state + self.per_token * microbatch_tokens + _LOGIT_CHUNKS

    def fits(self, microbatch_tokens: int) -> bool:
        return self.total(microbatch_tokens) <= self.available


def state_bytes(parameters: ParameterCounts, weights: torch.dtype, *, adapters: bool) -> int:
    """Weights, gradients and the two moments of Adam: 16 bytes for each trainable float32 parameter.

    Frozen parameters take their weights only; adapters are float32 whatever the weights below them are.
    """
    trained = 4 if adapters else weights.itemsize
    return parameters.trainable * 4 * trained + (parameters.total - parameters.trainable) * weights.itemsize


def activation_bytes_per_token(config: Any, *, compute: torch.dtype, checkpointing: bool, longest_row: int) -> int:
    """An upper estimate of what a token leaves behind for the backward pass of a transformer.

    A layer keeps about its inputs, normalised inputs, queries, keys, values, attention output and the three wide arrays
    of a gated feed-forward, some of them twice (in float32 and in the compute type). Models that cap their attention
    scores keep those too, a number for every head and key. With gradient checkpointing a layer keeps its input, and one
    layer at a time the rest. A third is added for what allocators hold back (seen on a CPU: 1.3 times what autograd had
    saved).

    Args:
        config: the model's text configuration.
        compute: type of the matrix products.
        checkpointing: whether layers are computed again in the backward pass.
        longest_row: tokens of the longest sequence.
    """
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers = int(config.num_hidden_layers)
    per_layer = (8 * hidden + 4 * wide) * compute.itemsize + 6 * hidden * 4
    if getattr(config, "attn_logit_softcapping", None):
        per_layer += 12 * int(config.num_attention_heads) * longest_row
    kept = layers * hidden * 4 + per_layer if checkpointing else layers * per_layer
    return kept * 4 // 3


def available_bytes(device: torch.device) -> int:
    """Free memory of the device: of the card, or of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def choose_budget(need: MemoryNeed, device: torch.device, longest: int) -> int:
    """Tokens of a micro-batch for `tokens_per_microbatch: auto`: what fits in 80 % of the memory left by the state.

    Args:
        need: the memory of the run.
        device: where it runs.
        longest: tokens that the longest pair needs by itself.
    """
    most = _CUDA_TOKENS if device.type == "cuda" else _CPU_TOKENS
    room = int(0.8 * (need.available - need.state - _LOGIT_CHUNKS))
    return max(longest, min(most, room // max(1, need.per_token)))


def require_memory(need: MemoryNeed, microbatch_tokens: int, *, adapters: bool, checkpointing: bool) -> str:
    """One line that says what the run needs and what there is.

    Raises:
        UserError: it does not fit; exit code 4, with the remedies that this recipe has not used yet.
    """
    total = need.total(microbatch_tokens)
    line = (
        f"about {total / _GB:.1f} GB of {need.available / _GB:.1f} GB free: {need.state / _GB:.2f} weights, gradients "
        f"and optimizer, {(total - need.state) / _GB:.2f} micro-batches of up to {microbatch_tokens:,} tokens"
    )
    if need.fits(microbatch_tokens):
        return line
    remedies = [
        *([] if adapters else ["train adapters (add lora to defaults)"]),
        *([] if checkpointing else ["set model.gradient_checkpointing: true"]),
        "lower data.max_length or train.tokens_per_microbatch",
        "use a smaller model",
    ]
    raise UserError(
        f"the run does not fit in memory: it needs {line}.",
        f"Try one of: {'; '.join(remedies)}.",
        exit_code=ExitCode.ENVIRONMENT,
    )
