"""`simpo chat` as it is typed and piped: answers on stdout, all else on stderr, and pairs that train."""

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simpo_cli
from simpo_cli.cli import chat_loop
from simpo_cli.cli.chat_loop import ChatLoop
from simpo_cli.errors import ExitCode
from simpo_cli.evaluate.chat import Chat, Reply, Settings, Speaker, open_speakers
from simpo_cli.report.console import make_console
from tests.cli.seen import Seen, stats_of, typed, write_run_recipe
from tests.security.test_terminal import HOSTILE, _is_inert
from tests.tiny import save_tiny_model

GUIDE = "builtin:guide"
INVITE = "How do I invite a teammate?"

Type = Callable[..., Seen]


@pytest.fixture
def piped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Type:
    """Runs `simpo chat` with arguments and lines on stdin."""

    def type_in(lines: str | bytes, *words: str) -> Seen:
        data = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        return typed(capsys)("chat", *words)

    return type_in


def test_questions_and_commands_through_a_pipe(piped: Type) -> None:
    seen = piped(f"{INVITE}\n\n/again\n/better 2\n/nope\n/better\n/better 3\n/help\n/quit\nnot read\n", GUIDE)
    assert seen.code == ExitCode.DONE
    first, label, second = seen.out.splitlines()
    assert label == "2  builtin:guide"
    assert first != second
    [row] = map(json.loads, Path("preferences.jsonl").read_text().splitlines())
    assert row == {
        "prompt": [{"role": "user", "content": INVITE}],
        "chosen": [{"role": "assistant", "content": second}],
        "rejected": [{"role": "assistant", "content": first}],
    }
    head, help_text = seen.err[: seen.err.index("/better 1  ")], seen.err[seen.err.index("/better 1  ") :]
    assert "\n".join(line for line in head.splitlines() if not line[:2].isdigit() or line[1] == " ") == (
        "1  builtin:guide\n"
        "greedy, at most 512 tokens · /better appends to preferences.jsonl · /help\n"
        "appended to preferences.jsonl: answer 2 chosen, answer 1 rejected · pair 1 of this chat\n"
        "there is no command /nope.\n"
        "  See /help; a message may begin with / behind a space.\n"
        "which answer is better?\n"
        "  /better 1 or /better 2.\n"
        "which answer is better?\n"
        "  /better 1 or /better 2."
    )
    assert help_text == chat_loop._HELP.format(pairs="preferences.jsonl") + "\n"


