"""Our own launcher: it starts a process for each device of this host, and tells once what ended them.

The processes find their places in the environment, as under torchrun. Rank 0 has the terminal; what the others print
goes to files in a temporary folder, where every process leaves the error that ends it. The processes stay in the
launcher's group, so that Ctrl-C reaches all of them, and none outlives it: each reads from a pipe whose other end only
the launcher holds. Nothing here imports torch.
"""

import ctypes
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from simpo_cli.distributed.place import Place, as_json, from_json, place_in
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import replacing
from simpo_cli.redaction import redacted_values
from simpo_cli.run.stop import SHOW_CURSOR, Stopped, StopRequest

_FOLDER, _PIPE = "SIMPO_LAUNCH_FOLDER", "SIMPO_LAUNCH_PIPE"
_SECONDS_TO_END = 5.0  # for the others, when one has failed
_SECONDS_FOR_THE_TELLER = 5.0  # under another launcher, which ends the others as soon as one process has failed
_SECONDS_BETWEEN_LOOKS = 0.05
_LINES_SHOWN = 20  # of what a process printed that ended without an error of ours
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

_folder: Path | None = None  # of the launcher that started this process


def same_command() -> list[str]:
    """The command line of this process, for another one."""
    is_module = sys.modules["__main__"].__spec__ is not None  # python -m also finds modules in the working directory
    return [sys.executable, *([] if is_module else ["-P"]), "-m", "simpo_cli", *sys.argv[1:]]


def launch(command: Sequence[str], num_processes: int, may_restart: Callable[[], bool]) -> int:
    """Run a command in so many processes, and end with them.

    The first signal that asks to stop is passed on to all; the second Ctrl-C kills them.

    Args:
        may_restart: asked once, when they have failed: whether to start them again, so that they resume.

    Returns:
        The exit code of rank 0, which has said what there is to say.

    Raises:
        UserError: what ended another rank, or one that could not say it.
    """
    with StopRequest() as stop:
        outcome = _run(command, num_processes, stop, _environment(num_processes, restarts=0))
        if outcome.has_failed and may_restart():
            outcome = _run(command, num_processes, stop, _environment(num_processes, restarts=1))
    if outcome.error is not None:
        raise outcome.error
    return outcome.exit_code


def run_alone(command: Sequence[str]) -> int:
    """Run a command as a process that ends when this one does, and wait for it; it has the terminal.

    What it prints goes to stderr: stdout is for the result of its caller. A signal that asks to stop is passed on
    to it.

    Returns:
        Its exit code; it has said what there is to say.

    Raises:
        UserError: it was killed, and could not say it.
    """
    with StopRequest() as stop:
        outcome = _run(command, 1, stop, environment={})
    if outcome.error is not None:
        raise outcome.error
    return outcome.exit_code


class _Outcome(NamedTuple):
    exit_code: int
    error: UserError | None  # that is still to be told
    has_failed: bool


class _Worker:
    """One process of the run."""

    def __init__(
        self,
        rank: int,
        command: Sequence[str],
        environment: dict[str, str],
        folder: Path,
        pipe: int,
        stdout: int | None,
    ) -> None:
        self.rank = rank
        self._word, self._log = _word_of(rank, folder), folder / f"{rank}.log"
        self._stopped_by = ""
        self._is_given_up = False
        with self._log.open("wb") as log:
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} if rank else {"stdout": stdout}
            self._process = subprocess.Popen(command, env=environment, pass_fds=[pipe], **streams)

    @property
    def exit_code(self) -> int | None:
        """None while it lives."""
        return self._process.poll()

    @property
    def leaves_the_others(self) -> bool:
        """Whether the others cannot go on, and may not know."""
        if self.exit_code is not None and (self.rank == 0 or self.exit_code < 0):
            return True
        error = self.error()
        if error is None or error.is_consequence:
            return False
        return error.exit_code == ExitCode.INTERRUPTED or not error.is_shared  # an interrupt may be of this one alone

    @property
    def has_told(self) -> bool:
        """Whether it had the terminal, and was not killed before it could use it."""
        return self.rank == 0 and (self._word.exists() or (self.exit_code or 0) > 0)

    def stop(self, name: str) -> None:
        """Pass on that this signal asks the run to stop; one that it has got already does no more."""
        self._stopped_by = name
        self._process.terminate()

    def give_up(self) -> None:
        """Kill it, if it lives."""
        if self.exit_code is None:
            self._is_given_up = True
            self._process.kill()
            self._process.wait()

    def error(self) -> UserError | None:
        """What ends it; None while there is nothing to say."""
        with suppress(FileNotFoundError):
            return from_json(json.loads(self._word.read_bytes()), self.rank)
        if self._is_given_up or not self.exit_code:
            return None
        return self._unsaid(self.exit_code)

    def _unsaid(self, exit_code: int) -> UserError:
        """The error of a process that left none."""
        from simpo_cli.run.receipt import command_to_resume  # what it is built on takes a while to import

        fix, error_code = f"Resume with: {command_to_resume()}", ExitCode.ENVIRONMENT
        if self._stopped_by and exit_code in (-signal.SIGTERM, -signal.SIGINT):  # it did not listen yet, or no more
            return UserError(f"Stopped by {self._stopped_by}; what was saved is kept.", fix, exit_code=ExitCode.SAVED)
        if exit_code < 0:
            end = f"was killed by {signal.Signals(-exit_code).name}"
            if exit_code == -signal.SIGKILL:
                end += ", most often because the memory of the machine ran out"
        else:
            end, error_code = f"ended with exit code {exit_code}", ExitCode.CRASH
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
        printed = "\n".join([" It printed:", *lines]) if lines else ""
        return UserError(f"rank {self.rank} on {socket.gethostname()} {end}.{printed}", fix, exit_code=error_code)


