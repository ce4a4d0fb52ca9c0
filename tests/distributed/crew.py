"""Several ranks for a test: children of a process that has imported torch and has run no tensor operation.

Importing torch takes seconds, and a fork milliseconds.
"""

import json
import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simpo_cli.distributed import ranks


def crew(size: int, work: Callable[[], Any], *, timeout: float = 60.0) -> list[Any]:
    """What `work` returns on each rank, JSON values; a traceback of one that raised, and None of one that died."""
    with tempfile.TemporaryDirectory() as place:
        port = _free_port()
        answers = [Path(place, str(rank)) for rank in range(size)]
        others_have_ended, until = os.pipe()
        children = [
            _start(rank, size, port, work, timeout, answers[rank], (others_have_ended, until)) for rank in range(size)
        ]
        os.close(others_have_ended)
        for pid in children[1:]:
            os.waitpid(pid, 0)
        os.close(until)
        os.waitpid(children[0], 0)
        return [json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else None for answer in answers]


def _start(
    rank: int, size: int, port: str, work: Callable[[], Any], timeout: float, answer: Path, pipe: tuple[int, int]
) -> int:
    pid = os.fork()
    if pid == 0:
        others_have_ended, until = pipe
        os.close(until)
        try:
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            ranks.join("cpu", timeout)
            answer.write_text(json.dumps(work()), encoding="utf-8")
            if rank == 0:  # which holds what the others say
                os.read(others_have_ended, 1)
        except BaseException:
            answer.write_text(json.dumps(traceback.format_exc()), encoding="utf-8")
        os._exit(0)
    return pid


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
