"""Memory that runs out: survived with smaller micro-batches; else explained, saved and resumed bit for bit."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simpo_cli.errors import ExitCode
from simpo_cli.model.memory import OutOfMemoryError, memory_for, ran_out
from simpo_cli.model.packed import PackedPairs
from simpo_cli.model.policy import Policy
from simpo_cli.train import session as run
from simpo_cli.train.loop import Training
from tests.train.conftest import Memory
from tests.train.guide import Guide, final_state, timeless
from tests.train.test_resume import Cutting, PowerCutError

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
        self._run_steps(training, save)

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


def _notes(memory: Memory) -> list[str]:
    return [note for note in memory.notes if "out of memory" in note]


def _require_close(one: Path, other: Path) -> None:
    for log in ("metrics.jsonl", "evals.jsonl"):
        for row, same in zip(timeless(one / log), timeless(other / log), strict=True):
            assert row == pytest.approx(same, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize(("given", "seen"), [("512", [512]), ("auto", [1024, 512])])
def test_a_step_begins_again_with_half_the_budget_which_stays_also_after_a_resume(
    given: str, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide, memory = Guide(tmp_path), Memory()
    budget = f"train.tokens_per_microbatch={given}"
    guide.train("plain", budget)
    with monkeypatch.context() as patch:
        card = Card(patch, 300, since=2)
        guide.train("halved", budget, observer=memory)
        assert len(card.failed) == len(seen)
        assert _notes(memory) == [
            "step 3 ran out of memory and begins again: from here on a micro-batch holds at most "
            f"{most // 2:,} tokens, not {most:,}; results are equal to rounding, not to the bit"
            for most in seen
        ]
        whole = seen[0]
        assert _budgets(tmp_path / "halved") == {1: whole, 2: whole, 3: 256, 4: 256, 5: 256}
        assert guide.receipt("halved")["plan"]["tokens_per_microbatch"] == 256
        _require_close(tmp_path / "halved", tmp_path / "plain")
        assert final_state(tmp_path / "halved") != final_state(tmp_path / "plain")

        for step in (3, 5):  # killed before the checkpoint of the step: the first has to run out of memory again
            with pytest.raises(PowerCutError):
                guide.train("killed", budget, observer=Cutting(step=step), resume=step > 3)
        card.failed.clear()
        memory = Memory()
        guide.train("killed", budget, observer=memory, resume=True)
    assert not card.failed
    assert memory.first_step == 4
    stays = [note for note in memory.notes if "micro-batches stay at 256 tokens" in note]
    assert len(stays) == (given != "auto")
    assert not any("not bit-exact" in note for note in memory.notes)
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "halved")
    for log in ("metrics.jsonl", "evals.jsonl", "answers.jsonl"):
        assert timeless(tmp_path / "killed" / log) == timeless(tmp_path / "halved" / log)


def test_another_number_in_the_recipe_counts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide, memory = Guide(tmp_path), Memory()
    with monkeypatch.context() as patch:
        Card(patch, 300)
        guide.train("run", "train.tokens_per_microbatch=512", "train.max_steps=2")
    assert _budgets(tmp_path / "run") == {1: 256, 2: 256}
    guide.train("run", "train.tokens_per_microbatch=400", resume=True, observer=memory)
    assert _budgets(tmp_path / "run")[5] == 400
    assert any("tokens_per_microbatch 400, was 256" in note for note in memory.notes)


def test_what_the_first_micro_batches_added_before_memory_ran_out_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the fourth step the first micro-batch is one long pair, and the second, of two, does not fit."""
    guide, memory = Guide(tmp_path), Memory()
    budget = "train.tokens_per_microbatch=210"
    guide.train("plain", budget)
    with monkeypatch.context() as patch:
        card = Card(patch, 190, since=3)
        guide.train("halved", budget, observer=memory)
    assert len(card.failed) == 1
    assert _budgets(tmp_path / "halved")[5] == 110  # of the longest pair, which is more than the half
    _require_close(tmp_path / "halved", tmp_path / "plain")


def test_an_evaluation_is_made_again_with_half_the_budget_before_there_is_any_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide, memory = Guide(tmp_path), Memory()
    budget = "train.tokens_per_microbatch=512"
    guide.train("plain", budget)
    with monkeypatch.context() as patch:
        card = Card(patch, 300, grad=False)
        guide.train("halved", budget, observer=memory)
    assert len(card.failed) == 1
    [note] = _notes(memory)
    assert note.startswith("the evaluation at step 0 ran out of memory and begins again")
    assert set(_budgets(tmp_path / "halved").values()) == {256}
    _require_close(tmp_path / "halved", tmp_path / "plain")


def test_a_pair_that_does_not_fit_by_itself_ends_the_run_at_the_last_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide, memory = Guide(tmp_path), Memory()
    rare = ["checkpoint.every=null", "eval.every=4"]
    guide.train("unbroken", *rare)
    with monkeypatch.context() as patch:
        card = Card(patch, 100, since=2)  # the longest pair of the third step takes 126
        with pytest.raises(OutOfMemoryError) as caught:
            guide.train("run", *rare, observer=memory)
    assert len(card.failed) == 2
    assert len(_notes(memory)) == 1
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert caught.value.problem.startswith("step 3: a micro-batch of 82 tokens (1 pair, the longest of 82 tokens: ")
    assert caught.value.problem.endswith(") does not fit in memory. The state after step 2 is saved.")
    for key in ("model.gradient_checkpointing", "data.max_length", "model.lora", "--resume"):
        assert key in caught.value.fix
    assert guide.require_all_finite("run") == [2]
    assert (guide.receipt("run")["status"], guide.receipt("run")["step"]) == ("failed", 2)

    guide.train("run", *rare, resume=True)
    assert final_state(tmp_path / "run") == final_state(tmp_path / "unbroken")
    for log in ("metrics.jsonl", "evals.jsonl", "answers.jsonl"):
        assert timeless(tmp_path / "run" / log) == timeless(tmp_path / "unbroken" / log)


def test_the_first_step_is_survived_and_a_pair_that_fits_nowhere_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = Guide(tmp_path)
    Card(monkeypatch, 1)
    with pytest.raises(OutOfMemoryError, match="step 1: .* The state after step 0 is saved"):
        guide.train("run")
    assert _budgets(tmp_path / "run") == {0: 256}


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
