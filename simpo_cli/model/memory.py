"""Memory: what a run needs, known before the weights are read, and how large a micro-batch may be.

On top of weights, gradients and moments a training step has its peak in one of these places:

    end of the forward pass       what layers keep, autocast's copies of the weights, a chunk of logits
    backward pass of the head     what layers keep, the copies still wanted, the head's gradient, a chunk of logits
    passes through a layer        what layers keep, and what is only held while one layer is computed

Autocast keeps its copy of a trained float32 weight until the forward pass ends; a copy of a frozen one lives only while
it is used. The backward pass wants either, unless layers are computed again. What is counted here is what tensors take;
tests count the tensors of real steps against it.

Of several devices each takes what one would, where the model is replicated, and a bucket of gradients while they are
added up. Under fsdp2 it has its share of the state, and whole beside it

    in all of a step              the root group: embedding, head and last norm
    start of the forward pass     that group and the first layer once more, as they come in
    passes through a layer        the layer and the next one as it comes in; on the way back its gradient too, and that
                                  of the layer before as it goes out
    end of the backward pass      the gradient of the root group, twice
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from simpo_cli.data.model_files import Quantization
from simpo_cli.distributed.gradients import BUCKET_BYTES
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.attention.interface import heads_of
from simpo_cli.model.backend import backend_of
from simpo_cli.model.load import ParameterCounts
from simpo_cli.model.logprobs import logit_scale_of, most_chunk_rows, plain_bytes_per_logit
from simpo_cli.model.moments import moments_size
from simpo_cli.model.quantised import bytes_held, bytes_in_product
from simpo_cli.model.widened import product_dtype

_GB = 1e9


class _Heap(NamedTuple):
    """How much more than tensors an allocator takes."""

    each: float = 1.0  # bytes of one byte
    gathered: float = 1.0  # of one that is gathered
    again: float = 1.0  # layers of one that is computed again
    keeps_logits: bool = False  # whether what the head's logits took fits no layer afterwards


# A CPU's heap keeps what was freed and has gaps, and gloo copies (make bench-memory, make bench-savings).
_CPU_HEAP = _Heap(each=1.35, gathered=2.4, again=4, keeps_logits=True)
_ROOM_SHARE = 0.8  # of what the state leaves free, for a budget that is not set


Strategy = Literal["none", "ddp", "fsdp2"]
"""One device; the whole model on each of several; weights, gradients and optimizer state divided among them."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A place where a step may have its peak."""

    fixed: int  # bytes whatever the micro-batch: copies of weights, and the head's gradient
    per_token: int  # bytes of each of its tokens
    has_logits: bool  # whether a chunk of logits is held
    gathered: int = 0  # bytes of what is else divided and whole now, and of buckets


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of one device, by what they are for, and what it has."""

    weights: int
    gradients: int
    optimizer: int
    phases: tuple[Phase, ...]  # what comes on top, at one time or another
    logit_row: int  # of one token's logits
    chunk_rows: int  # for how many tokens logits are held at once
    available: int  # what is free on the device
    on_host: int = 0  # of weights, gradients and optimizer state: what the host holds for this device
    on_host_per_token: int = 0  # of what layers keep of each token of a micro-batch
    heap: float = 1.0  # bytes that the device takes for one of what layers keep

    @property
    def state(self) -> int:
        """Weights, gradients and optimizer state."""
        return self.weights + self.gradients + self.optimizer

    def parts(self, microbatch_tokens: int) -> dict[str, int]:
        """The peak of a step whose largest micro-batch has so many tokens, by what it is for."""
        logits = self.logit_row * min(self.chunk_rows, microbatch_tokens)
        peaks = [
            {
                "copies": phase.fixed,
                "gathered": phase.gathered,
                "activations": phase.per_token * microbatch_tokens,
                "logits": phase.has_logits * logits,
            }
            for phase in self.phases
        ]
        highest = max(peaks, key=lambda parts: sum(parts.values()))
        return {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer, **highest}

    def total(self, microbatch_tokens: int) -> int:
        """The peak of a step whose largest micro-batch has so many tokens."""
        return sum(self.parts(microbatch_tokens).values())

    def hosted(self, microbatch_tokens: int) -> int:
        """What the host holds for this device in a step whose largest micro-batch has so many tokens."""
        return self.on_host + self.on_host_per_token * microbatch_tokens

    def kept(self, microbatch_tokens: int) -> int:
        """What of `total` layers have kept when the forward pass of so many tokens ends."""
        return self.phases[0].per_token * microbatch_tokens

    def fits(self, microbatch_tokens: int) -> bool:
        return self.total(microbatch_tokens) <= self.available

    def comfortable_tokens(self, most: int) -> int:
        """Most tokens of a micro-batch, up to `most`, in 80 % of what the state leaves free; 0 if there are none."""
        limit = self.state + int(_ROOM_SHARE * (self.available - self.state))
        return bisect_right(range(1, most + 1), limit, key=self.total)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is known of a run before its weights are read, and what it takes of memory, in bytes of tensors."""

    config: Any  # the model's text configuration
    parameters: ParameterCounts  # of the model, adapters among them
    weights: torch.dtype  # type of the weights; adapters are float32 whatever it is
    compute: torch.dtype  # type of the matrix products
    quantization: Quantization | None = None  # how linear layers are held, where not as the other weights
    lora_rank: int | None = None  # rank of the adapters; None where all weights are trained, or none
    longest_row: int  # tokens of the longest sequence
    device: torch.device  # where it runs, one of them if there are several
    available: int  # its free bytes
    strategy: Strategy = "none"
    ranks: int = 1  # how many devices there are
    cpu_offload: bool = False  # whether fsdp2 keeps what is divided in the memory of the host
    optimizer: str = "adamw"  # of the recipe
    activation_offload: bool = False  # whether what layers keep is there until the backward pass wants it

    def training(self, *, checkpointing: bool) -> MemoryNeed:
        """What a training step takes; with `checkpointing` layers are computed again in the backward pass."""
        copy, trains_all, divided = self.compute.itemsize, self.lora_rank is None, self.strategy == "fsdp2"
        total, trainable = self.parameters.total, self.parameters.trainable
        tied = bool(getattr(self.config, "tie_word_embeddings", False))
        embeddings = self._head if tied else 2 * self._head
        trained = trainable - (embeddings if trains_all else 0)
        frozen = 0 if trains_all else total - trainable - embeddings
        if self.quantization is not None:
            frozen -= self.parameters.linear  # dequantised in the type of the products
        copied = trained * copy if copy < self._trained_size else 0
        cached = 0 if divided else copied  # what is gathered anew is cast anew
        wanted = 0 if checkpointing else copied + (frozen * copy if self._narrowed else 0)
        head_copy, head_gradient = self._head_copy, self.weights.itemsize * self._head if trains_all else 0
        token, whole = self._token_bytes(), self._whole
        stacked = int(self.config.num_hidden_layers) * (token.input if checkpointing else token.layer)
        offloaded, stacked = (stacked, 0) if self.activation_offload else (0, stacked)
        a_layer_at_a_time = checkpointing or self.activation_offload
        kept, beside = stacked + token.last, whole.root + whole.layer
        again = token.alone if a_layer_at_a_time else 0
        # a CPU has no product of bfloat16 that adds to float32
        head_product = head_copy if trains_all and self._narrowed and self._on_cpu else 0
        if trains_all and self.weights.itemsize < 4:  # its gradient is added up in float32 first
            head_product += 4 * self._head
        # the last weight of a layer to get its gradient, and that gradient, before it is widened
        narrow = 2 * copy * int(self.config.hidden_size) ** 2 if trains_all and self._narrowed else 0
        phases = [
            Phase(max(cached, wanted) + head_copy, kept, has_logits=True, gathered=beside),
            Phase(wanted + head_copy + head_gradient + head_product, kept, has_logits=True, gathered=beside),
            # the gradient of a tied head waits for that of the embedding, that of a divided one for its whole group
            Phase(
                wanted + narrow + self._in_product + (head_gradient if tied or divided else 0),
                stacked + token.gradients + again,
                has_logits=a_layer_at_a_time and self._heap.keeps_logits,
                gathered=beside + whole.layer + 2 * whole.layer_gradient,
            ),
            # and both are there while they are added up
            Phase(
                head_gradient * (3 if tied else 1 + divided),
                token.input,
                has_logits=False,
                gathered=whole.root + whole.layer_gradient,
            ),
        ]
        if a_layer_at_a_time or divided:  # a layer holds half of it at once when it only runs forward
            gathered = beside + 2 * whole.layer
            fixed = max(cached, wanted) + self._in_product
            phases.append(Phase(fixed, stacked + again // 2, has_logits=False, gathered=gathered))
        if divided:
            ending = 2 * whole.root_gradient + whole.root_gradient // self.ranks
            phases += (Phase(0, 2 * token.input, has_logits=False, gathered=size) for size in (2 * beside, ending))
        if self.optimizer != "adamw" and self._trained_size == 4 and self._on_cpu:
            # the update by bitsandbytes, which makes five arrays of float32 there for the tensor that it moves
            phases.append(Phase(5 * 4 * max(self.parameters.trained_sizes, default=0), 0, has_logits=False))
        if self.strategy == "ddp":
            bucket = min(max(BUCKET_BYTES, head_gradient), 4 * trainable)
            phases.append(Phase(0, 0, has_logits=False, gathered=bucket))
        return replace(self._need(self._state(), phases), on_host_per_token=offloaded)

    def scoring(self) -> MemoryNeed:
        """What a forward pass takes that keeps nothing."""
        token = self._token_bytes()
        phases = [
            Phase(self._head_copy, token.last, has_logits=True),
            Phase(self._in_product, token.alone // 2 + 2 * token.input, has_logits=False),
        ]
        return self._need(_State(self._bytes_of_weights(self.parameters.total)), phases)

    def _need(self, state: "_State", phases: list[Phase]) -> MemoryNeed:
        vocab_size = int(self.config.vocab_size)
        row = vocab_size * plain_bytes_per_logit(self._products, logit_scale_of(self.config))
        heap = self._heap.each
        gathered = self._heap.gathered if self.strategy == "fsdp2" else heap
        return MemoryNeed(
            **state._asdict(),
            phases=tuple(
                replace(phase, fixed=int(phase.fixed * heap), gathered=int(phase.gathered * gathered))
                for phase in phases
            ),
            logit_row=int(row * heap),
            chunk_rows=most_chunk_rows(self.device, vocab_size),
            available=self.available,
            heap=heap,
        )

    def _state(self) -> "_State":
        """16 bytes for each trainable float32 parameter, with moments in float32: weight, gradient and two moments."""
        trained = self.parameters.trainable * self._trained_size
        frozen = self._bytes_of_weights(self.parameters.total - self.parameters.trainable)
        moments = moments_size(self.optimizer, self.parameters, self._trained_size)
        if self.strategy != "fsdp2":
            return _State(trained + frozen, trained, moments)
        if self.lora_rank is None:
            part, of_moments = -(-trained // self.ranks), -(-moments // self.ranks)
            return _State(on_host=2 * part + of_moments) if self.cpu_offload else _State(part, part, of_moments)
        part = -(-frozen // self.ranks)  # adapters are whole on every device
        offloaded = part if self.cpu_offload else 0
        return _State(trained + part - offloaded, trained, moments, offloaded)

    def _bytes_of_weights(self, count: int) -> int:
        """Bytes of so many weights, all linear layers among them."""
        if self.quantization is None:
            return count * self.weights.itemsize
        linear, rows = self.parameters.linear, self.parameters.linear_rows
        return (count - linear) * self.weights.itemsize + bytes_held(self.quantization, linear, rows)

    @property
    def _in_product(self) -> int:
        """What the largest weight that is held narrower takes while it is multiplied, and its gradient meanwhile."""
        largest = self.parameters.largest_linear
        if self.quantization is not None:
            return bytes_in_product(self.quantization, largest, self._products, self.device)
        return largest * (4 if self.lora_rank is not None else 6) if self._widened else 0

    @property
    def _whole(self) -> "_Whole":
        """What fsdp2 makes whole; nothing under another strategy."""
        if self.strategy != "fsdp2":
            return _Whole(0, 0, 0, 0)
        counts = (self.parameters.outside_layers, self.parameters.largest_layer)
        root, layer = (count * self.weights.itemsize for count in counts)
        return _Whole(root, layer, root, layer) if self.lora_rank is None else _Whole(root, layer, 0, 0)

    @property
    def _trained_size(self) -> int:
        """Bytes of a trained weight: adapters are float32 whatever the weights below them are."""
        return self.weights.itemsize if self.lora_rank is None else 4

    @property
    def _narrowed(self) -> bool:
        """Whether autocast makes narrower copies of the weights."""
        return self.compute.itemsize < self.weights.itemsize

    @property
    def _states(self) -> torch.dtype:
        """The type of hidden states."""
        return min(self.weights, self.compute, key=lambda dtype: dtype.itemsize)

    @property
    def _products(self) -> torch.dtype:
        return self.compute if self.compute == self._states else product_dtype(self._states, self.device)

    @property
    def _widened(self) -> bool:
        """Whether weights and states are widened for a product, see `widened`."""
        return self._products.itemsize > self._states.itemsize

    @property
    def _head(self) -> int:
        """Parameters of the output head."""
        return int(self.config.vocab_size) * int(self.config.hidden_size)

    @property
    def _head_copy(self) -> int:
        return self._head * self._products.itemsize if self._narrowed or self._widened else 0

    def _token_bytes(self) -> "_TokenBytes":
        """What a token takes in a transformer whose feed-forward is gated.

        Norms keep their input in float32, and what they scale if the scale is trained. Autocast gives each of the five
        products that share an input a copy of its own, where that is not in the compute type already. Attention keeps
        queries, keys, values, output and a normaliser for each head; models that cap their scores keep those too on a
        CPU, a number for every head and key. The feed-forward keeps four wide arrays, each adapted product one of its
        rank, and its gradient is scaled in an array of its own.
        """
        config, weight, copy = self.config, self.weights.itemsize, self._states.itemsize
        hidden = int(config.hidden_size)
        wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
        heads, key_heads, width = heads_of(config)
        norms = 4 if str(config.model_type).startswith(("gemma2", "gemma3")) else 2
        layer = norms * hidden * (4 + (weight if self.lora_rank is None else 0))
        layer += hidden * (5 * copy if self._narrowed else 2 * weight)
        layer += 2 * (heads + key_heads) * width * copy + 4 * heads
        layer += 4 * wide * copy
        layer += 7 * (self.lora_rank or 0) * copy
        cast = self.lora_rank is not None and self.compute != self._states
        if cast:  # float32 copies for the adapters instead of what they come from
            layer += (20 - 2 * weight) * hidden + (4 - copy) * (heads * width + wide)
        if self._on_cpu and getattr(config, "attn_logit_softcapping", None):
            layer += 12 * heads * self.longest_row
        gradients = 2 * wide * copy + hidden * weight
        if self.lora_rank is not None:
            gradients += 2 * (hidden + self.lora_rank) * copy
        if self._widened or cast:
            gradients += 4 * (hidden + wide)
        alone = layer * min(self._heap.again, int(config.num_hidden_layers))
        sizes = (layer, alone, gradients, hidden * weight, hidden * (4 + 3 * weight + 2 * self._products.itemsize))
        return _TokenBytes(*(int(size * self._heap.each) for size in sizes))

    @property
    def _on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def _heap(self) -> _Heap:
        return _CPU_HEAP if self._on_cpu else _Heap()


class _State(NamedTuple):
    """Bytes of what stays from step to step, see `MemoryNeed`."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    on_host: int = 0


class _Whole(NamedTuple):
    """Bytes of divided weights and of their gradients while they are whole; the root group is all outside of layers."""

    root: int
    layer: int
    root_gradient: int
    layer_gradient: int


class _TokenBytes(NamedTuple):
    """Bytes of one token."""

    layer: int  # what a layer keeps for the backward pass
    alone: int  # the same where only one layer does at a time, with the gaps that the others left
    gradients: int  # what its backward pass holds at once: of two wide arrays and of the layer's output
    input: int  # a layer's input, in the type of the embedding
    last: int  # what is kept around the last norm, and the head's input with its gradient


def choose_budget(need: MemoryNeed, device: torch.device, longest: int) -> int:
    """Tokens of a micro-batch for `tokens_per_microbatch: auto`: what fits in 80 % of the memory left by the state.

    Args:
        longest: tokens that the longest pair needs by itself.
    """
    return max(longest, need.comfortable_tokens(backend_of(device).most_tokens))


def is_worth_checkpointing(
    plain: MemoryNeed, device: torch.device, *, longest: int, step_tokens: int, budget: int | None
) -> bool:
    """What `gradient_checkpointing: auto` is: whether too little fits without.

    Enough is the budget where one is set, else 8,192 tokens on a card and 512 on a CPU, or the whole step where that is
    less, and in any case the longest pair.

    Args:
        plain: the memory of the run without checkpointing.
        longest: tokens that the longest pair needs by itself.
        budget: tokens of a micro-batch as the recipe sets them; None for auto.
    """
    if budget is not None:
        return not plain.fits(budget)
    enough = max(longest, min(backend_of(device).tokens_worth_keeping, step_tokens))
    return plain.comfortable_tokens(enough) < enough


def choose_strategy(work: Workload, *, longest: int, may_checkpoint: bool) -> Strategy:
    """What `distributed.strategy: auto` is: on several devices the model is divided only if it does not fit whole.

    Args:
        longest: tokens that the longest pair needs by itself.
        may_checkpoint: whether the recipe lets layers be computed again.
    """
    if work.ranks == 1:
        return "none"
    if work.cpu_offload:  # replicas cannot
        return "fsdp2"
    replicated = replace(work, strategy="ddp").training(checkpointing=may_checkpoint)
    return "ddp" if replicated.fits(longest) else "fsdp2"


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