def test_what_is_said_by_the_lines_of_a_message(piped: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def answer(_: Speaker, prompt: Any, *__: Any) -> Reply:
        asked.append(("/".join(turn.content for turn in prompt if turn.role == "system"), prompt[-1].content))
        return Reply("yes\x1b[2J", 3, ended=len(asked) > 1, stopped=False, without_oldest=len(asked) == 1)

    monkeypatch.setattr(Speaker, "answer", answer)
    lines = (
        b"one \\\n two\\\n/three\n /etc is what?\n/system Be kind.\ncaf\xe9\n/new\n  4\n/system\nfive\n\xc3\xa9 \\\n"
    )
    seen = piped(lines, GUIDE, "--system", "Be brief.")
    assert seen.code == ExitCode.DONE
    assert asked == [
        ("Be brief.", "one \n two\n/three"),
        ("Be brief.", "/etc is what?"),
        ("Be kind.", "caf\ufffd"),
        ("Be kind.", "4"),
        ("", "five"),
        ("", "é"),
    ]
    assert seen.out == "yes\\x1b[2J\n" * 6
    assert seen.err.count("cut at 3 tokens\n") == 1
    assert seen.err.count("the conversation is longer than what the model can read") == 1


def test_both_answers_and_pairs_that_stats_and_train_read(
    piped: Type, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "tiny", seed=1)
    lines = f"{INVITE}\n/better 1\nAnd\\\nthen?\n/better 1\n/new\n日本?\n/better 1\n"
    seen = piped(
        lines, GUIDE, "--beside", "tiny", "--pairs", "mine.jsonl", "--max-new-tokens", "30", "--system", "Be kind."
    )
    assert seen.code == ExitCode.DONE, seen.err
    rows = [json.loads(line) for line in Path("mine.jsonl").read_text().splitlines()]
    assert len(rows) == seen.err.count("appended to mine.jsonl: answer 1 chosen, answer 2 rejected · pair ") == 3
    asked = [[turn["content"] for turn in row["prompt"]] for row in rows]
    answers = [row["chosen"][0]["content"] for row in rows]
    assert asked == [
        ["Be kind.", INVITE],
        ["Be kind.", INVITE, answers[0], "And\nthen?"],
        ["Be kind.", "日本?"],
    ]
    assert [answer in seen.out for answer in answers] == [True] * 3
    assert [line for line in seen.out.splitlines() if line.endswith((f"  {GUIDE}", "  tiny"))] == [
        f"1  {GUIDE}",
        "2  tiny",
    ] * 3
    simpo = typed(capsys)
    assert stats_of(simpo, "mine.jsonl")["count"] == 3
    write_run_recipe(tmp_path, "again", "tiny", "seed: 3\n")
    seen = simpo(
        "train", "run.yaml", "data.train=mine.jsonl", "data.eval=prefs.jsonl", "data.max_length=128", "--dry-run"
    )
    assert seen.code == ExitCode.DONE, seen.err
    assert "3 pairs to train" in " ".join(seen.err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing is neither a run"),
        ([GUIDE, "--beside", "nothing"], "nothing is neither a run"),
        ([GUIDE, "--beside", "base"], "nothing says what builtin:guide started from"),
        ([GUIDE, "--beside", GUIDE], "the model beside builtin:guide is the same one"),
        ([GUIDE, "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        ([GUIDE, "--temperature", "nan"], "--temperature is nan"),
        ([GUIDE, "--pairs", "pairs.json"], "--pairs pairs.json is no file of JSON lines"),
        ([GUIDE, "--pairs", "folder.jsonl"], "--pairs folder.jsonl is no file of JSON lines"),
    ],
)
def test_what_is_refused_before_the_first_question(words: list[str], said: str, piped: Type) -> None:
    Path("folder.jsonl").mkdir()
    seen = piped("Hi\n", *words)
    assert seen.code == ExitCode.USAGE
    assert seen.out == ""
    assert said in seen.err


def test_a_full_disk_is_a_sentence_and_the_chat_continues(piped: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None])
    synced = os.fsync

    def fsync(descriptor: int) -> None:
        if (error := next(calls, None)) is not None:
            raise error
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    seen = piped(f"{INVITE}\n/again\n/better 1\n/better 1\n", GUIDE)
    assert seen.code == ExitCode.DONE
    assert (
        "preferences.jsonl cannot be written: No space left on device.\n  Free some space, and type /better 1 again.\n"
        in seen.err
    )
    assert len(Path("preferences.jsonl").read_text().splitlines()) == 1
    assert seen.err.endswith("answer 1 chosen, answer 2 rejected · pair 1 of this chat\n")


def test_an_answer_that_is_stopped_in_a_script_ends_it(piped: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speaker, "answer", lambda *_: reply("half an", stopped=True))
    seen = piped("a\nb\n", GUIDE)
    assert (seen.code, seen.out) == (ExitCode.INTERRUPTED, "half an\n")


PAGE = Path(simpo_cli.__file__).parent.parent / "docs" / "chat.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="the package is installed, not a checkout")
def test_the_page_shows_a_record_and_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    [record] = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    Path("preferences.jsonl").write_text(json.dumps(json.loads(record)) + "\n")
    assert stats_of(typed(capsys), "preferences.jsonl")["count"] == 1
    commands = set(re.findall(r"^(/\w+)", chat_loop._HELP, re.MULTILINE))
    assert {*commands, "/help"} == set(re.findall(r"`(/\w+)", "".join(re.findall(r"^\| .*", page, re.MULTILINE))))


# At a terminal

Talk = Callable[..., tuple[str, str, "Keys"]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Keys:
    """What a person types: lines; exceptions that keys make, with what stands at the prompt by then."""

    def __init__(self, *typed: str | tuple[type[BaseException], str]) -> None:
        self._typed, self.prompts, self.at_prompt = iter(typed), list[str](), ""

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        one = next(self._typed)
        if isinstance(one, str):
            return one
        self.at_prompt = one[1]
        raise one[0]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Runs the loop at a made-up terminal, with a speaker that says what it is told to; gives stdout, stderr, keys."""

    def talk(keys: Keys, speak: Callable[[Callable[[str], object]], Reply]) -> tuple[str, str, Keys]:
        streams = {name: Terminal() for name in ("stdin", "stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr("builtins.input", keys)
        for name in ("out", "err"):
            monkeypatch.setattr(chat_loop, name, make_console(streams[f"std{name}"], width=60, color_system=None))
        monkeypatch.setattr(Speaker, "answer", lambda *given: speak(given[-1]))
        loop = ChatLoop(Chat(open_speakers(GUIDE, None), Settings(8, 0.0, 0)), Path("preferences.jsonl"))
        loop._line_buffer = lambda: keys.at_prompt
        loop.run()
        return streams["stdout"].getvalue(), streams["stderr"].getvalue(), keys

    return talk


def reply(text: str, *, stopped: bool = False) -> Reply:
    return Reply(text, 1, ended=not stopped, stopped=stopped, without_oldest=False)


def test_keys_that_end_a_line_a_message_or_the_chat(terminal: Talk) -> None:
    said: list[str] = []

    def speak(hear: Callable[[str], object]) -> Reply:
        hear("y")
        hear("es")
        said.append("yes")
        return reply("yes")

    keys = Keys((KeyboardInterrupt, "half a line"), "a\\", (KeyboardInterrupt, ""), "b", (KeyboardInterrupt, ""))
    out, err, _ = terminal(keys, speak)
    assert (out, said) == ("yes\n", ["yes"])
    assert keys.prompts == ["> ", "> ", ". ", "> ", "> "]
    assert "stopped" not in err
    out, err, keys = terminal(Keys("b\\", (EOFError, ""), (EOFError, "")), speak)
    assert out == "yes\n"
    assert keys.prompts == ["> ", ". ", "> "]


def test_a_stopped_answer_is_marked(terminal: Talk) -> None:
    def speak(hear: Callable[[str], object]) -> Reply:
        hear("half an ")
        return reply("half an", stopped=True)

    out, err, _ = terminal(Keys("Hi", "/again", (EOFError, "")), speak)
    assert out == "half an \n" * 2
    assert err.count("stopped\n") == 2


def test_hostile_answers_are_shown_and_not_obeyed(terminal: Talk) -> None:
    texts = iter(HOSTILE[:2000])

    def speak(hear: Callable[[str], object]) -> Reply:
        for text in texts:
            hear(text)
        return reply("")

    out, err, _ = terminal(Keys("Hi \x1b[2J", "/\x1b[2J", (EOFError, "")), speak)
    assert _is_inert(out)
    assert _is_inert(err)
    assert "\\x1b[2J" in out
    assert "there is no command /\\x1b[2J." in err
