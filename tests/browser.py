"""A real browser that looks at pages of a folder, and a server that counts what they ask for."""

import functools
import html
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)


class Looked(NamedTuple):
    """What the page that looks wrote into its `<pre id="found">`, what was asked for besides it, and complaints."""

    found: str
    asked: list[str]
    complaints: list[str]


class _Counting(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]


def look(folder: Path, harness: str, *flags: str) -> Looked:
    """Open a page that looks at others from outside, as they run no script themselves.

    Args:
        folder: served on a port of this machine; the browser can find no other host.
        harness: the page that looks.
        flags: more of the browser's.
    """
    assert CHROMIUM is not None
    (folder / "harness.html").write_text(harness, encoding="utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Counting, directory=str(folder))) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [
                CHROMIUM,
                *_FLAGS,
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"--user-data-dir={folder / 'profile'}",
                *flags,
                "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/harness.html",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        server.shutdown()
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    asked = sorted(set(server.asked) - {"/harness.html", "/favicon.ico"})  # type: ignore[attr-defined]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon.ico" not in line]
    return Looked(html.unescape(found[1]), asked, complaints)
