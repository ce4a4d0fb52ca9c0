"""Signals that stop a run: saved at the last whole step, exit code 75, and gone on with bit for bit."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.objective import Objective
from simpo_cli.run.events import StepRecord
from simpo_cli.run.stop import Stopped, StopRequest
from simpo_cli.train import build, loop, outcome, saving, session
from tests.train.runs import Memory, Runs, tiny_runs


@pytest.fixture(autouse=True, scope="module")
def _heard() -> Iterator[None]:
    """What started the tests in the background may have left signals ignored, which a run would respect."""
    ignored = [one for one in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(one) == signal.SIG_IGN]
    for one in ignored:
        signal.signal(one, signal.SIG_DFL)
    yield
    for one in ignored:
        signal.signal(one, signal.SIG_IGN)


def _send(number: int) -> None:
    """A signal to this process, handled before the next line."""
    os.kill(os.getpid(), number)
    assert signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler)


class Sending(Memory):
    """An observer that sends a signal at a step."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__()
        self._step, self._number = step, number

    def step(self, record: StepRecord) -> None:
        super().step(record)
        if record.step == self._step:
            _send(self._number)


MICROBATCHES = "train.tokens_per_microbatch=130"  # several a step


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, prefs: Path) -> Runs:
    runs = tiny_runs(
        tmp_path_factory.mktemp("stop"), tiny_folder, prefs, "checkpoint.every=3", "eval.every=2", MICROBATCHES
    )
    runs.train("unbroken")
    return runs


def _go_on(tiny: Runs, name: str) -> None:
    tiny.train(name, resume=True)
    tiny.require_same(name, "unbroken")


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGHUP, 3)])
def test_a_signal_saves_at_the_last_whole_step(tiny: Runs, number: signal.Signals, step: int) -> None:
    name = f"step-{number.name}"
    before = signal.getsignal(number)
    said = f"Stopped by {number.name} after step {step} of 4; everything is saved"
    with pytest.raises(UserError, match=said) as caught:
        tiny.train(name, observer=Sending(step, number))
    assert caught.value.exit_code == ExitCode.SAVED
    assert caught.value.fix.startswith("Resume with: simpo ")
    assert caught.value.fix.endswith(" --resume")
    assert signal.getsignal(number) is before
    assert tiny.checkpoints(name) == [step]
    assert (tiny.receipt(name)["status"], tiny.receipt(name)["step"]) == ("stopped", step)
    _go_on(tiny, name)


@pytest.mark.parametrize(
    ("where", "target", "call", "step"),
    [
        ("reading the data", (session, "prepare"), 1, None),
        ("reading the weights", (build, "load_start"), 1, None),
        ("the first micro-batch", (loop, "accumulate"), 1, 0),
        ("amid the micro-batches", (Objective, "terms"), 4, 0),  # the half step is given up
        ("the first evaluation", (loop, "score_pairs"), 1, 0),
        ("a later evaluation", (loop, "score_pairs"), 2, 2),  # it is left to be made when the run goes on
        ("a save", (saving, "save_state"), 1, 0),
        ("the export", (outcome, "save_model"), 1, 4),
        ("the last evaluation", (outcome, "conclude"), 1, 4),
    ],
)
def test_a_signal_in_any_phase_is_answered(
    tiny: Runs, monkeypatch: pytest.MonkeyPatch, where: str, target: tuple[Any, str], call: int, step: int | None
) -> None:
    real, calls = getattr(*target), []

    def signalled(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            _send(signal.SIGTERM)
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*target, signalled)
        said = "before the first step" if step is None else f"after step {step} of 4"
        with pytest.raises(UserError, match=f"Stopped by SIGTERM {said}") as caught:
            tiny.train(where)
    assert caught.value.exit_code == ExitCode.SAVED
    assert len(calls) == call  # what had begun was finished, and the next not begun
    if step:
        assert tiny.checkpoints(where)[-1] == step
    _go_on(tiny, where)


def test_signals_that_were_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_no_handler_is_set() -> None:
    before, errors = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        try:
            with StopRequest() as stop:
                stop.check()
                assert signal.getsignal(signal.SIGTERM) is before
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not errors


def test_a_block_that_may_be_left_is_left_and_others_wait() -> None:
    with StopRequest() as stop:
        with stop.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # noted, and no more
        items = stop.between([1, 2])
        with pytest.raises(Stopped):
            next(items)
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("it was asked for before")
    with StopRequest() as stop, pytest.raises(Stopped), stop.at_once():
        os.kill(os.getpid(), signal.SIGTERM)


LONG_KERNEL = """
import hashlib
from simpo_cli.run.stop import StopRequest
with StopRequest():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour that no handler of Python's interrupts
"""


def test_the_second_interrupt_leaves_at_once_also_out_of_a_long_kernel() -> None:
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", LONG_KERNEL], cwd=root, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        while process.poll() is None:  # of signals that come together the kernel hands on one
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    assert process.returncode == ExitCode.INTERRUPTED
