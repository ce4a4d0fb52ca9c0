"""A small server that speaks OpenAI's chat completions and judges as a test tells it to."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Said = tuple[int, Any]
"""Status and body; a body of None leaves the request open until the server is closed."""


@dataclass
class LocalJudge:
    """A running judge.

    Attributes:
        url: where.
        requests: what was asked, as parsed JSON, in the order of arrival.
        keys: the Authorization header of each.
    """

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def completion(text: str | None, *, finish_reason: str = "stop", refusal: str | None = None) -> Said:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    return 200, {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


def error(status: int, message: str, **more: str) -> Said:
    return status, {"error": {"message": message, "type": "t", **more}}


def shown_answers(request: dict[str, Any]) -> tuple[str, str]:
    """The two answers of a request, A first."""
    text = request["messages"][-1]["content"]
    found = [re.search(rf"<answer_{name}>\n(.*)\n</answer_{name}>", text, re.DOTALL) for name in "AB"]
    assert found[0] is not None
    assert found[1] is not None
    return found[0][1], found[1][1]


@contextmanager
def judge_server(say: Callable[[dict[str, Any]], Said]) -> Iterator[LocalJudge]:
    """A judge that answers each request with what `say` makes of it."""
    closing = threading.Event()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                judge.requests.append({**request, "path": self.path})
                judge.keys.append(self.headers["Authorization"])
                status, body = say(request)
            if body is None:
                closing.wait(30)
                return
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge = LocalJudge(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield judge
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
