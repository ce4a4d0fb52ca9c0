"""The arithmetic of steps on many devices: counted by hand, and as docs/scaling.md shows it."""

from dataclasses import replace

import pytest

from simpo_cli.data.plan import deal
from tests.benchmarks.flops import needed_flops, shape_of
from tests.benchmarks.scaling import (
    GPUS,
    MODELS,
    larger_steps,
    made_pairs,
    memory,
    memory_and_time,
    parameters_of,
    step,
)
from tests.test_docs import PAGES

BARE = replace(GPUS, flops=1e12, flops_share=0.5, memory=1e30, link=1e9, network=1e9, hop=0.0)
"""Products and collectives alone take time."""


def test_a_ring_passes_every_part_to_every_other_rank() -> None:
    assert replace(GPUS, link=2e9, hop=0.001).ring(4, 8e9) == pytest.approx(3 * 2e9 / 2e9 + 0.003)
    assert replace(GPUS, link=2e9, network=1e9, hop=0.0).ring(16, 16e9) == pytest.approx(15 * 1e9 / 1e9)


def test_a_step_counted_by_hand() -> None:
    config, pairs = MODELS["1 B"], made_pairs(6)
    in_layers, outside = parameters_of(config)
    assert in_layers + outside == 1_235_814_400  # as Llama 3.2 1B has
    work = [needed_flops(shape_of(config), *map(len, (pair.prompt, pair.chosen, pair.rejected))) for pair in pairs]
    alone = step(config, BARE, 1, "none", pairs, 1)
    assert alone.low == alone.high == pytest.approx(sum(work) / 0.5e12)
    assert alone.busy_share == pytest.approx(1)
    replicated = step(config, BARE, 8, "ddp", pairs, 1)  # two ranks have nothing to do
    assert replicated.compute == pytest.approx(max(work) / 0.5e12)
    assert replicated.collectives == pytest.approx(2 * 7 / 8 * 4 * (in_layers + outside) / 1e9)
    assert replicated.low == pytest.approx(replicated.compute + replicated.collectives)
    assert replicated.busy_share == pytest.approx(sum(work) / 8 / max(work))
    longest = max(pair.num_tokens for pair in pairs)
    sharded = step(config, BARE, 2, "fsdp2", pairs, longest)
    cuts = deal(pairs, 2, longest, "shared_prefix")
    of_one = 1 / 2 * 4 * (3 * in_layers + 2 * outside) / 1e9  # half of each gathering and of each reduction
    assert sharded.collectives == pytest.approx(max(map(len, cuts)) * of_one)
    assert sharded.low < sharded.high == pytest.approx(sharded.compute + sharded.collectives)


def test_shards_are_a_part_of_the_state() -> None:
    config = MODELS["8 B"]
    total = sum(parameters_of(config))
    few, many = (memory(config, ranks, "fsdp2", 4096, checkpointing=True) for ranks in (8, 64))
    assert few - many == pytest.approx(16 * total * (1 / 8 - 1 / 64))
    assert memory(config, 8, "ddp", 4096, checkpointing=True) > 16 * total


@pytest.mark.skipif(not PAGES, reason="the package is installed, not a checkout")
def test_the_tables_of_the_page_are_those_of_the_arithmetic() -> None:
    for table in (memory_and_time(), larger_steps()):
        assert "\n".join(table) in PAGES["scaling.md"]
