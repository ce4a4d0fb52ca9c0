"""Text of others on a terminal: 10,000 random strings through everything that prints, and not one is obeyed."""

import contextlib
import copy
import io
import json
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import yaml

from simpo_cli.cli import main
from simpo_cli.cli import recipe as recipe_command
from simpo_cli.cli.options import say
from simpo_cli.data.pair import BadRecord
from simpo_cli.errors import UserError
from simpo_cli.formatting import Cell
from simpo_cli.recipe.tree import Origin, node_of
from simpo_cli.recipe.yaml_text import to_yaml
from simpo_cli.report.console import Console, make_console, printable
from simpo_cli.report.eval_view import print_eval
from simpo_cli.report.findings_view import annotations
from simpo_cli.report.inspect_view import print_inspection
from simpo_cli.report.live import LivePanel, print_outcome
from simpo_cli.report.page import json_text
from simpo_cli.report.watch import Heartbeat
from simpo_cli.run.events import Note, RunHeader, RunOutcome
from simpo_cli.table import Row, Table
from tests.report.screen import EVALUATION, STEP
from tests.report.test_eval_view import RESULT
from tests.report.test_inspect_view import DOCUMENT

COUNT = 10_000
PIECES = [
    "\x1b]0;title\x07", "\x1b]8;;http://evil.test\x1b\\", "\x1b[2J", "\x1b[38;5;201m", "\x1b[?1049h", "\x1bP1$r\x1b\\",
    "\x1b]52;c;ZXZpbA==\x07", "\x1bc", "\x1b[6n", "\x1b", "\x9b2J", "\x9b201~", "\x9d0;t\x9c", "\x90q\x9c", "\x85",
    "\x07", "\x08\x08\x08", "\r", "\x00", "\x7f", "\x0c", "\x0b", "\x0e", "\t", "\n", "\r\n", "\u202e", "\u202d",
    "\u2066", "\u2069", "\u200e", "\u200f", "\u061c", "\u200b", "\ufeff", "\u2028", "\u2029", "\u00ad", "\U000e0041",
    "\ud800", "\udfff", "[red]", "[/red]", "[link=http://evil.test]", "[/]", "[bold", "]", "[@click=app.bell()]", "\\[",
    ":smile:", ":warning:", "True", "12", "http://a.test", "'quoted'", "::error file=a::b", "##[error]c",
    "::stop-commands::x",
    "%0A", "ü", "言語", "שלום", "می\u200cخواهم", "👩\u200d🔬", "e\u0301", " ", "word", "a.jsonl:17",
]  # fmt: skip
ALLOWED = "\u200c\u200d"


def _hostile() -> list[str]:
    draw = random.Random(20)
    strings = ["".join(draw.choices(PIECES, k=draw.randint(1, 6))) for _ in range(COUNT - 1000)]
    return strings + ["".join(chr(draw.randrange(0x300)) for _ in range(draw.randint(1, 12))) for _ in range(1000)]


HOSTILE = _hostile()
TAME = ["word 12"] * 100


def _is_inert(text: str) -> bool:
    """Whether nothing in it, but line ends, could act on a terminal; written here once more, and not as in our code."""
    return not any(
        unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in ALLOWED
        for letter in text.replace("\n", "")
    )


def _events(console: Console, texts: Sequence[str]) -> None:
    """What a run prints, with foreign text wherever text goes."""
    quarter = len(texts) // 4
    lines = tuple(Note(text[:10], text) for text in texts[:quarter])
    answers = tuple((text, text, f"{text} {text}") for text in texts[quarter : 2 * quarter])
    rows = [Row(text, (Cell(text), Cell(text, text)), text) for text in texts[2 * quarter : 2 * quarter + 20]]
    table = Table((texts[3], texts[4]), rows, title=texts[5])
    outcome = RunOutcome(texts[0], texts[1], 2, 3.0, answers, table, tuple((text, text) for text in texts[:20]))
    watcher = (
        LivePanel(console, clock=lambda: 0.0)
        if console.is_terminal
        else Heartbeat(console, clock=lambda: 0.0, now=lambda: datetime(2026, 1, 1))
    )
    watcher.started(RunHeader(texts[2], lines), num_steps=2, first_step=0)
    for text in texts[2 * quarter :]:
        watcher.note(text)
    watcher.step(replace(STEP, step=1))
    watcher.evaluated(EVALUATION)
    watcher.close()
    print_outcome(console, outcome)


def _inspection(console: Console, texts: Sequence[str]) -> None:
    for start in range(0, len(texts), 500):
        part = texts[start : start + 500]
        document: dict[str, Any] = copy.deepcopy(DOCUMENT)
        document.update(recipe=part[0], decision=part[1])
        document["tokenizer"]["path"] = document["model"]["path"] = part[2]
        pair = document["pairs"][0]
        pair.update(where=part[3], remarks=list(part[4:9]))
        for side in ("prompt", "chosen", "rejected"):
            pair[side]["tokens"] = [{"id": 1, "text": text, "logp": -1.0} for text in part]
        print_inspection(console, document, full=True)


