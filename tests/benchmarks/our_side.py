"""Our training step as a program that takes turns: python -m tests.benchmarks.our_side WORK.json

A step is what `simpo_cli.train.loop` does between two log lines: cut, accumulate, clip, set the rate, step, zero.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Plan, microbatches, tokens_of_each
from simpo_cli.model.allocator import begin_without_cache, keep_freed_memory
from simpo_cli.model.load import load_model
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.source import find_model
from simpo_cli.recipe.schema import LossRecipe, TrainRecipe
from simpo_cli.train.optimizer import make_optimizer
from simpo_cli.train.step import accumulate, clip_gradients
from tests.benchmarks.machine import describe_machine, finish, peak_bytes, product_speed, versions
from tests.benchmarks.process import peak_resident_bytes
from tests.benchmarks.turns import Channel, Turn
from tests.benchmarks.work import Work, WorkPair

MAX_GRAD_NORM = 1.0


class OurSide:
    """Model, optimizer and the pairs of all steps, ready to run the next one."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.threads)
        self.work = work
        on_cuda = torch.cuda.is_available()
        if not on_cuda:
            keep_freed_memory()
        self.accelerator = Accelerator(mixed_precision="bf16" if work.precision == "bf16" else "no", cpu=not on_cuda)
        self.policy = Policy(load_model(find_model(work.model), torch.float32)).to(self.accelerator.device).train()
        self.policy.packing = "shared_prefix"
        self.optimizer = make_optimizer(self.policy, TrainRecipe())
        self.loss = LossRecipe(beta=work.beta, gamma=work.gamma)
        self.num_parameters = sum(parameter.numel() for parameter in self.policy.parameters())
        self.done = 0

    def budget(self, pairs: list[EncodedPair]) -> int:
        """Tokens of a micro-batch; never less than the longest pair needs."""
        return max(self.work.tokens_per_microbatch, int(tokens_of_each(pairs, self.policy.packing).max()))

    def step(self, turn: Turn, chosen_pairs: list[WorkPair]) -> dict[str, Any]:
        """One optimizer step, timed from the moment it was asked for."""
        pairs = [encoded(pair) for pair in chosen_pairs]
        budget = self.budget(pairs)
        turn.restart()
        cut = microbatches(pairs, budget, self.policy.packing)
        sums = accumulate(
            self.policy, pairs, cut, loss=self.loss, accelerator=self.accelerator, step=self.done, reseed=None
        )
        clip_gradients(self.policy, MAX_GRAD_NORM, norm=sums.grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.work.learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        finish(self.accelerator.device)
        measured = turn.measured()
        self.done += 1
        return {
            **measured,
            "pairs": sums.pairs,
            "loss": sums.loss / sums.pairs,
            "logps_chosen": sums.logps_chosen / sums.pairs,
            "logps_rejected": sums.logps_rejected / sums.pairs,
            "microbatches": len(cut),
            "peak_bytes": peak_bytes(self.accelerator.device),
            "plan_seconds": self._plan_seconds(pairs, budget),
        }

    def _plan_seconds(self, pairs: list[EncodedPair], budget: int) -> float:
        """Seconds of choosing the step's pairs, cutting and packing them: done again, outside of the step's clock."""
        clock = Turn({}, 0.0)
        Plan(num_pairs=100_000, pairs_per_step=len(pairs), num_epochs=1, max_steps=None, seed=self.done).pairs_of(0)
        for positions in microbatches(pairs, budget, self.policy.packing):
            pack([pairs[i] for i in positions], self.accelerator.device)
        return clock.measured()["seconds"]


def encoded(pair: WorkPair) -> EncodedPair:
    """The pair as the package holds it."""

    def ids(tokens: list[int]) -> NDArray[np.int32]:
        return np.array(tokens, dtype=np.int32)

    return EncodedPair(ids(pair.prompt), ids(pair.chosen), ids(pair.rejected), prompt_key="", where="benchmark")


def main() -> None:
    """Load, say so, run what is asked until nothing more is."""
    begin_without_cache()  # as the command does
    channel = Channel()
    work = Work.load(Path(sys.argv[1]))
    libraries = peak_resident_bytes()
    side = OurSide(work)
    device = side.accelerator.device
    channel.say(
        num_parameters=side.num_parameters,
        libraries_bytes=libraries,
        machine=describe_machine(),
        versions=versions("simpo-cli", "torch", "transformers", "accelerate", "tokenizers"),
    )
    while (turn := channel.wait()) is not None:
        match turn.message["do"]:
            case "step":
                channel.say(**side.step(turn, work.step(side.done)))
            case "pairs":  # made-up pairs, not those of the file
                channel.say(**side.step(turn, [WorkPair(**pair) for pair in turn.message["pairs"]]))
            case "products":
                dtype = torch.bfloat16 if turn.message["precision"] == "bf16" else torch.float32
                channel.say(flops_per_second=product_speed(device, dtype))


if __name__ == "__main__":
    main()
