"""The two consoles of the command line: `out` for data, `err` for everything else.

Much of what is shown was written by others: prompts, answers, paths, model names. So nothing is read as markup or emoji
codes, nothing is highlighted, and whoever prints such text passes it through `printable` first. A stream that is not
UTF-8 gets ASCII stand-ins for what it cannot show, and a reader that goes away never ends the run it was reading.
"""

import os
import re
import sys
import unicodedata
from collections.abc import Callable
from typing import IO, Any, TextIO, cast

import rich.console
from rich.file_proxy import FileProxy
from rich.text import Text

from simpo_cli.redaction import redacted

_STAND_INS = {
    "…": "...",
    "±": "+/-",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "⏎": "\\n",
    **dict(zip("·–—−×‘’“”", "----x''\"\"", strict=True)),
    **dict(zip("━─│▁▂▃▄▅▆▇█", "=-|__..--''", strict=True)),  # bars and sparklines, by height
}

_JOINERS = "\u200c\u200d"  # of Persian and Indic words and of emoji: invisible, and meant to be there


def printable(text: str, *, keep_newlines: bool = False) -> str:
    """Foreign text with its control characters shown, so that it cannot move the cursor or reorder what is beside it.

    Escape sequences, C0 and C1 controls, marks that reverse the writing direction, invisible tags, lone surrogates and
    line separators come out as `\\x1b` or `\\u202e`; other letters of any script stay as they are. Values that a
    recipe took from the environment come out as the recipe names them.

    With `keep_newlines` newlines stay and tabs become four spaces; else both are shown as `\\n` and `\\t`.
    """
    text = redacted(text)
    if keep_newlines:
        text = text.replace("\r\n", "\n").replace("\t", "    ")
    if text.isascii() and text.isprintable():
        return text
    harmless = _JOINERS + "\n" * keep_newlines
    return "".join(
        _escaped(character)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in harmless
        else character
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def encodable(text: str, encoding: str) -> str:
    """`text` with stand-ins for what `encoding` lacks: `·` becomes `-`, a foreign letter its escape (`\\u4e2d`)."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        if len(text) == 1:
            return _STAND_INS.get(text) or _escaped(text)
        return "".join(encodable(character, encoding) for character in text)
    except LookupError:  # an encoding that Python does not know
        return encodable(text, "ascii")
    return text


_COMMAND = re.compile(r"^([ \t]*):(?=:)|#(?=#\[)", re.MULTILINE)


def unobeyed(text: str) -> str:
    """What GitHub's runner would take for a command of the workflow, written so that it does not.

    It obeys lines that begin with `::name::`, wherever a wrapped text happens to begin one, and `##[name]` anywhere.
    Elsewhere the text is as it was.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return text
    return _COMMAND.sub(lambda found: f"{found[1]}\\x3a" if found[0][-1] == ":" else "\\x23", text)


class _Stream:
    """A text stream that takes any text, and goes quiet when its reader has gone away, that is, at an error `leaving`.

    `find` gives the stream to write to; it is asked each time, because tests and libraries swap sys.stdout.
    """

    def __init__(self, find: Callable[[], TextIO], leaving: type[OSError]) -> None:
        self._find, self._leaving = find, leaving
        self._is_quiet = False

    @property
    def target(self) -> TextIO:
        stream = self._find()
        # a live display puts a proxy in place of sys.stderr that prints through its console, that is, through us
        return cast(TextIO, stream.rich_proxied_file) if isinstance(stream, FileProxy) else stream

    @property
    def encoding(self) -> str:
        return self.target.encoding or "utf-8"  # StringIO has none

    def write(self, text: str) -> int:
        self._unless_left(lambda: self.target.write(encodable(unobeyed(text), self.encoding)))
        return len(text)

    def flush(self) -> None:
        self._unless_left(lambda: self.target.flush())

    def isatty(self) -> bool:
        return self.target.isatty()

    def fileno(self) -> int:
        return self.target.fileno()

    def _unless_left(self, act: Callable[[], Any]) -> None:
        if self._is_quiet:
            return
        try:
            act()
        except self._leaving:
            self._is_quiet = True
            # what is still in the stream's buffer would raise once more when Python closes it
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self.fileno())
            os.close(devnull)


class Console(rich.console.Console):
    """A rich console for text of others: no markup, no emoji codes, no highlighting, only characters the stream has."""

    def render_str(self, text: str, **settings: Any) -> Text:
        # before the layout, so that columns still line up when a stand-in is wider
        return super().render_str(encodable(text, self.encoding), **settings)


def make_console(
    stream: TextIO | None = None,
    *,
    stderr: bool = False,
    width: int | None = None,
    height: int | None = None,
    force_terminal: bool | None = None,
) -> Console:
    """A console on `stream`, or on whatever sys.stdout (sys.stderr) is at the time of writing.

    Colour follows the stream and NO_COLOR, the width follows the terminal and COLUMNS, unless they are given.
    A full disk is an error for data on stdout; on stderr no failed write stops the program.
    """
    assert stream is None or not stderr, "a stream or stderr, not both"

    def find() -> TextIO:
        return stream or (sys.stderr if stderr else sys.stdout)

    is_data = not stderr and stream in (None, sys.stdout)
    return Console(
        file=cast(IO[str], _Stream(find, BrokenPipeError if is_data else OSError)),
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        width=width,
        height=height,
        force_terminal=force_terminal,
    )


out = make_console()
err = make_console(stderr=True)
