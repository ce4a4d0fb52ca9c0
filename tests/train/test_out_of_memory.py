"""Memory that runs out at a step: said with what to change, saved at the last whole step, gone on with bit for bit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo_cli.data.pair import EncodedPair
from simpo_cli.errors import ExitCode
from simpo_cli.train import step as step_module
from simpo_cli.train.out_of_memory import NoMemoryError, memory_for, ran_out
from tests.train.guide import Guide
from tests.train.same_bits import final_state, timeless

PETABYTES = 10**16


def _allocation_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(PETABYTES)
    return caught.value


def test_what_torch_says_on_a_cpu_is_understood() -> None:
    assert ran_out(_allocation_error())
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not ran_out(ValueError("not enough memory"))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_for("a step", "Lower it."):
        raise RuntimeError("shapes")


def test_it_stops_at_the_last_whole_step_and_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = Guide(tmp_path)
    rare = ["checkpoint.every=null", "eval.every=4"]
    guide.train("unbroken", *rare)
    real, calls = step_module.pack, 0
    batches: list[list[EncodedPair]] = []

    def large(pairs: Sequence[EncodedPair], device: torch.device) -> Any:
        nonlocal calls
        calls += len(pairs)
        if calls > 4 * 2:  # in the third step, whose first micro-batches may have passed
            batches.append(list(pairs))
            torch.empty(PETABYTES)
        return real(pairs, device)

    with monkeypatch.context() as patch:
        patch.setattr(step_module, "pack", large)
        with pytest.raises(NoMemoryError) as caught:
            guide.train("run", *rare)
    [batch] = batches
    tokens, most = sum(pair.num_tokens for pair in batch), max(pair.num_tokens for pair in batch)
    count = "1 pair" if len(batch) == 1 else f"{len(batch)} pairs"
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert caught.value.problem.startswith(f"step 3: a micro-batch of {tokens} tokens ({count}, the longest of {most} ")
    assert caught.value.problem.endswith(") does not fit in memory. The state after step 2 is saved.")
    for key in ("train.tokens_per_microbatch", "model.gradient_checkpointing", "data.max_length", "--resume"):
        assert key in caught.value.fix
    assert guide.require_all_finite("run") == [2]
    assert (guide.receipt("run")["status"], guide.receipt("run")["step"]) == ("failed", 2)

    guide.train("run", *rare, resume=True)
    assert final_state(tmp_path / "run") == final_state(tmp_path / "unbroken")
    for log in ("metrics.jsonl", "evals.jsonl", "answers.jsonl"):
        assert timeless(tmp_path / "run" / log) == timeless(tmp_path / "unbroken" / log)


def test_tensors_of_the_step_that_failed_are_let_go() -> None:
    freed: list[bool] = []

    class Held:
        def __del__(self) -> None:
            freed.append(True)

    def step() -> None:
        held = Held()
        assert held
        raise MemoryError

    with pytest.raises(NoMemoryError), memory_for("a step", "Lower it."):
        step()
    assert freed == [True]