def _evaluations(console: Console, texts: Sequence[str]) -> None:
    for one, other in zip(texts[::20], texts[1::20], strict=True):
        print_eval(console, {**RESULT, "model": one, "data": other})


VIEWS: dict[str, Callable[[Console, Sequence[str]], None]] = {
    "a run": _events,
    "inspect": _inspection,
    "eval": _evaluations,
}


@pytest.mark.parametrize("view", VIEWS)
def test_random_strings_off_a_terminal(view: str) -> None:
    stream = io.StringIO()
    VIEWS[view](make_console(stream, width=100), HOSTILE)
    assert _is_inert(stream.getvalue())


@pytest.mark.parametrize("view", VIEWS)
def test_random_strings_on_a_terminal_add_no_sequence_of_their_own(view: str) -> None:
    def sequences(texts: Sequence[str]) -> set[str]:
        stream = io.StringIO()
        VIEWS[view](make_console(stream, width=100, height=30, force_terminal=True), texts)
        written = stream.getvalue()
        ours = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
        assert _is_inert(ours.sub("", written))
        return set(ours.findall(written))

    assert sequences(HOSTILE[:3000]) <= sequences(TAME) | {"\r"}


def test_markup_and_emoji_codes_stay_as_they_are_written() -> None:
    text = "[red]x[/red] [link=http://evil.test]y[/link] :smile: [bold] \\[z]"
    for force_terminal in (False, True):
        stream = io.StringIO()
        console = make_console(stream, width=200, force_terminal=force_terminal, height=30)
        _events(console, [text] * 20)
        _inspection(console, [text] * 20)
        _evaluations(console, [text] * 20)
        assert stream.getvalue().count(text) >= 40
        assert "evil.test\x1b" not in stream.getvalue()
        assert "\N{GRINNING FACE WITH SMILING EYES}" not in stream.getvalue()


@contextlib.contextmanager
def _streams() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def test_random_strings_in_errors_and_remarks() -> None:
    with _streams() as (out, err):
        for text in HOSTILE:
            main._say(f"Error: {UserError(text, text, where=text)}")
            say(text)
            recipe_command._print_wrapped(text, text)
    assert _is_inert(out.getvalue())
    assert _is_inert(err.getvalue())


def test_random_strings_in_documents_are_the_same_when_they_are_read() -> None:
    whole = [text for text in HOSTILE if not any("\ud800" <= letter <= "\udfff" for letter in text)]
    document = json_text({"texts": whole})
    assert json.loads(document) == {"texts": whole}
    assert all(_is_inert(line) or "\U000e0041" in line for line in document.split("\n"))
    recipe = to_yaml(node_of({"texts": whole[:1000]}, Origin()))
    assert _is_inert(recipe.replace("\u200c", "").replace("\u200d", ""))
    assert yaml.safe_load(recipe)["texts"] == [text.replace("\\${", "${") for text in whole[:1000]]


def _findings(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        finding = {"code": "FMT001", "severity": "error", "count": 1, "rows": [f"{text}:17"], "hint": text}
        yield from annotations({"findings": [finding]}, [BadRecord(text, text, text, text)])


def test_random_strings_in_annotations_are_one_command_each() -> None:
    commands = list(_findings(HOSTILE))
    assert len(commands) == COUNT
    for command in commands:
        assert _is_inert(command)
        assert "\n" not in command
        assert re.fullmatch(r"::error file=[^,:]*,line=17,title=[^,:]*::.*", command)


def test_nothing_that_is_printed_is_a_command_to_githubs_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    stream = io.StringIO()
    texts = [*HOSTILE[:1000], *(f"{'x' * n} ::add-mask::y ##[set-output name=z]w" for n in range(100))]
    for view in VIEWS.values():
        view(make_console(stream, width=100), texts)
    with _streams() as (_, err):
        for text in texts:
            main._say(text)
    printed = stream.getvalue() + err.getvalue() + json_text({"texts": [t for t in texts if _is_inert(t)]})
    assert "add-mask" in printed
    assert not [line for line in printed.split("\n") if line.lstrip().startswith("::") or "##[" in line]
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert printable("std::vector ##[1]") == "std::vector ##[1]"


def test_the_inert_is_told_from_the_rest() -> None:
    assert _is_inert("plain 言語 می\u200cخواهم\n")
    for piece in ("\x1b[2J", "\x9b2J", "\u202e", "\r", "\t", "\ud800", "\u2028", "\U000e0041"):
        assert not _is_inert(piece)
    assert sys.getdefaultencoding() == "utf-8"
