"""Faults in real processes: kills at random instants, two Ctrl-C, many processes on one folder."""

import os
import signal
import socket

from simpo_cli.errors import ExitCode
from tests.faults.children import Children
from tests.faults.storm import storm


def test_kills_at_random_instants_lose_nothing(children: Children) -> None:
    tally = storm(children, kills=10, seed=5)
    assert (tally.kills, tally.differing, tally.lost, tally.damaged) == (10, 0, 0, 0)
    assert tally.runs >= 1
    assert "kills" in tally.table()


def test_of_many_processes_on_one_folder_one_trains_and_the_others_name_it(children: Children) -> None:
    command = ("train", "run.yaml", "name=shared", "--resume")
    pids = children.start(*[command] * 4)
    codes = children.wait()
    assert codes is not None
    assert sorted(codes) == [0, *[ExitCode.ENVIRONMENT] * 3] or codes.count(0) >= 1
    refused = [children.said(number) for number, code in enumerate(codes) if code != 0]
    for said in refused:
        assert "another process is training in runs/shared" in said or "already holds a run" in said
    named = [said for said in refused if socket.gethostname() in said]
    assert all(any(f"pid {pid} on" in said for pid in pids) for said in named)


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


def test_the_second_interrupt_leaves_at_once(children: Children) -> None:
    [pid] = children.start(("train", "run.yaml", "name=twice", "train.num_epochs=400", "checkpoint.every=null"))
    metrics = children.place / "runs" / "twice" / "metrics.jsonl"
    while not metrics.exists():
        assert children.wait(0.01) is None, children.said()
    os.kill(pid, signal.SIGSTOP)  # both are pending when it goes on, as while a long kernel runs
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGCONT)
    assert children.wait() in ([ExitCode.SAVED], [ExitCode.INTERRUPTED])
