"""Memory that runs out: survived with smaller micro-batches; else explained, saved and resumed bit for bit."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simpo_cli.errors import ExitCode
from simpo_cli.model.out_of_memory import OutOfMemoryError, memory_for, ran_out
from simpo_cli.model.packed import PackedPairs
from simpo_cli.model.policy import Policy
from simpo_cli.train import session as run
from simpo_cli.train.loop import Training
from tests.train.runs import Memory, Runs, final_state, timeless

PETABYTES = 10**16


def _allocation_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(PETABYTES)
    return caught.value


def test_what_torch_says_on_a_cpu_is_understood() -> None:
    assert ran_out(_allocation_error())
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert ran_out(RuntimeError("CUDA driver error: out of memory"))  # of expandable_segments, which the command sets
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out(ValueError("not enough memory"))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_for("a step", "Lower it."):
        raise RuntimeError("shapes")


class Card:
    """Memory that a forward pass of more than `room` tokens, padding counted, runs out of: from a step on.

    Args:
        since: steps done from which on there is no more room than that.
        grad: whether training runs out of it, or scoring.
    """

    def __init__(self, patch: pytest.MonkeyPatch, room: int, *, since: int = 0, grad: bool = True) -> None:
        self.room, self.since, self.grad = room, since, grad
        self.failed: list[weakref.ref[Tensor]] = []
        self._training: Training | None = None
        self._forward, self._run_steps = Policy.forward, run.run_steps
        patch.setattr(run, "run_steps", self._steps)
        patch.setattr(Policy, "forward", lambda policy, packed: self._within(policy, packed))

    def _steps(self, training: Training, save: Any) -> None:
        self._training = training
        try:
            self._run_steps(training, save)
        finally:
            self._training = None  # what the next run measures before its first step does not count

    def _within(self, policy: Policy, packed: PackedPairs) -> Tensor:
        assert all(tensor() is None for tensor in self.failed)  # the attempt before has left nothing behind
        logps = self._forward(policy, packed)
        row = max(span.prompt + max(span.chosen, span.rejected) for span in packed.spans)
        training = self._training
        counts = training is not None and training.steps_done >= self.since and torch.is_grad_enabled() == self.grad
        if counts and 2 * len(packed.spans) * row > self.room:
            self.failed.append(weakref.ref(logps))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return logps


def _budgets(folder: Path) -> dict[int, int]:
    """Tokens of a micro-batch as each checkpoint says them."""
    files = sorted((folder / "checkpoints").glob("step-*/identity.json"))
    return {
        int(file.parent.name.removeprefix("step-")): json.loads(file.read_text())["machine"]["tokens_per_microbatch"]
        for file in files
    }


def _require_close(one: Path, other: Path) -> None:
    for log in ("metrics.jsonl", "evals.jsonl"):
        for row, same in zip(timeless(one / log), timeless(other / log), strict=True):
            assert row == pytest.approx(same, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize(("given", "seen"), [("512", [512]), ("auto", [1024, 512])])
def test_a_step_begins_again_with_half_the_budget_which_stays_also_after_a_resume(
    given: str, seen: list[int], guide: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = f"train.tokens_per_microbatch={given}"
    guide.train("plain", budget)
    with monkeypatch.context() as patch:
        card = Card(patch, 300, since=2)
        memory = guide.train("halved", budget)
        assert len(card.failed) == len(seen)
        assert memory.said("out of memory") == [
            "step 3 ran out of memory and begins again: from here on a micro-batch holds at most "
            f"{most // 2:,} tokens, not {most:,}; results are equal to rounding, not to the bit"
            for most in seen
        ]
        whole = seen[0]
        assert _budgets(guide.folder / "halved") == {1: whole, 2: whole, 3: 256, 4: 256, 5: 256}
        assert guide.receipt("halved")["plan"]["tokens_per_microbatch"] == 256
        _require_close(guide.folder / "halved", guide.folder / "plain")
        assert final_state(guide.folder / "halved") != final_state(guide.folder / "plain")

        guide.cut("killed", budget, step=3)  # before the checkpoint of the step, which has to run out of memory again
        guide.cut("killed", budget, step=5, resume=True)
        card.failed.clear()
        memory = guide.train("killed", budget, resume=True)
    assert not card.failed
    assert memory.first_step == 4
    assert len(memory.said("micro-batches stay at 256 tokens")) == (given != "auto")
    assert memory.said("not bit-exact") == []
    guide.require_same("killed", "halved")


def test_another_number_in_the_recipe_counts_again(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        Card(patch, 300)
        guide.train("run", "train.tokens_per_microbatch=512", "train.max_steps=2")
    assert _budgets(guide.folder / "run") == {1: 256, 2: 256}
    memory = guide.train("run", "train.tokens_per_microbatch=400", resume=True)
    assert _budgets(guide.folder / "run")[5] == 400
    assert memory.said("tokens_per_microbatch 400, was 256")


def test_what_the_first_micro_batches_added_before_memory_ran_out_counts_once(
    guide: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the fourth step the first micro-batch is one long pair, and the second, of two, does not fit."""
    budget = "train.tokens_per_microbatch=210"
    guide.train("plain", budget)
    with monkeypatch.context() as patch:
        card = Card(patch, 190, since=3)
        guide.train("halved", budget)
    assert len(card.failed) == 1
    assert _budgets(guide.folder / "halved")[5] == 110  # of the longest pair, which is more than the half
    _require_close(guide.folder / "halved", guide.folder / "plain")


