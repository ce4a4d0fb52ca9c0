"""Real processes that run `simpo`, quickly: a server that has imported everything forks one for every command line.

`python -m tests.faults.children` is the server. It has run no tensor operation, so it has no threads that a fork would
lose. It reads a list of command lines as one line of JSON, forks a child for each and tells their process ids; whenever
one has ended it tells which, and its exit code (below 0: the signal that ended it). Every child leads a process group
of its own, so that what it leaves behind is found: nothing may be, ten seconds after its end. And it tells what it is
doing; see `phases`.
"""

import gc
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults.phases import Interruption, read_events, read_phase, tell_phases

ROOT = Path(__file__).parents[2]
SECONDS_TO_GO = 10.0


class Children:
    """The server's client; a context.

    The commands run in a place, with the cache of the tokens in `cache`; what they say goes to `child-<n>.log` there.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._codes: dict[int, int] = {}  # of the children that have ended, by number
        self._pids: list[int] = []

    def __enter__(self) -> "Children":
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.children"],
            start_new_session=True,  # Ctrl-C is for whoever waits for the children
            cwd=ROOT,
            env={**os.environ, **environment(self.place)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._server.stdin is not None
        for number, pid in enumerate(self._pids):
            if number not in self._codes:
                os.kill(pid, signal.SIGKILL)  # one that stands still would be waited for
        self._server.stdin.close()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def start(
        self,
        *commands: Sequence[str],
        interrupted: Interruption | None = None,
        together: bool = False,
        arranged: str = "",
    ) -> list[int]:
        """Start a child for each list of arguments of `simpo`, and return their process ids; the last must have ended.

        Each of them sends itself signals where it is `interrupted`; `together` they are the ranks of one run. What is
        `arranged`, such as `tests.place:function`, is called in each before it begins.
        """
        assert len(self._codes) == len(self._pids)
        assert self._server.stdin is not None
        request = {
            "commands": [list(command) for command in commands],
            "place": str(self.place),
            "interrupted": None if interrupted is None else asdict(interrupted),
            "port": _free_port() if together else None,
            "arranged": arranged,
        }
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        self._codes = {}
        self._pids = self._answer()
        return self._pids

    def wait(self, seconds: float | None = None) -> list[int] | None:
        """The exit codes when all children have ended; None when for so many seconds none of those left has."""
        while len(self._codes) < len(self._pids):
            if self.wait_for_one(seconds) is None:
                return None
        return [self._codes[number] for number in range(len(self._pids))]

    def wait_for_one(self, seconds: float | None = None) -> tuple[int, int] | None:
        """Number and exit code of the child that ends next; None when for so many seconds none has."""
        if not select.select([self._server.stdout], [], [], seconds)[0]:
            return None
        number, code, is_alone = self._answer()
        assert is_alone, f"ten seconds after its end, something of child {number} is alive"
        self._codes[number] = code
        return number, code

    def run_ranks(self, ranks: int, *command: str, arranged: str = "") -> list[int]:
        """Run one command line in so many processes, as a launcher starts them, and return their exit codes."""
        self.start(*[command] * ranks, together=ranks > 1, arranged=arranged)
        codes = self.wait()
        assert codes is not None
        return codes

    def run(self, *command: str, interrupted: Interruption | None = None) -> int:
        """Run one command line to its end and return its exit code."""
        self.start(command, interrupted=interrupted)
        codes = self.wait()
        assert codes is not None
        return codes[0]

    def said(self, number: int = 0) -> str:
        """What a child has written, on both streams."""
        return (self.place / f"child-{number}.log").read_text(encoding="utf-8")

    def phase(self, number: int = 0) -> str:
        """What a child is doing, or was doing when it ended: one of `PHASES`."""
        return read_phase(self.place / f"child-{number}.phase")

    def events(self, number: int = 0) -> Mapping[str, int]:
        """What a child has counted that was to be interrupted at an event."""
        return read_events(self.place / f"child-{number}.phase")

    def _answer(self) -> Any:
        assert self._server.stdout is not None
        line = line_of(self._server.stdout.fileno())
        assert line, "the server has died"
        return json.loads(line)


def make_place(folder: Path) -> Path:
    """Fill a folder with a tiny model, pairs and a recipe, and return it.

    `run.yaml` is the recipe: nine steps, a checkpoint after each, four evaluations. Every prompt is cut, so none is
    asked as a question: answers take long and are not what the faults are about.
    """
    from tests.tiny import save_tiny_model
    from tests.train.runs import write_prefs

    save_tiny_model(folder / "tiny")
    write_prefs(folder / "prefs.jsonl", pairs=44, prompts=44)
    (folder / "run.yaml").write_text(
        "name: run\nmodel: {path: tiny}\n"
        "data: {train: prefs.jsonl, holdout: 8, max_length: 64, max_prompt_length: 12}\n"
        "train: {pairs_per_step: 4, learning_rate: 1e-3, precision: fp32}\n"
        "eval: {every: 3}\ncheckpoint: {every: 1, keep: 2, best: true}\n",
        encoding="utf-8",
    )
    return folder


def environment(place: Path) -> dict[str, str]:
    """What a run in a place finds in its environment."""
    return {
        "SIMPO_CACHE": str(place / "cache"),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def line_of(descriptor: int, seconds: float | None = None) -> str:
    """The next line, a byte at a time, so that nothing stays in a buffer that select does not see; at the end none."""
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([descriptor], [], [], seconds)[0], "no answer from the child"
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return line.decode().strip()


def serve() -> None:
    """Be the server until stdin closes."""
    be_ready_to_fork()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        numbers = {}
        for number, command in enumerate(request["commands"]):
            pid = os.fork()
            if pid == 0:
                if request["port"] is not None:
                    os.environ |= _rank_environment(number, len(request["commands"]), request["port"])
                if request["arranged"]:
                    pkgutil.resolve_name(request["arranged"])()
                _be_a_child(command, number, Path(request["place"]), request["interrupted"])
            numbers[pid] = number
        print(json.dumps(list(numbers)), flush=True)
        while numbers:
            pid, status = os.wait()
            print(json.dumps([numbers.pop(pid), os.waitstatus_to_exitcode(status), _is_alone(pid)]), flush=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Where a launcher says that a process stands."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {**{name: str(value) for name, value in places.items()}, "MASTER_ADDR": "127.0.0.1"}


def _is_alone(pid: int) -> bool:
    """Whether nothing is left of the process group of a child that has ended, within ten seconds of that."""
    deadline = time.monotonic() + SECONDS_TO_GO
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def _be_a_child(command: list[str], number: int, place: Path, interrupted: dict[str, Any] | None) -> None:
    def begin() -> None:
        os.setpgid(0, 0)
        for stop in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # ignored under nohup, and so they would stay
            signal.signal(stop, signal.SIG_DFL if stop != signal.SIGINT else signal.default_int_handler)
        tell_phases(place / f"child-{number}.phase", None if interrupted is None else Interruption(**interrupted))

    be_a_run(place, command, place / f"child-{number}.log", begin)


def be_a_run(place: Path, command: Sequence[str], log: Path, begin: Callable[[], None]) -> None:
    """Be `simpo` with these arguments in a process that was just forked, and end with it."""
    code = 1
    try:
        os.chdir(place)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        sys.argv = ["simpo", *command]
        begin()
        from simpo_cli.cli.main import run

        code = run(command)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def be_ready_to_fork() -> None:
    """Import everything that a run needs, and run no tensor operation: that would start threads, which a fork loses."""
    from simpo_cli.cli.options import quiet_libraries

    quiet_libraries()
    import transformers.generation.utils
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import simpo_cli.distributed.launch
    import simpo_cli.report.run_page
    import simpo_cli.report.study_page
    import simpo_cli.report.watch
    import simpo_cli.train.session
    import simpo_cli.tune.session
    from simpo_cli.model.quantised import bitsandbytes

    bitsandbytes()

    simpo_cli.distributed.launch._SECONDS_FOR_THE_TELLER = 0.0  # nobody ends the others when one of them ends
    get_checkpoint_conversion_mapping("llama")  # a process makes this table once, before it loads its first model
    gc.freeze()  # no child need walk through all that was imported, which would also copy its memory


if __name__ == "__main__":
    serve()
