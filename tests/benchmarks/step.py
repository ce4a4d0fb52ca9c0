"""How long the parts of a training step take, and how that compares with the machine's own matrix products.

    python -m tests.benchmarks.step [--model FOLDER] [--data FILE] [--pairs 32] [--steps 7]

Prints medians with their range over the steps, on this machine. Asserts nothing: a time is a fact about a machine, not
about the code alone.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from statistics import median

import torch
from accelerate import Accelerator

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import microbatches
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.model.device import device_name
from simpo_cli.model.load import load_model
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.source import find_model
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import DataRecipe, LossRecipe, TrainRecipe
from simpo_cli.train.optimizer import make_optimizer
from tests.benchmarks.machine import finish, product_speed
from tests.benchmarks.process import spread
from tests.data.pair_files import load_pairs


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:guide")
    parser.add_argument("--data", default="builtin:guide")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=4096, help="budget of a micro-batch")
    options = parser.parse_args()

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    data = DataRecipe(train=options.data, max_length=512, max_prompt_length=256)
    encoded = encode_pairs(load_pairs(options.data, role="train").pairs, load_tokenizer(options.model), data).pairs
    policy = Policy(load_model(find_model(options.model), torch.float32)).to(accelerator.device).train()
    policy.packing = "shared_prefix"
    optimizer = make_optimizer(policy, TrainRecipe())

    stream = cycle(encoded)
    measured: list[dict[str, float]] = []
    tokens: list[int] = []
    for number in range(options.steps + 1):
        pairs = list(islice(stream, options.pairs))
        seconds = _one_step(policy, optimizer, pairs, options.tokens, accelerator.device)
        if number:  # the first step warms up
            measured.append(seconds)
            tokens.append(sum(pair.num_tokens for pair in pairs))

    weights = sum(p.numel() for p in policy.parameters())
    print(
        f"{options.model} ({weights / 1e6:.1f} M parameters), {options.pairs} pairs a step, float32, "
        f"{device_name(accelerator.device)}, {torch.get_num_threads()} threads, n = {options.steps} steps"
    )
    totals = [sum(row.values()) for row in measured]
    parts = {part: [row[part] for row in measured] for part in measured[0]}
    for part, seconds in {**parts, "whole step": totals}.items():
        share = 100 * median(seconds) / median(totals)
        print(f"{part:<18}{spread([1000 * each for each in seconds], 1, unit=' ms'):<36}{share:5.1f} %")
    print(f"{'pairs a second':<18}{spread([options.pairs / total for total in totals])}")
    print(f"{'tokens a second':<18}{spread([count / total for count, total in zip(tokens, totals, strict=True)], 0)}")
    print(f"{'matrix products':<18}{product_speed(accelerator.device) / 1e9:.1f} GFLOP/s of this machine, float32")


def _one_step(
    policy: Policy, optimizer: torch.optim.Optimizer, pairs: list[EncodedPair], budget: int, device: torch.device
) -> dict[str, float]:
    """Seconds of each part of one step."""
    seconds = dict.fromkeys(("plan and pack", "forward", "backward", "optimizer"), 0.0)

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        finish(device)
        seconds[part] += time.perf_counter() - started

    with timed("plan and pack"):
        cut = microbatches(pairs, budget, policy.packing)
        packed = [pack([pairs[i] for i in positions], device) for positions in cut]
    for microbatch in packed:
        with timed("forward"):
            chosen, rejected = policy.response_means(microbatch)
            loss = Objective(LossRecipe()).terms(chosen, rejected).losses.sum() / len(pairs)
        with timed("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
    with timed("optimizer"):
        optimizer.step()
    optimizer.zero_grad()
    return seconds


if __name__ == "__main__":
    main()
