"""The loop of `simpo chat` at the terminal: lines and commands in, answers out."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from simpo_cli.cli.options import say
from simpo_cli.errors import UserError
from simpo_cli.evaluate.chat import Chat, Reply, record_of
from simpo_cli.files import append_line, disk_faults
from simpo_cli.report.console import err, out, printable

_PROMPT, _MORE = "> ", ". "
_HELP = """\
/better 1      append the last answers to {pairs}, 1 as chosen and 2 as rejected, and continue with 1
/better 2      the same the other way round
/again         sample another answer to the last question
/new           start over, with the same system message
/system TEXT   start over with this system message; without TEXT with none
/quit          leave, as Ctrl-D does, and Ctrl-C at an empty prompt
A line that ends with \\ continues on the next one. Ctrl-C stops an answer."""


class ChatLoop:
    """What is typed goes to the chat, its answers to stdout as they come, and all else to stderr.

    Off a terminal it reads lines until there are no more, and writes each answer once it is whole.
    """

    def __init__(self, chat: "Chat", pairs: Path) -> None:
        self._chat, self._pairs, self._num_pairs = chat, pairs, 0
        self._is_typed, self._is_streamed = sys.stdin.isatty(), sys.stdout.isatty()
        self._line_buffer: Callable[[], str] = str  # what stands at the prompt, as far as that is known
        if self._is_typed and self._is_streamed:
            with suppress(ImportError):  # some builds of Python lack it; elsewhere it may write to stdout
                import readline  # editing and history of what `input` reads

                self._line_buffer = readline.get_line_buffer

    def run(self) -> None:
        """Talk until the person leaves."""
        self._greet()
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text shall not end the chat
        while (text := self._read()) is not None:
            try:
                if not self._obey(text):
                    return
            except UserError as error:
                say(str(error))
            except KeyboardInterrupt:  # at a moment when there is no answer to stop
                if not self._is_typed:
                    raise

    def _greet(self) -> None:
        chat, settings = self._chat, self._chat.settings
        for number, speaker in enumerate(chat.speakers, start=1):
            plain = " · no chat template: the conversation is Human/Assistant text" if speaker.is_plain else ""
            say(f"{number}  {speaker.name} · {speaker.weights}{plain}")
        how = f"sampled at temperature {settings.temperature:g}" if settings.temperature else "greedy"
        say(f"{how}, at most {settings.max_tokens} tokens · /better appends to {self._pairs} · /help", "dim")

    # Input

    def _read(self) -> str | None:
        """What is typed next: a line, with those behind it that a backslash announces; None at the end."""
        lines: list[str] = []
        while not lines or lines[-1].endswith("\\"):
            try:
                lines.append(self._line(_MORE if lines else _PROMPT))
            except (EOFError, KeyboardInterrupt) as end:
                if not self._is_typed and isinstance(end, KeyboardInterrupt):
                    raise
                say("")
                if isinstance(end, EOFError) or not (lines or self._line_buffer()):
                    return None
                lines = []
        return "\n".join([*(line.removesuffix("\\") for line in lines[:-1]), lines[-1]]).rstrip()

    def _line(self, prompt: str) -> str:
        if self._is_typed and self._is_streamed:
            return input(prompt)  # which has readline's editing and history, where that was imported
        if self._is_typed:
            err.print(prompt, end="")
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")

    def _obey(self, text: str) -> bool:
        """Do what was typed; whether the chat continues."""
        chat = self._chat
        command, _, given = text.partition(" ")
        match command, given.strip():
            case "/quit", "":
                return False
            case "/help", "":
                say(_HELP.format(pairs=self._pairs))
            case "/new", "":
                chat.start_over(chat.system)
                say("started over", "dim")
            case "/system", system:
                chat.start_over(system)
                say(
                    "started over with this system message" if system else "started over without a system message",
                    "dim",
                )
            case "/again", "":
                chat.again(self)
            case "/better", "1" | "2" as number:
                self._note(int(number))
            case "/better", _:
                raise UserError("which answer is better?", "/better 1 or /better 2.")
            case _ if command.startswith("/"):
                raise UserError(f"there is no command {text}.", "See /help; a message may begin with / behind a space.")
            case _ if text:
                chat.ask(text.strip(), self)
        return True

    def _note(self, number: int) -> None:
        """Append the pair to the file of preferences, and continue with the better answer."""
        line = json.dumps(record_of(self._chat.better(number)), ensure_ascii=False)
        with disk_faults(f"{self._pairs} cannot be written", f", and type /better {number} again"):
            append_line(self._pairs, line)
        self._chat.continue_with(number)
        self._num_pairs += 1
        say(f"answer {number} is the chosen one of pair {self._num_pairs} for {self._pairs}", "dim")

    # Answers

    def begin(self, number: int, name: str) -> None:
        """Say whose answer follows, where there are several."""
        if len(self._chat.speakers) > 1 or number > 1:
            say(f"{number}  {name}", "bold")

    def hear(self, piece: str) -> None:
        """Show a piece of an answer."""
        if self._is_streamed:
            out.print(printable(piece, keep_newlines=True), end="", soft_wrap=True)

    def end(self, reply: "Reply") -> None:
        """End an answer, and say where it is not whole."""
        out.print("" if self._is_streamed else printable(reply.text, keep_newlines=True), soft_wrap=True)
        if reply.stopped:
            say("stopped", "dim")
        elif not reply.ended:
            say(f"cut at {self._chat.settings.max_tokens} tokens, or where the model's positions end", "dim")
        if reply.without_oldest:
            say("the conversation is longer than the model's positions: what is oldest was left out", "dim")
        if self._is_streamed:
            say("")
