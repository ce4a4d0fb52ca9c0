"""Floating-point operations of a training step, counted, not measured: what the method needs and what padding costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.work import WorkPair

_PASSES = 3  # forward once; backward twice that: a product for the inputs' gradient and one for the weights'


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that the count needs.

    Attributes:
        linear: weights in the linear layers of all blocks; no embedding, no head, no norm.
        layers: blocks.
        attention: width of the queries of a layer, heads times size of a head.
        hidden: width of the states.
        vocabulary: logits of a position.
    """

    linear: int
    layers: int
    attention: int
    hidden: int
    vocabulary: int


def shape_of(config: Any) -> Shape:
    """The shape of a model of the Llama family (gated feed-forward, grouped queries) from its configuration."""
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    block = 2 * hidden * heads * size + 2 * hidden * groups * size + 3 * hidden * wide
    return Shape(layers * block, layers, heads * size, hidden, config.vocab_size)


def needed_flops(shape: Shape, prompt: int, chosen: int, rejected: int, *, frozen: bool = False) -> int:
    """What the method needs for one pair, forward and backward.

    A multiplication with its addition counts as two operations, and only matrix products are counted:

    - linear layers: 2 for every weight and every token of prompt, chosen and rejected, the prompt's once;
    - attention: 2 for the score and 2 for the weighted value, for every number of the queries' width in every layer,
      over the (query, key) pairs that are seen: causal within the prompt and within each response, and every token of
      a response with the whole prompt;
    - the head: 2 for every weight, at the positions that predict a scored token; the prompt's last position predicts
      the first token of both responses and is counted once.

    The backward pass counts twice the forward pass. Recomputation, softmax, norms, the optimizer: not counted, so the
    share of the machine's speed that follows is what is left after them. Under adapters the weights are `frozen`, and a
    product for their gradient is not needed; the adapters' own products are not counted.
    """
    passes = _PASSES - frozen
    tokens = prompt + chosen + rejected
    seen = _causal(prompt) + _causal(chosen) + _causal(rejected) + prompt * (chosen + rejected)
    linear = 2 * shape.linear * tokens
    attention = 4 * shape.layers * shape.attention * seen
    head = 2 * shape.hidden * shape.vocabulary * (chosen + rejected - 1)
    return passes * (linear + head) + _PASSES * attention


def padded_flops(shape: Shape, rows: int, width: int) -> int:
    """What a batch of padded rows costs, forward and backward: every position, all logits, the square of scores."""
    tokens = rows * width
    attention = 4 * shape.layers * shape.attention * tokens * width
    return _PASSES * (2 * shape.linear * tokens + attention + 2 * shape.hidden * shape.vocabulary * tokens)


def needed(shape: Shape, pairs: Sequence[WorkPair]) -> int:
    """What the method needs for some pairs."""
    return sum(needed_flops(shape, len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in pairs)


def batches(pairs: Sequence[WorkPair], microbatch: int) -> list[tuple[int, int]]:
    """(rows, width) of padded micro-batches of consecutive pairs: two rows a pair, as wide as the longest."""
    groups = [pairs[start : start + microbatch] for start in range(0, len(pairs), microbatch)]
    return [(2 * len(group), max(pair.row for pair in group)) for group in groups]


def _causal(length: int) -> int:
    """(query, key) pairs of a causal sequence, each token with itself included."""
    return length * (length + 1) // 2
