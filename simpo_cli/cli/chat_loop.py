"""The loop of `simpo chat` at the terminal: lines and commands in, answers out."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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

    def __init__(self, chat: Chat, pairs: Path) -> None:
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
                _say(str(error))
            except KeyboardInterrupt:  # at a moment when there is no answer to stop
                if not self._is_typed:
                    raise

    def _greet(self) -> None:
        settings = self._chat.settings
        for number, speaker in enumerate(self._chat.speakers, start=1):
            plain = "" if speaker.tokenizer.has_template else " · no chat template: it reads Human/Assistant text"
            _say(f"{number}  {speaker.name}{plain}")
        how = f"sampled at temperature {settings.temperature:g}" if settings.temperature else "greedy"
        _say(f"{how}, at most {settings.max_tokens} tokens · /better appends to {self._pairs} · /help", "dim")

    # Input

    def _read(self) -> str | None:
        """What is typed next, which a backslash at the end of a line continues on the next one; None at the end."""
        text = ""
        while True:
            try:
                text += self._line(_MORE if text else _PROMPT)
            except EOFError:
                self._end_line()
                return text.rstrip() if text else None
            except KeyboardInterrupt:
                if not self._is_typed:
                    raise
                self._end_line()
                if not text and not self._line_buffer():
                    return None
                text = ""
                continue
            if not text.endswith("\\"):
                return text.rstrip()
            text = text[:-1] + "\n"

    def _end_line(self) -> None:
        if self._is_typed:
            err.print()

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
                _say(_HELP.format(pairs=self._pairs))
            case "/new", "":
                chat.start_over(chat.system)
                _say("started over", "dim")
            case "/system", system:
                chat.start_over(system)
                _say(f"started over with {'this' if system else 'no'} system message", "dim")
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
        which = f"answer {number} chosen, answer {3 - number} rejected"
        _say(f"appended to {self._pairs}: {which} · pair {self._num_pairs} of this chat", "dim")

    # Answers

    def begin(self, number: int, name: str) -> None:
        """Say whose answer follows, where there are several: beside the answers, which a file or a pipe may take."""
        if len(self._chat.speakers) == 1 and number == 1:
            return
        if self._is_streamed:
            _say(f"{number}  {name}", "bold")
        else:
            out.print(printable(f"{number}  {name}"), soft_wrap=True)

    def hear(self, piece: str) -> None:
        """Show a piece of an answer."""
        if self._is_streamed:
            out.print(printable(piece, keep_newlines=True), end="", soft_wrap=True)

    def end(self, reply: Reply) -> None:
        """End an answer, and say where it is not whole."""
        out.print("" if self._is_streamed else printable(reply.text, keep_newlines=True), soft_wrap=True)
        if reply.stopped:
            _say("stopped", "dim")
            if not self._is_typed:
                raise KeyboardInterrupt
        elif not reply.ended:
            _say(f"cut at {reply.num_tokens} tokens", "dim")
        if reply.without_oldest:
            _say("the conversation is longer than what the model can read: what is oldest was left out", "dim")
        if self._is_streamed:
            err.print()


def _say(text: str, style: str = "") -> None:
    """Lines on stderr, on a terminal broken between words."""
    err.print(printable(text, keep_newlines=True), style=style, soft_wrap=not err.is_terminal)
