"""What becomes of all ranks when something goes wrong on one of them: one sentence, nothing lost, nobody waits."""

import os
import re
import signal
from pathlib import Path

import pytest

from simpo_cli.errors import ExitCode
from simpo_cli.run.folder import left_budget
from tests.distributed.test_runs import differing_weights, require_alike, train
from tests.faults.children import Children
from tests.faults.same_run import newest_whole_step

BOTH = ("ddp", "fsdp2")
SAVING = ("distributed.timeout=20", "checkpoint.every=1", "train.max_steps=6", "eval.every=null")


def _run(children: Children, run: str, strategy: str, fault: str, *more: str) -> list[int]:
    how = (f"output_dir={run}", f"distributed.strategy={strategy}", *SAVING, *more)
    return children.run_ranks(2, "train", "run.yaml", *how, arranged=f"tests.distributed.arranged:{fault}")


def _resume(children: Children, run: str, strategy: str, ranks: int) -> Path:
    return train(children, run, ranks, f"distributed.strategy={strategy}", *SAVING, "--resume")


@pytest.fixture(scope="module")
def unbroken(children: Children) -> dict[str, Path]:
    """Runs of six steps that nothing happens to, by strategy."""
    return {s: train(children, f"unbroken-{s}", 2, f"distributed.strategy={s}", *SAVING) for s in BOTH}


def test_replicas_halve_their_micro_batches_together_when_memory_runs_out_on_one(
    children: Children, unbroken: dict[str, Path]
) -> None:
    assert _run(children, "memory-ddp", "ddp", "out_of_memory") == [0, 0]
    assert re.search(r"step \d ran out of memory and begins again: .* at most \d+ tokens, not 150", children.said(0))
    require_alike(unbroken["ddp"], children.place / "memory-ddp", steps=6)


def test_a_sharded_run_that_runs_out_of_memory_on_one_rank_resumes_with_smaller_micro_batches(
    children: Children, unbroken: dict[str, Path]
) -> None:
    codes = _run(children, "memory-fsdp2", "fsdp2", "out_of_memory")
    assert codes == [ExitCode.ENVIRONMENT] * 2
    assert "does not fit in memory" in children.said(1)
    assert "another process of this run has ended" in children.said(0)
    run = children.place / "memory-fsdp2"
    assert newest_whole_step(run) >= 1
    budget = left_budget(run)
    assert budget is not None
    assert budget < 150
    _resume(children, "memory-fsdp2", "fsdp2", 2)
    assert "memory ran out on one of the processes: a micro-batch holds at most" in children.said(0)
    assert left_budget(run) is None  # the checkpoint knows it
    require_alike(unbroken["fsdp2"], run, steps=6)


def test_a_sharded_run_that_runs_out_of_memory_before_it_has_saved_begins_with_smaller_micro_batches(
    children: Children, unbroken: dict[str, Path]
) -> None:
    codes = _run(children, "memory-first", "fsdp2", "out_of_memory_before_the_first_step")
    assert codes == [ExitCode.ENVIRONMENT] * 2
    assert not list((children.place / "memory-first" / "checkpoints").glob("step-*"))
    run = _resume(children, "memory-first", "fsdp2", 2)
    assert "memory ran out on one of the processes: a micro-batch holds at most" in children.said(0)
    assert left_budget(run) is None
    require_alike(unbroken["fsdp2"], run, steps=6)


@pytest.mark.parametrize("strategy", BOTH)
def test_a_bug_in_one_layer_of_one_rank_ends_all_and_is_told_by_that_rank(children: Children, strategy: str) -> None:
    codes = _run(children, f"bug-{strategy}", strategy, "bug")
    assert codes == [ExitCode.ENVIRONMENT, ExitCode.CRASH]
    assert "planted in one layer of one rank" in children.said(1)
    assert "another process of this run has ended" in children.said(0)


@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 4), ("fsdp2", 1), ("fsdp2", 2)])
def test_a_killed_rank_ends_the_other_and_the_run_resumes_on_any_number(
    children: Children, unbroken: dict[str, Path], strategy: str, ranks: int
) -> None:
    run = f"killed-{strategy}-{ranks}"
    assert _run(children, run, strategy, "killed") == [ExitCode.ENVIRONMENT, -signal.SIGKILL]
    assert newest_whole_step(children.place / run) >= 1
    resumed = _resume(children, run, strategy if ranks > 1 else "none", ranks)
    require_alike(unbroken[strategy], resumed, steps=6)
    if ranks == 2:  # as many as before: then it is the same to the bit
        assert differing_weights(unbroken[strategy], resumed) == []


@pytest.mark.parametrize("strategy", BOTH)
def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    children: Children, unbroken: dict[str, Path], strategy: str
) -> None:
    run = f"stopped-{strategy}"
    assert _run(children, run, strategy, "told_to_stop") == [ExitCode.SAVED] * 2
    step = newest_whole_step(children.place / run)
    assert 1 <= step < 6
    assert f"Stopped by SIGTERM after step {step} of 6; everything is saved." in children.said(0)
    assert differing_weights(unbroken[strategy], _resume(children, run, strategy, 2)) == []


def test_a_rank_that_hangs_is_named(children: Children) -> None:
    how = ("output_dir=hanging", "distributed.strategy=ddp", *SAVING, "distributed.timeout=4")
    pids = children.start(
        *[("train", "run.yaml", *how)] * 2, together=True, arranged="tests.distributed.arranged:hanging"
    )
    assert children.wait_for_one(60.0) == (0, ExitCode.ENVIRONMENT)
    assert re.search(r"rank 1 did not answer for 4 s \(distributed\.timeout\)", children.said(0))
    os.kill(pids[1], signal.SIGKILL)
    children.wait()


def test_a_weight_that_is_not_finite_in_one_shard_stops_all(children: Children) -> None:
    assert _run(children, "nan", "fsdp2", "not_finite") == [ExitCode.NUMBERS] * 2
    assert "of the weights is not finite" in children.said(0)


def test_ranks_that_were_given_different_things_are_refused_by_name(children: Children) -> None:
    common = ("train", "run.yaml", "output_dir=different", "distributed.strategy=ddp")
    children.start((*common, "loss.beta=2.0"), (*common, "loss.beta=3.0"), together=True)
    assert children.wait() == [ExitCode.USAGE] * 2
    assert re.search("rank 1 on .* has another recipe than rank 0", children.said(0))
    children.start(common, (*common, "--resume"), together=True)  # else the second waits for what nobody says
    assert children.wait() == [ExitCode.USAGE] * 2
    assert re.search(r"rank 1 on .* has another value of --resume than rank 0 .*: True, not False\.", children.said(0))
    assert _run(children, "different-data", "ddp", "other_data") == [ExitCode.USAGE] * 2
    assert re.search("rank 1 on .* has another data than rank 0", children.said(0))
