"""Before step 1: does the micro-batch fit? The run's longest pair and fullest micro-batch are computed and looked at.

`model/memory.py` predicts by arithmetic, and its budget is never raised here: what it leaves free is for evaluations,
answers and other programs. Where the allocator knows its peak, that counts, beside what the device has for this process
now. Elsewhere a forward pass shows what autograd saves, whose bytes take the place of what was predicted for them.

Nothing stays of it: gradients are emptied, and random generators are as they were.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import tokens_of_each, tokens_of_microbatch
from simpo_cli.distributed import ranks
from simpo_cli.distributed.sharded import is_sharded, reshard
from simpo_cli.errors import ExitCode
from simpo_cli.model.activations import SavedBytes
from simpo_cli.model.backend import backend_of, free_bytes, release_memory
from simpo_cli.model.compile_check import in_training
from simpo_cli.model.out_of_memory import OutOfMemoryError, memory_for
from simpo_cli.model.packed import pack
from simpo_cli.run.folder import leave_budget
from simpo_cli.stages import stage
from simpo_cli.train.loop import Training
from simpo_cli.train.step import FREE_MEMORY, one_microbatch

_SPARE = 0.05  # of the room, for gaps between tensors and for what is not the step's
_LEAST_CUT = 0.9  # of the tokens that did not fit, the most that the next budget may be


class Peak(NamedTuple):
    """What was held at most while the micro-batches were computed, in bytes."""

    tokens: int  # of the fullest of them, padding counted
    held: int  # weights, gradients and optimizer state among it
    room: int  # what there is for all of it

    @property
    def most(self) -> int:
        """What may be held."""
        return int((1 - _SPARE) * self.room)


@stage("measuring a micro-batch")
def fit_microbatch(training: Training) -> dict[str, Any]:
    """Lower the budget to what fits, where it is `auto`; the same on all ranks.

    A number of the recipe is kept as long as memory does not run out, and the run says so where it is close to it.

    Returns:
        What run.json says of the memory.

    Raises:
        OutOfMemoryError: the longest pair by itself does not fit, or another start is needed.
    """
    started = time.perf_counter()
    run, policy = training.run, training.policy
    plan, pairs, packing = run.plan, run.data.train, policy.packing
    is_auto = run.recipe.train.tokens_per_microbatch == "auto"
    longest = int(tokens_of_each(run.data.scored, packing).max())
    while True:
        fullest = plan.fullest_microbatch(pairs, training.budget, packing, run.num_ranks)
        is_all = plan.num_steps == 1 and len(fullest) == len(plan.pairs_of(0))
        peak = _measure(training, [fullest] if is_all else [plan.longest_pair(pairs, packing), fullest])
        release_memory()  # what the self-check took among it
        fitting = _fitting(peak, run.need.state, training.budget, longest)
        smaller = ranks.smallest(fitting, "measuring a micro-batch")
        has_run_out = ranks.smallest(int(peak is not None), "measuring a micro-batch") == 0
        if smaller == training.budget or not (is_auto or has_run_out):
            break
        if smaller == 0:
            error = OutOfMemoryError(
                "the longest pair does not fit in memory.", FREE_MEMORY, exit_code=ExitCode.ENVIRONMENT
            )
            error.is_shared = ranks.world_size() > 1
            raise error
        why = "ran out of memory" if has_run_out else "is too much for the memory"
        training.observer.note(
            f"before step 1 a micro-batch of {training.budget:,} tokens {why}: one holds at most {smaller:,}"
        )
        training.budget = smaller
    assert peak is not None
    predicted = run.need.total(peak.tokens)
    # what is free is of the moment, and notes.jsonl of a resumed run has the bits of an unbroken one
    words = "" if peak.held <= peak.most else f"; there are {peak.room / 1e9:.2f} GB: memory may run out"
    training.observer.note(
        f"memory measured: {peak.held / 1e9:.2f} GB with a micro-batch of {peak.tokens:,} tokens, "
        f"{predicted / 1e9:.2f} predicted{words}"
    )
    return {
        "microbatch_tokens": peak.tokens,
        "predicted_bytes": predicted,
        "measured_bytes": peak.held,
        "available_bytes": peak.room,
        "seconds": time.perf_counter() - started,
    }


def _fitting(peak: Peak | None, state: int, budget: int, longest: int) -> int:
    """The budget, or a smaller one that should fit; 0 if none does.

    Args:
        peak: None if memory ran out.
        state: bytes that are held whatever the micro-batch.
    """
    if peak is not None and (peak.held <= peak.most or (budget <= longest and peak.held <= peak.room)):
        return budget
    if budget <= longest:
        return 0
    if peak is None:
        return max(budget // 2, longest)
    share = (peak.most - state) / max(1, peak.held - state)
    return max(int(min(share, _LEAST_CUT) * peak.tokens), longest)


def _measure(training: Training, batches: Sequence[Sequence[EncodedPair]]) -> Peak | None:
    """Compute micro-batches, the fullest last, so that there are gradients beside it; None where memory ran out.

    Raises:
        OutOfMemoryError: on this rank alone, while the others wait for it: all have to start again.
    """
    run, policy, device = training.run, training.policy, training.run.accelerator.device
    tokens = tokens_of_microbatch(batches[-1], policy.packing)
    asked = [] if device.type == "cpu" else [device]
    try:
        with (
            in_training(policy),
            torch.random.fork_rng(asked, device_type=device.type if asked else "cuda"),
            memory_for("a micro-batch", FREE_MEMORY),
        ):
            if not backend_of(device).counts_peak:
                held = max(_predicted_by_what_is_saved(training, batch) for batch in batches)
                return Peak(tokens, held, run.need.available)
            card: Any = torch.get_device_module(device)
            card.reset_peak_memory_stats(device)
            for batch in batches:
                one_microbatch(policy, batch, len(batch), run.recipe.loss, run.accelerator)
            room = free_bytes(device) + card.memory_reserved(device)
            return Peak(tokens, int(card.max_memory_allocated(device)), int(room))
    except OutOfMemoryError:
        if is_sharded(policy) and ranks.world_size() > 1:
            leave_budget(Path(run.recipe.output_dir), training.budget // 2)
            raise
        return None


def _predicted_by_what_is_saved(training: Training, batch: Sequence[EncodedPair]) -> int:
    """The peak as predicted, with the bytes that a forward pass saves in the place of those that layers would keep."""
    run, policy = training.run, training.policy
    saved = SavedBytes(policy)
    with saved, run.accelerator.autocast():
        policy.response_means(pack(batch, run.accelerator.device))
    reshard(policy)
    tokens = tokens_of_microbatch(batch, policy.packing)
    return run.need.total(tokens) - run.need.kept(tokens) + int(run.need.heap * saved.total)
