"""What a step would take on many devices, by arithmetic: operations, collectives and memory, with every ceiling named.

    python -m tests.benchmarks.scaling

Prints the tables of docs/scaling.md. Nothing here was measured on a card: `GPUS` holds what makers state of theirs and
the shares of it that are assumed to be reached. `tests.benchmarks.scale` puts a machine of CPUs, as it was measured, in
its place, and compares what this model says of that with steps that really ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import deal
from simpo_cli.model.load import ParameterCounts
from simpo_cli.model.memory import Strategy, Workload
from tests.benchmarks.flops import needed_flops, shape_of

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
_GB = 1e9
_LONGEST = 2048  # tokens of prompt and response
_WEIGHT = 4  # bytes: weights, gradients and moments are float32


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a rank computes and sends; bytes and floating-point operations a second."""

    flops: float  # of large matrix products
    flops_share: float  # of them, that a step's products reach
    memory: float  # reading and writing the device's memory, as reached
    memory_bytes: float  # of a rank, for tensors
    ranks_per_host: int
    link: float  # of a ring within a host, as reached
    network: float  # of a ring across hosts, as reached: all network ports of a host together
    hop: float  # seconds that a step of a ring takes at least
    compute_bytes: int  # of a number in a product
    overlaps: bool  # whether collectives may go on beside products

    def ring(self, ranks: int, size: float) -> float:
        """Seconds of an all-gather or a reduce-scatter of so many bytes in all; an all-reduce takes both."""
        bandwidth = self.link if ranks <= self.ranks_per_host else min(self.link, self.network)
        return (ranks - 1) * (size / ranks / bandwidth + self.hop)


GPUS = Machine(
    flops=989e12,
    flops_share=0.4,
    memory=0.8 * 3.35e12,
    memory_bytes=80e9,
    ranks_per_host=8,
    link=0.8 * 450e9,
    network=0.8 * 8 * 50e9,
    hop=10e-6,
    compute_bytes=2,
    overlaps=True,
)
"""Hosts of eight H100 SXM with NVLink, and a port of 400 Gb/s for each."""