def test_an_evaluation_is_made_again_with_half_the_budget_before_there_is_any_checkpoint(
    guide: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = "train.tokens_per_microbatch=512"
    guide.train("plain", budget)
    with monkeypatch.context() as patch:
        card = Card(patch, 300, grad=False)
        memory = guide.train("halved", budget)
    assert len(card.failed) == 1
    [note] = memory.said("out of memory")
    assert note.startswith("the evaluation at step 0 ran out of memory and begins again")
    assert set(_budgets(guide.folder / "halved").values()) == {256}
    _require_close(guide.folder / "halved", guide.folder / "plain")


def test_a_pair_that_does_not_fit_by_itself_ends_the_run_at_the_last_whole_step(
    guide: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, rare = Memory(), ("checkpoint.every=null", "eval.every=4")
    guide.train("unbroken", *rare)
    with monkeypatch.context() as patch:
        card = Card(patch, 100, since=2)  # the longest pair of the third step takes 126
        with pytest.raises(OutOfMemoryError) as caught:
            guide.train("run", *rare, observer=memory)
    assert len(card.failed) == 2
    assert len(memory.said("out of memory")) == 1
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert caught.value.problem.startswith("step 3: a micro-batch of 82 tokens (1 pair, the longest of 82 tokens: ")
    assert caught.value.problem.endswith(") does not fit in memory. The state after step 2 is saved.")
    for key in ("model.gradient_checkpointing", "data.max_length", "model.lora", "--resume"):
        assert key in caught.value.fix
    assert guide.require_all_finite("run") == [2]
    assert (guide.receipt("run")["status"], guide.receipt("run")["step"]) == ("failed", 2)

    guide.train("run", *rare, resume=True)
    guide.require_same("run", "unbroken")


def test_the_first_step_is_survived_and_a_pair_that_fits_nowhere_ends_it(
    guide: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    Card(monkeypatch, 1)
    with pytest.raises(OutOfMemoryError, match="step 1: .* The state after step 0 is saved"):
        guide.train("run")
    assert _budgets(guide.folder / "run") == {0: 256}


def test_tensors_of_the_step_that_failed_are_let_go() -> None:
    freed: list[bool] = []

    class Held:
        def __del__(self) -> None:
            freed.append(True)

    def step() -> None:
        held = Held()
        assert held
        raise MemoryError

    with pytest.raises(OutOfMemoryError) as caught, memory_for("a step", "Lower it."):
        step()
    assert caught.value.__cause__  # the error is held on to, as by whoever handles it
    assert freed == [True]
