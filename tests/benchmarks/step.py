"""How long the parts of a training step take, and how that compares with the machine's own matrix products.

    python -m tests.benchmarks.step [--model FOLDER] [--data FILE] [--pairs 32] [--steps 7]

Prints medians with their range over the steps, on this machine. Asserts nothing: a time is a fact about a machine, not
about the code alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice

import torch
from accelerate import Accelerator

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import microbatches
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.model.device import device_name
from simpo_cli.model.load import find_model, load_model
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import DataRecipe, LossRecipe, TrainRecipe
from simpo_cli.train.optimizer import make_optimizer
from tests.benchmarks.machine import finish, product_speed
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
    for part in measured[0]:
        _line(part, [row[part] for row in measured], statistics.median(totals))
    _line("whole step", totals, statistics.median(totals))
    rates = [options.pairs / total for total in totals]
    print(f"{'pairs a second':<18}{statistics.median(rates):10.2f}   ({min(rates):.2f} to {max(rates):.2f})")
    speeds = [count / total for count, total in zip(tokens, totals, strict=True)]
    print(f"{'tokens a second':<18}{statistics.median(speeds):10.0f}   ({min(speeds):.0f} to {max(speeds):.0f})")
    print(f"{'matrix products':<18}{product_speed(accelerator.device) / 1e9:10.1f}   GFLOP/s of this machine, float32")


def _one_step(
    policy: Policy, optimizer: torch.optim.Optimizer, pairs: list[EncodedPair], budget: int, device: torch.device
) -> dict[str, float]:
    """Seconds of each part of one step."""
    seconds = dict.fromkeys(("plan and pack", "forward", "backward", "optimizer"), 0.0)

    def timed(part: str, work: Callable[[], object]) -> object:
        started = time.perf_counter()
        result = work()
        finish(device)
        seconds[part] += time.perf_counter() - started
        return result

    packed = timed(
        "plan and pack",
        lambda: [
            pack([pairs[i] for i in positions], device) for positions in microbatches(pairs, budget, policy.packing)
        ],
    )
    assert isinstance(packed, list)
    for microbatch in packed:

        def forward(microbatch: object = microbatch) -> torch.Tensor:
            chosen, rejected = policy.response_means(microbatch)  # type: ignore[arg-type]
            return Objective(LossRecipe()).terms(chosen, rejected).losses.sum() / len(pairs)

        loss = timed("forward", forward)
        assert isinstance(loss, torch.Tensor)
        timed("backward", loss.backward)
    timed("optimizer", optimizer.step)
    optimizer.zero_grad()
    return seconds


def _line(part: str, seconds: list[float], whole: float) -> None:
    middle = statistics.median(seconds)
    print(
        f"{part:<18}{1000 * middle:10.1f} ms ({1000 * min(seconds):.1f} to {1000 * max(seconds):.1f})"
        f"   {100 * middle / whole:5.1f} %"
    )


if __name__ == "__main__":
    main()
