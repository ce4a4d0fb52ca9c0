"""Real processes that run `simpo`, quickly: a server that has imported everything forks one for every command line.

`python -m tests.faults.children` is the server. It has run no tensor operation, so it has no threads that a fork would
lose. It reads a list of command lines as one line of JSON, forks a child for each, tells their process ids, and when
all have ended their exit codes (below 0: the signal that ended it).
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]


class Children:
    """The server's client; a context.

    Args:
        place: the folder in which the commands run; their output goes to `child-<n>.log` there.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> "Children":
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.children"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def start(self, *commands: Sequence[str]) -> list[int]:
        """Start a child for each list of arguments of `simpo`, and return their process ids."""
        assert self._server.stdin is not None
        request = {"commands": [list(command) for command in commands], "place": str(self.place)}
        self._server.stdin.write(json.dumps(request).encode() + b"\n")
        self._server.stdin.flush()
        pids: list[int] = self._answer()
        return pids

    def wait(self, seconds: float | None = None) -> list[int] | None:
        """The exit codes when all children have ended; None when some have not after so many seconds."""
        if not select.select([self._server.stdout], [], [], seconds)[0]:
            return None
        codes: list[int] = self._answer()
        return codes

    def run(self, *command: str) -> int:
        """Run one command line to its end and return its exit code."""
        self.start(command)
        codes = self.wait()
        assert codes is not None
        return codes[0]

    def said(self, number: int = 0) -> str:
        """What a child has written, on both streams."""
        return (self.place / f"child-{number}.log").read_text(encoding="utf-8")

    def _answer(self) -> Any:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()  # whole lines only, so nothing stays in the buffer that select looks past
        assert line, "the server has died"
        return json.loads(line)


def serve() -> None:
    """Be the server until stdin closes."""
    sys.argv[0] = "simpo"
    import transformers.generation.utils
    import transformers.models.llama.modeling_llama  # noqa: F401

    import simpo_cli.report.watch
    import simpo_cli.train.run  # noqa: F401

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for number, command in enumerate(request["commands"]):
            pid = os.fork()
            if pid == 0:
                _be_a_child(command, Path(request["place"]), number)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


def _be_a_child(command: list[str], place: Path, number: int) -> None:
    code = 1
    try:
        os.chdir(place)
        log = os.open(f"child-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        sys.argv[1:] = command
        from simpo_cli.cli.main import run

        code = run(command)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