def _llama(hidden: int, layers: int, heads: int, wide: int, vocabulary: int, *, tied: bool = False) -> Any:
    """A configuration with eight key heads of 64 or 128."""
    return SimpleNamespace(
        model_type="llama",
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=64 if hidden == 2048 else 128,
        intermediate_size=wide,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


MODELS = {
    "1 B": _llama(2048, 16, 32, 8192, 128_256, tied=True),
    "3 B": _llama(3072, 28, 24, 8192, 128_256, tied=True),
    "8 B": _llama(4096, 32, 32, 14336, 128_256),
    "14 B": _llama(5120, 48, 40, 13824, 152_064),
    "32 B": _llama(5120, 64, 40, 27648, 152_064),
    "70 B": _llama(8192, 80, 64, 28672, 128_256),
}
"""Shapes of Llama 3.2 1B and 3B, Llama 3 8B and 70B, Qwen 2.5 14B and 32B."""


def parameters_of(config: Any) -> tuple[int, int]:
    """Parameters of all layers, and of what is outside of them."""
    ends = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return shape_of(config).linear + 2 * config.num_hidden_layers * config.hidden_size, ends + config.hidden_size


def made_pairs(count: int) -> list[EncodedPair]:
    """Pairs whose prompts have about 180 tokens and whose responses about 170 each, some of them many times that."""
    draw = np.random.default_rng(1)
    drawn = np.exp(draw.normal(np.log([130, 135, 135]), [0.8, 0.7, 0.7], (count, 3)))
    lengths = np.clip(drawn, 2, [_LONGEST // 2, _LONGEST // 2, _LONGEST // 2]).astype(int).tolist()
    ids = np.zeros(_LONGEST, dtype=np.int32)
    return [EncodedPair(ids[:p], ids[:c], ids[:r], prompt_key="", where="") for p, c, r in lengths]


@dataclass(frozen=True)
class Step:
    """What a step takes of the rank that takes most, in seconds where nothing else is said."""

    compute: float  # products, and what memory takes to read and write the weights
    collectives: float
    low: float  # the whole step, collectives hidden behind products as far as they can be
    high: float  # the same, none of them hidden
    busy_share: (
        float  # of the ranks' products, over what they could do while the step runs, waiting for collectives aside
    )


def step(
    config: Any,
    machine: Machine,
    ranks: int,
    strategy: Strategy,
    pairs: Sequence[EncodedPair],
    budget: int,
    *,
    checkpointing: bool = False,
) -> Step:
    """A step under full tuning; `strategy` is none, ddp or fsdp2, `budget` most tokens of a micro-batch."""
    shape, (in_layers, outside) = shape_of(config), parameters_of(config)
    speed, again = machine.flops * machine.flops_share, 4 / 3 if checkpointing else 1
    # each micro-batch makes copies of the weights in the compute type, and adds its gradient to what is there
    copies = (_WEIGHT + 2 * machine.compute_bytes) * (1 + checkpointing) if machine.compute_bytes < _WEIGHT else 0
    passes = (in_layers + outside) * (copies + 3 * _WEIGHT) / machine.memory

    def seconds(positions: Sequence[int]) -> float:
        work = sum(
            needed_flops(shape, *map(len, (pairs[i].prompt, pairs[i].chosen, pairs[i].rejected))) for i in positions
        )
        return again * work / speed + passes

    shares = [[seconds(cut) for cut in share] for share in deal(pairs, ranks, budget, "shared_prefix")]
    most, held_by = max(map(len, shares)), 1
    if strategy == "fsdp2":  # all ranks run each micro-batch together, some of them an idle one
        held_by = ranks
        of_microbatches = [max(together) for together in zip_longest(*shares, fillvalue=0.0)]
        layer = in_layers / config.num_hidden_layers
        each = 3 * config.num_hidden_layers * machine.ring(ranks, _WEIGHT * layer)
        each += 2 * machine.ring(ranks, _WEIGHT * outside)
        collectives, compute = most * each, sum(of_microbatches)
        low = sum(max(took, each) if machine.overlaps else took + each for took in of_microbatches)
    else:
        collectives = 2 * machine.ring(ranks, _WEIGHT * (in_layers + outside))
        compute = max(map(sum, shares))
        low = compute + collectives  # they come after the last micro-batch, when nothing is left to compute
    useful = sum(map(sum, shares))
    # weights, both moments and the gradient: norm, clipping, update
    update = 10 * _WEIGHT * (in_layers + outside) / held_by / machine.memory
    return Step(compute + update, collectives, low + update, compute + collectives + update, useful / ranks / compute)


def memory(config: Any, ranks: int, strategy: Strategy, tokens: int, *, checkpointing: bool) -> int:
    """Bytes of tensors on a rank at the peak of a step whose largest micro-batch has so many tokens."""
    in_layers, outside = parameters_of(config)
    total = in_layers + outside
    work = Workload(
        config=config,
        parameters=ParameterCounts(total, total, in_layers // config.num_hidden_layers, outside),
        weights=torch.float32,
        compute=torch.bfloat16,
        longest_row=_LONGEST,
        device=torch.device("cuda"),
        available=0,
        strategy=strategy,
        ranks=ranks,
    )
    return work.training(checkpointing=checkpointing).total(tokens)


@dataclass(frozen=True)
class Choice:
    """How a run would go: what fits, as `auto` chooses."""

    strategy: Strategy
    checkpointing: bool
    budget: int  # most tokens of a micro-batch
    bytes: int


def choose(config: Any, machine: Machine, ranks: int, share_tokens: int) -> Choice | None:
    """The first that fits in nine tenths of the memory: whole before sharded, large micro-batches, no layer twice."""
    strategies: tuple[Strategy, ...] = ("none",) if ranks == 1 else ("ddp", "fsdp2")
    for strategy in strategies:
        for checkpointing, most in ((False, 16384), (False, 8192), (True, 16384), (True, 8192), (True, 4096)):
            tokens = min(most, max(share_tokens, _LONGEST))
            needed = memory(config, ranks, strategy, tokens, checkpointing=checkpointing)
            if needed <= 0.9 * machine.memory_bytes:
                return Choice(strategy, checkpointing, most, needed)
    return None


def main() -> None:
    """Print the tables of docs/scaling.md."""
    print("\n\n".join(["\n".join(memory_and_time()), "\n".join(larger_steps())]))


def memory_and_time() -> list[str]:
    """A table: of models on so many ranks, what a rank holds and how long a step of 128 pairs takes."""
    pairs, ranks = made_pairs(128), [str(ranks) for ranks in RANKS]
    rows = [[name, *(_cell(config, ranks, pairs) for ranks in RANKS)] for name, config in MODELS.items()]
    return _table(["model", *ranks], rows)


def larger_steps() -> list[str]:
    """A table: how busy the ranks are, and pairs a second, by pairs a step."""
    rows = []
    for name in ("1 B", "8 B", "70 B"):
        for count in (128, 512, 2048):
            pairs = made_pairs(count)
            rows.append([name, str(count), *(_rate(MODELS[name], ranks, pairs) for ranks in RANKS)])
    return _table(["model", "pairs a step", *map(str, RANKS)], rows)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(config: Any, ranks: int, pairs: Sequence[EncodedPair]) -> str:
    choice = choose(config, GPUS, ranks, sum(pair.num_tokens for pair in pairs) // ranks)
    if choice is None:
        least = memory(config, ranks, "none" if ranks == 1 else "fsdp2", _LONGEST, checkpointing=True)
        return f"needs {least / _GB:.0f} GB"
    took = step(config, GPUS, ranks, choice.strategy, pairs, choice.budget, checkpointing=choice.checkpointing)
    again = "*" if choice.checkpointing else ""
    seconds = f"{took.low:.2f}" if ranks == 1 else f"{took.low:.2f} to {took.high:.2f}"
    return f"{choice.strategy}{again} {choice.bytes / _GB:.0f} GB, {seconds} s"


def _rate(config: Any, ranks: int, pairs: Sequence[EncodedPair]) -> str:
    choice = choose(config, GPUS, ranks, sum(pair.num_tokens for pair in pairs) // ranks)
    if choice is None:
        return ""
    took = step(config, GPUS, ranks, choice.strategy, pairs, choice.budget, checkpointing=choice.checkpointing)
    slow, fast = (f"{len(pairs) / seconds:,.0f}" for seconds in (took.high, took.low))
    return f"{100 * took.busy_share:.0f} %, {slow}" + (f" to {fast}" if fast != slow else "")


if __name__ == "__main__":
    main()
