"""How much memory a run needs, known before the weights are read, and how large a micro-batch may be.

On top of weights, gradients and moments a training step has its peak in one of these places:

    end of the forward pass       what layers keep, autocast's copies of the weights, a chunk of logits
    backward pass of the head     what layers keep, the copies still wanted, the head's gradient, a chunk of logits
    passes through a layer        what layers keep, and what is only held while one layer is computed

Autocast keeps its copy of a trained float32 weight until the forward pass ends; a copy of a frozen one lives only while
it is used. The backward pass wants either, unless layers are computed again. What is counted here is what tensors take;
tests count the tensors of real steps against it.
"""

import gc
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil
import torch

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.load import ParameterCounts

_GB = 1e9
_CPU_HELD_BACK = 4 / 3  # a CPU's allocator takes more than autograd saves (seen: 1.3 times)
_MOST_TOKENS = {"cuda": 16384, "cpu": 1024}  # larger micro-batches gain nothing (seen on a CPU: 512 to 2,048)
_WORTH_KEEPING = {"cuda": 8192, "cpu": 512}  # where so many fit, computing layers again gains nothing
_ROOM_SHARE = 0.8  # of what the state leaves free, for a budget that is not set


@dataclass(frozen=True, slots=True)
class Phase:
    """A place where a step may have its peak.

    Attributes:
        fixed: bytes whatever the micro-batch.
        per_token: bytes of each of its tokens.
        has_logits: whether a chunk of logits is held.
    """

    fixed: int
    per_token: int
    has_logits: bool


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes, by what they are for, and what the device has.

    Attributes:
        state: weights, gradients and optimizer state.
        phases: what comes on top, at one time or another.
        logit_row, chunk_rows: bytes of one token's logits, and for how many tokens they are held at once.
        available: what is free on the device.
    """

    state: int
    phases: tuple[Phase, ...]
    logit_row: int
    chunk_rows: int
    available: int

    def total(self, microbatch_tokens: int) -> int:
        """The peak of a step whose largest micro-batch has so many tokens."""
        logits = self.logit_row * min(self.chunk_rows, microbatch_tokens)
        return self.state + max(
            phase.fixed + phase.per_token * microbatch_tokens + phase.has_logits * logits for phase in self.phases
        )

    def fits(self, microbatch_tokens: int) -> bool:
        return self.total(microbatch_tokens) <= self.available

    def comfortable_tokens(self, most: int) -> int:
        """Most tokens of a micro-batch, up to `most`, in 80 % of what the state leaves free; 0 if there are none."""
        limit = self.state + int(_ROOM_SHARE * (self.available - self.state))
        return bisect_right(range(1, most + 1), limit, key=self.total)


def training_need(
    config: Any,
    parameters: ParameterCounts,
    *,
    weights: torch.dtype,
    compute: torch.dtype,
    lora_rank: int | None,
    checkpointing: bool,
    longest_row: int,
    device: torch.device,
    available: int,
) -> MemoryNeed:
    """What training takes: `training_need(...).total(tokens)` is the predicted peak, in bytes of tensors.

    Args:
        config: the model's text configuration.
        parameters: of the model, adapters among them.
        weights: type of the weights; adapters are float32 whatever it is.
        compute: type of the matrix products.
        lora_rank: rank of the adapters; None where all weights are trained.
        checkpointing: whether layers are computed again in the backward pass.
        longest_row: tokens of the longest sequence.
        device: where it runs.
        available: its free bytes.
    """
    trains_all = lora_rank is None
    head = int(config.vocab_size) * int(config.hidden_size)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    embeddings = head if tied else 2 * head
    narrowed = compute.itemsize < weights.itemsize
    trained = parameters.trainable - (embeddings if trains_all else 0)
    frozen = 0 if trains_all else parameters.total - parameters.trainable - embeddings
    cached = trained * compute.itemsize if compute.itemsize < (weights.itemsize if trains_all else 4) else 0
    wanted = 0 if checkpointing else cached + (frozen * compute.itemsize if narrowed else 0)
    token = _token_bytes(config, weights, compute, lora_rank, longest_row, device)
    stacked = int(config.num_hidden_layers) * (token.input if checkpointing else token.layer)
    kept = stacked + token.last
    phases = [
        Phase(max(cached, wanted) + (head * compute.itemsize if narrowed else 0), kept, has_logits=True),
        Phase(wanted + head_bytes(head, compute, narrowed=narrowed, trained=trains_all), kept, has_logits=True),
        # the gradient of a tied head waits for that of the embedding
        Phase(
            wanted + (4 * head if tied and trains_all else 0),
            stacked + token.gradients + (token.layer if checkpointing else 0),
            has_logits=False,
        ),
    ]
    if checkpointing:  # a layer holds half of it at once when it only runs forward
        phases.append(Phase(cached, stacked + token.layer // 2, has_logits=False))
    return MemoryNeed(
        state=state_bytes(parameters, weights, adapters=not trains_all),
        phases=tuple(phases),
        logit_row=logit_bytes(config, compute),
        chunk_rows=chunk_rows(int(config.vocab_size), device),
        available=available,
    )


def scoring_need(
    config: Any,
    parameters: ParameterCounts,
    *,
    weights: torch.dtype,
    compute: torch.dtype,
    longest_row: int,
    device: torch.device,
    available: int,
) -> MemoryNeed:
    """What a forward pass takes that keeps nothing; the arguments are those of `training_need`."""
    head = int(config.vocab_size) * int(config.hidden_size)
    narrowed = compute.itemsize < weights.itemsize
    token = _token_bytes(config, weights, compute, None, longest_row, device)
    return MemoryNeed(
        state=parameters.total * weights.itemsize,
        phases=(
            Phase(head * compute.itemsize if narrowed else 0, token.last, has_logits=True),
            Phase(0, token.layer // 2 + 2 * token.input, has_logits=False),
        ),
        logit_row=logit_bytes(config, compute),
        chunk_rows=chunk_rows(int(config.vocab_size), device),
        available=available,
    )


def state_bytes(parameters: ParameterCounts, weights: torch.dtype, *, adapters: bool) -> int:
    """Weights, gradients and the two moments of Adam: 16 bytes for each trainable float32 parameter.

    Frozen parameters take their weights only; adapters are float32 whatever the weights below them are.
    """
    trained = 4 if adapters else weights.itemsize
    return parameters.trainable * 4 * trained + (parameters.total - parameters.trainable) * weights.itemsize


def head_bytes(parameters: int, compute: torch.dtype, *, narrowed: bool, trained: bool) -> int:
    """What the output head takes in its backward pass: its copy in the compute type, and its gradient in float32."""
    return parameters * ((compute.itemsize if narrowed else 0) + (4 if trained else 0))


def logit_bytes(config: Any, compute: torch.dtype) -> int:
    """Of one token's logits: in float32, in the compute type if that is another, and once more if they are capped."""
    narrow = compute.itemsize if compute.itemsize < 4 else 0
    capped = 4 if getattr(config, "final_logit_softcapping", None) else 0
    return int(config.vocab_size) * (4 + narrow + capped)


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """For how many tokens `logprobs` holds logits at once, at most."""
    return 4096 if device.type == "cuda" else max(128, (1 << 24) // vocab_size)


class _TokenBytes(NamedTuple):
    """Bytes of one token.

    Attributes:
        layer: what a layer keeps for the backward pass.
        gradients: what its backward pass holds at once: of two wide arrays and of the layer's output.
        input: a layer's input, in the type of the embedding.
        last: what is kept around the last norm, and the head's input with its gradient.
    """

    layer: int
    gradients: int
    input: int
    last: int


def _token_bytes(
    config: Any,
    weights: torch.dtype,
    compute: torch.dtype,
    lora_rank: int | None,
    longest_row: int,
    device: torch.device,
) -> _TokenBytes:
    """What a token takes in a transformer whose feed-forward is gated.

    Norms keep their input in float32, and what they scale if the scale is trained. Autocast gives each of the five
    products that share an input a copy of its own, where that is not in the compute type already. Attention keeps
    queries, keys, values, output and a normaliser for each head; models that cap their scores keep those too on a CPU,
    a number for every head and key. The feed-forward keeps four wide arrays, each adapted product one of its rank.
    """
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    heads = int(getattr(config, "num_attention_heads", None) or 1)  # a model's own code may have no attention
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_width = int(getattr(config, "head_dim", None) or hidden // heads)
    norms = 4 if str(config.model_type).startswith(("gemma2", "gemma3")) else 2
    narrowed = compute.itemsize < weights.itemsize
    layer = norms * hidden * (4 + (weights.itemsize if lora_rank is None else 0))
    layer += hidden * (5 * compute.itemsize if narrowed else 2 * weights.itemsize)
    layer += 2 * (heads + key_heads) * head_width * compute.itemsize + 4 * heads
    layer += 4 * wide * compute.itemsize
    layer += 7 * (lora_rank or 0) * compute.itemsize
    if device.type == "cpu" and getattr(config, "attn_logit_softcapping", None):
        layer += 12 * heads * longest_row
    sizes = (
        layer,
        2 * wide * compute.itemsize + hidden * weights.itemsize,
        hidden * weights.itemsize,
        hidden * (4 + 3 * weights.itemsize + 2 * compute.itemsize),
    )
    return _TokenBytes(*(int(size * _CPU_HELD_BACK) if device.type == "cpu" else size for size in sizes))


def available_bytes(device: torch.device) -> int:
    """Free memory of the device: of the card, or of the machine.

    What torch has cached of a card's memory counts as free: it is given back first.
    """
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
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
    return max(longest, need.comfortable_tokens(_MOST_TOKENS[device.type]))


def is_worth_checkpointing(
    plain: MemoryNeed, device: torch.device, *, longest: int, step_tokens: int, budget: int | None
) -> bool:
    """What `gradient_checkpointing: auto` is: whether too little fits without.

    Enough is the budget where one is set, else 8,192 tokens on a card and 512 on a CPU, or the whole step where that is
    less, and in any case the longest pair.

    Args:
        plain: the memory of the run without checkpointing.
        device: where it runs.
        longest: tokens that the longest pair needs by itself.
        step_tokens: tokens of a step.
        budget: tokens of a micro-batch as the recipe sets them; None for auto.
    """
    if budget is not None:
        return not plain.fits(budget)
    enough = max(longest, min(_WORTH_KEEPING[device.type], step_tokens))
    return plain.comfortable_tokens(enough) < enough


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
        return f"{line}, gradient checkpointing {'on' if checkpointing else 'off'}"
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