def _run(command: Sequence[str], num_processes: int, stop: StopRequest, environment: Mapping[str, str]) -> _Outcome:
    """Start the processes once and wait for all of them; an empty environment gives them no place of several."""
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory(prefix="simpo-", ignore_cleanup_errors=True) as folder:
        pipe, write_end = os.pipe()
        common = {**os.environ, **environment, _FOLDER: folder, _PIPE: str(pipe)}
        try:
            for rank in range(num_processes):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if environment else {}
                stdout = None if environment else 2  # of rank 0; see run_alone
                workers.append(_Worker(rank, command, common | place, Path(folder), pipe, stdout))
            return _watch(workers, stop)
        except BlockingIOError as error:
            raise UserError(
                f"rank {len(workers)} of {num_processes} cannot be started: {error.strerror}.",
                "Start fewer processes, or raise the limit of the shell: ulimit -u",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        finally:
            for worker in workers:
                worker.give_up()
            os.close(pipe)
            os.close(write_end)
            if workers and (workers[0].exit_code or 0) < 0 and sys.stderr.isatty():
                os.write(2, SHOW_CURSOR + b"\n")


def _environment(num_processes: int, restarts: int) -> dict[str, str]:
    """What all processes have in their environment; threads that a person set stay."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free a moment ago
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // num_processes))),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
    }


def _watch(workers: Sequence[_Worker], stop: StopRequest) -> _Outcome:
    """Wait for the ends of all processes, which one of them may make necessary; what there is to say of them."""
    ended: list[_Worker] = []
    stopped, deadline = False, math.inf
    while len(ended) < len(workers):
        ended += [worker for worker in workers if worker not in ended and worker.exit_code is not None]
        try:
            if not stopped:
                stop.check()
        except Stopped as request:
            stopped = True
            for worker in workers:
                worker.stop(request.name)
        if deadline == math.inf and any(worker.leaves_the_others for worker in workers):
            deadline = time.monotonic() + _SECONDS_TO_END
        if time.monotonic() > deadline:
            for worker in workers:
                worker.give_up()
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    errors = [(worker, error) for worker in ended if (error := worker.error()) is not None]
    causes = [(worker, error) for worker, error in errors if not error.is_consequence]
    if not causes and workers[0].exit_code == ExitCode.DONE:
        return _Outcome(ExitCode.DONE, None, has_failed=False)
    for worker, error in causes:
        if worker.has_told:
            return _Outcome(max(worker.exit_code or 0, error.exit_code), None, has_failed=not stopped)
    error = (causes or errors)[0][1]
    return _Outcome(error.exit_code, error, has_failed=not stopped)


# In the processes


def follow_launcher() -> None:
    """End when our launcher does, in whatever way, if it has started this process; call before anything takes time."""
    global _folder
    if _FOLDER in os.environ and _PIPE in os.environ:
        _folder, pipe = Path(os.environ.pop(_FOLDER)), int(os.environ.pop(_PIPE))
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # at once, also out of a long call
        threading.Thread(target=_end_with_launcher, args=(pipe,), name="launcher", daemon=True).start()


def _end_with_launcher(pipe: int) -> None:
    try:
        os.read(pipe, 1)  # nothing is ever written
    finally:
        os._exit(ExitCode.ENVIRONMENT)


def is_followed() -> bool:
    """Whether a command of ours has started this process, and says itself what comes next."""
    return _folder is not None


def to_tell(error: UserError) -> UserError | None:
    """What this process is to print of the error that ends it; None where another process tells it."""
    place = _place_of_several()
    if place is None:
        return error
    if _folder is not None:
        return error if place.is_first and not error.is_consequence else None
    if place.is_first:
        return error
    if error.is_shared or error.is_consequence or error.exit_code == ExitCode.SAVED:
        with suppress(KeyboardInterrupt):
            time.sleep(_SECONDS_FOR_THE_TELLER)
        return None
    return from_json(as_json(error), place.rank)


def leave_word(error: UserError) -> None:
    """Let our launcher know what ends this process, which has printed what it is to print."""
    place = _place_of_several()
    if _folder is not None and place is not None:
        with suppress(OSError), replacing(_word_of(place.rank, _folder)) as stream:
            json.dump(redacted_values(as_json(error)), stream)


def _place_of_several() -> Place | None:
    with suppress(UserError):  # it may be the very error
        if (place := place_in()) is not None and place.world_size > 1:
            return place
    return None


def _word_of(rank: int, folder: Path) -> Path:
    """The file in which a process says what ends it."""
    return folder / f"{rank}.json"
