"""Faults in real processes: kills at random instants, two Ctrl-C, many processes on one folder."""

import os
import signal
import socket

from simpo_cli.errors import ExitCode
from tests.faults.children import Children
from tests.faults.storm import ALL, Storm


def test_kills_at_random_instants_lose_nothing(children: Children) -> None:
    storm = Storm(children, seed=5)
    storm.interrupt_one_run(4)
    storm.kill(6)
    seen = storm.tally
    assert (seen.kills[ALL], seen.findings) == (10, [])
    assert seen.runs[ALL] >= 2
    assert seen.table().splitlines()[-1].split() == ["|", "all", "|", "10", "|", str(seen.runs[ALL]), *"|0|0|0|"]


def test_of_many_processes_on_one_folder_one_trains_and_the_others_name_it(children: Children) -> None:
    command = ("train", "run.yaml", "name=shared", "--resume", "train.num_epochs=3")
    pids = children.start(*[command] * 5)
    codes = children.wait()
    assert codes is not None
    # who comes when the first has ended finds the run complete
    assert set(codes) <= {ExitCode.DONE, ExitCode.ENVIRONMENT}
    [trained] = [number for number in range(5) if "step=1/27" in children.said(number)]
    assert codes[trained] == ExitCode.DONE
    holder = f"another process is training in runs/shared: pid {pids[trained]} on {socket.gethostname()}, since"
    for number, code in enumerate(codes):
        assert code == ExitCode.DONE or holder in children.said(number)


def test_a_signal_to_a_real_process_ends_it_with_75_and_the_command_to_go_on(children: Children) -> None:
    [pid] = children.start(("train", "run.yaml", "name=stopped", "train.num_epochs=400", "checkpoint.every=null"))
    metrics = children.place / "runs" / "stopped" / "metrics.jsonl"
    while not metrics.exists():
        assert children.wait(0.01) is None, children.said()
    os.kill(pid, signal.SIGTERM)
    assert children.wait() == [ExitCode.SAVED]
    last = children.said().rstrip().splitlines()[-2:]
    assert last[0].startswith("Stopped by SIGTERM after step ")
    assert last[0].endswith(" of 3600; everything is saved.")
    assert last[1] == (
        "  Go on with: simpo train run.yaml name=stopped train.num_epochs=400 checkpoint.every=null --resume"
    )
    assert "Traceback" not in children.said()


def test_a_complete_run_says_so_and_is_left_as_it_is(children: Children) -> None:
    command = ("train", "run.yaml", "name=complete", "train.max_steps=2")
    assert children.run(*command, "--resume") == 0
    assert children.run(*command) == ExitCode.USAGE
    assert "runs/complete already holds a run.\n  Add --resume to go on with it, or --fresh" in children.said()
    before = (children.place / "runs" / "complete" / "run.json").read_bytes()
    assert children.run(*command, "--resume") == 0
    assert "runs/complete is complete at step 2 of 2; raise train.num_epochs to go on" in children.said()
    assert (children.place / "runs" / "complete" / "run.json").read_bytes() == before
