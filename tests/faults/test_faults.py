"""Faults in real processes: kills at random instants, signals, many processes on one folder, damage, any of it in turn.

All of them are here because they share a server of children, which takes seconds to start.
"""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from simpo_cli.errors import ExitCode
from tests.faults.calls import unsynced
from tests.faults.children import ROOT, Children
from tests.faults.corruption import harm_everything
from tests.faults.forked import Call, has_strace
from tests.faults.machine import few_or_many, machine_for
from tests.faults.phases import LOADING, PHASES, RESUMING, TOKENIZING, Interruption
from tests.faults.same_run import Content, content_of
from tests.faults.signals import COMMAND, MOMENTS, Moment, stop_and_go_on
from tests.faults.storm import ALL, OPTIMIZERS, Storm


@pytest.fixture(scope="module")
def unstopped(children: Children) -> Content:
    """The run that nobody stopped."""
    run = children.place / "runs" / "run"
    shutil.rmtree(run, ignore_errors=True)
    assert children.run(*COMMAND) == 0, children.said()
    return content_of(run)


@pytest.mark.parametrize("settings", OPTIMIZERS[::2], ids=["adamw", "torchao"])
def test_kills_at_random_instants_lose_nothing(children: Children, settings: tuple[str, ...]) -> None:
    storm = Storm(children, seed=5, settings=settings)
    storm.interrupt_one_run(3)
    storm.strike_in_each_phase()
    storm.kill(3)
    seen = storm.tally
    assert seen.findings == []
    # resuming has fewer events than the unbroken run's loading, of which one is drawn
    assert {seen.aimed[phase] for phase in PHASES if phase != RESUMING} == {1}
    assert seen.kills[ALL] == seen.aimed[ALL] + 6 >= 17
    assert seen.runs[ALL] >= 3
    counts = [seen.kills[ALL], seen.aimed[ALL], seen.runs[ALL], 0, 0, 0]
    assert seen.table().splitlines()[-1].replace(" ", "") == f"|all|{'|'.join(map(str, counts))}|"


def test_of_twenty_processes_on_one_folder_one_trains_and_nineteen_name_it(children: Children) -> None:
    command = ("train", "run.yaml", "name=shared", "--resume")
    pids = children.start(*[command] * 20, interrupted=Interruption(LOADING, 1, [signal.SIGSTOP]))
    refused = [children.wait_for_one() for _ in range(19)]  # while the one that has the folder stands still
    [holder] = set(range(20)) - {number for number, _ in filter(None, refused)}
    sentence = f"another process is training in runs/shared: pid {pids[holder]} on {socket.gethostname()}, since"
    for number in set(range(20)) - {holder}:
        assert sentence in children.said(number)
    os.kill(pids[holder], signal.SIGKILL)
    codes = children.wait()
    assert codes == [-signal.SIGKILL if number == holder else ExitCode.ENVIRONMENT for number in range(20)]
    assert children.run(*command) == ExitCode.DONE, children.said()  # the first to come gets in


@pytest.mark.parametrize(
    ("moment", "number"),
    [(MOMENTS[0], signal.SIGTERM), (MOMENTS[2], signal.SIGINT), (MOMENTS[5], signal.SIGHUP)],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_signal_in_any_phase_loses_nothing(
    children: Children, unstopped: Content, moment: Moment, number: signal.Signals
) -> None:
    """Three of the cases; `make test-faults` sends every signal in every phase."""
    stop_and_go_on(children, moment, [number], unstopped)


@pytest.mark.parametrize("failure", ["refused", "killed", "crashed"])
def test_nothing_is_alive_after_a_failure_amid_the_threads_that_tokenize(children: Children, failure: str) -> None:
    """The last of several batches is bad, or the process dies in one; `Children` sees that nothing is left."""
    pair = json.dumps({"prompt": "How?", "chosen": "Please open the settings.", "rejected": "No!"}) + "\n"
    (children.place / "many.jsonl").write_text(pair * 3000 + "{}\n" * (failure == "refused"), encoding="utf-8")
    command = ("train", "run.yaml", f"name={failure}", "data.train=many.jsonl")
    number = {"refused": 0, "killed": signal.SIGKILL, "crashed": signal.SIGABRT}[failure]
    code = children.run(*command, interrupted=Interruption(TOKENIZING, 3, [number] if number else []))
    assert code == (-number or ExitCode.USAGE), children.said()


def test_harm_to_any_file_of_a_run_is_noticed(children: Children, tmp_path: Path) -> None:
    assert children.run("train", "run.yaml", "name=harmed", "train.max_steps=2", "--fresh") == 0, children.said()
    shutil.copytree(children.place / "runs" / "harmed", tmp_path / "run")
    harmed = harm_everything(tmp_path / "run", random.Random(3), bits=2, one_in=5)
    assert not harmed.missed
    assert harmed.done == harmed.noticed
    assert len(harmed.done) == 10
    assert harmed.done.total() > 100


def test_whatever_happens_a_run_goes_on_from_what_was_committed_last(children: Children) -> None:
    """A few runs of the state machine; `make test-faults` lets more happen."""
    run_state_machine_as_test(machine_for(children), settings=few_or_many(3))


def test_what_a_disk_refuses_is_exit_code_4_and_loses_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.disk", "--quick"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = re.sub(" +", " ", done.stdout)
    assert "| a name that is too long | 4 | yes |" in said
    assert "| RLIMIT_FSIZE, met by metrics.jsonl | 4 | yes |" in said
    if not has_strace():
        pytest.skip("system calls were not made to fail: no strace")
    assert "| one step: logs, evaluation, checkpoint, rotation, run.json |" in said


def _call(name: str, text: str) -> Call:
    return Call(name, 1, f"{name}({text}")


CREATE = _call("openat", 'AT_FDCWD</p>, "c/.tmp-1/weights", O_WRONLY|O_CREAT|O_EXCL, 0666) = 3</p/c/.tmp-1/weights>')
WRITE = _call("write", '3</p/c/.tmp-1/weights>, "abc", 3) = 3')
SYNC_FILE = _call("fsync", "3</p/c/.tmp-1/weights>) = 0")
SYNC_FOLDER = _call("fsync", "4</p/c/.tmp-1>) = 0")
RENAME = _call("rename", '"c/.tmp-1", "c/step-1") = 0')
SYNC_PARENT = _call("fsync", "4</p/c>) = 0")
ROTATE = _call("rename", '"c/step-0", "c/.tmp-removed-0") = 0')
ORDER = [CREATE, WRITE, SYNC_FILE, SYNC_FOLDER, RENAME, SYNC_PARENT, ROTATE]


def test_the_look_at_a_trace_sees_every_sync_that_is_missing_or_late() -> None:
    assert unsynced(ORDER, Path("/p")) == []
    for missing in (SYNC_FILE, SYNC_FOLDER, SYNC_PARENT):
        assert len(unsynced([call for call in ORDER if call is not missing], Path("/p"))) == 1
    assert unsynced([CREATE, SYNC_FILE, WRITE, *ORDER[3:]], Path("/p"))
    assert unsynced([*ORDER[:3], RENAME, SYNC_FOLDER, SYNC_PARENT], Path("/p"))
    assert unsynced([*ORDER[:5], ROTATE, SYNC_PARENT], Path("/p"))
