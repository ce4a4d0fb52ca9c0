"""`--rule FILE.py:FUNCTION`: answers scored by a function of the user's, or by the built-in world's own check.

The function is called as function(prompt, answer), or, if it takes a third argument by position, as
function(prompt, answer, record), and gives a number: the higher, the better. `record` is what the file of prompts says
of the prompt besides, with the conversation under `messages`.

It runs in a process of its own (`rule_worker`), which may print, hang, fork or die as it likes: such an answer has no
score, and the next one is met by a new process. The file is read once; every process runs these same bytes.
"""

import base64
import difflib
import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from simpo_cli.builtin import corpus
from simpo_cli.data.file_bytes import open_regular
from simpo_cli.errors import UserError
from simpo_cli.pairs.scorer import Answered, Score, ScorerKind

BUILTIN = "builtin:guide"
"""The rule that checks answers to questions of the built-in world: the share of their parts that are right."""

TIMEOUT_SECONDS = 30.0
"""How long a rule may take for one answer, and its file to be imported."""

_START_SECONDS = 60.0  # for Python itself
_WORKER = Path(__file__).with_name("rule_worker.py")
_HOW = "Write it as FILE.py:FUNCTION, such as --rule rule.py:score."


class Rule:
    """A scorer by a rule.

    Args:
        spec: `FILE.py:FUNCTION` or `builtin:guide`.
        timeout: seconds for one answer, and for the import of the file.

    Attributes:
        has_scored: whether any answer has got a score; until one has, a batch without any stops the scoring. A caller
            that resumes sets it.

    Raises:
        UserError: there is no such file or function, the function does not take two arguments, or importing the file
            fails or takes too long.
    """

    kind: ScorerKind = "rule"
    batch_size = 64  # so many without one score are no accident; each is asked alone

    def __init__(self, spec: str, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self.has_scored = False
        self._spec, self._function = spec, None if spec == BUILTIN else _Function(spec, timeout)
        rule, digest = (BUILTIN, _builtin_digest()) if self._function is None else self._function.name_and_digest
        self.identity: dict[str, Any] = {"kind": self.kind, "rule": rule, "sha256": digest}

    def score(self, answers: Sequence[Answered]) -> list[Score]:
        """One score an answer, in order.

        Raises:
            UserError: no answer has got a score so far, none of these included.
        """
        checked = [_builtin_score(one) if self._function is None else self._function.of(one) for one in answers]
        scores = [score for score, _ in checked]
        self.has_scored |= any(score.value is not None for score in scores)
        if scores and not self.has_scored:
            reason, count = Counter(score.reason for score in scores).most_common(1)[0]
            message = next(message for score, message in checked if score.reason == reason)
            example = f", such as: {' '.join(message.split())[:200]}" if message.strip() else ""
            problem = f"none of the first {len(scores)} answers got a score; {count} times: {reason}{example}."
            raise UserError(problem, "Mend the rule, and try it on an answer by hand.", where=self._spec)
        return scores

    def close(self) -> None:
        """End the rule's process, whatever it is doing."""
        if self._function is not None:
            self._function.close()


def _builtin_score(answered: Answered) -> tuple[Score, str]:
    question = answered.question.turns[-1].content
    check = corpus.check_answer(question, answered.answer.text)
    return (Score(None, "unknown question"), question) if check is None else (Score(check.parts), "")


def _builtin_digest() -> str:
    """What the check depends on: its tables and its code."""
    code = Path(corpus.__file__)
    return hashlib.sha256(code.with_name("topics.yaml").read_bytes() + code.read_bytes()).hexdigest()


class _Function:
    """A function of a user's file, in a process that is started anew when it is lost."""

    def __init__(self, spec: str, timeout: float) -> None:
        file, _, self._name = spec.rpartition(":")
        if not file or not self._name.isidentifier():
            raise UserError(f"--rule is {spec!r}, which does not name a file and a function.", _HOW)
        self._file, self._timeout = Path(file).expanduser(), timeout
        if self._file.suffix != ".py":
            raise UserError(f"--rule names {file}, which is no Python file.", _HOW)
        with open_regular(str(self._file), file) as stream:
            self._source = stream.read()
        self._process = self._started()

    @property
    def name_and_digest(self) -> tuple[str, str]:
        """What it is called wherever its file lies, and a digest of the file."""
        return f"{self._file.name}:{self._name}", hashlib.sha256(self._source).hexdigest()

    def of(self, answered: Answered) -> tuple[Score, str]:
        """The score of an answer; without one also what the rule says, in its own words."""
        question = answered.question
        messages = [turn.as_record() for turn in question.turns]
        record = {**question.record, "messages": messages}
        asked = {"prompt": question.text, "answer": answered.answer.text, "record": record}
        if self._process.is_lost:
            self._process = self._started()
        try:
            reply = self._process.reply_to(asked, self._timeout)
        except TimeoutError:
            return Score(None, "timed out"), f"no number within {self._timeout:g} s"
        except EOFError as error:
            return Score(None, "died"), str(error)
        return Score(reply.get("value"), reply.get("reason", "")), reply.get("message", "")

    def _started(self) -> "_Process":
        """A new process that has imported the file."""
        process = _Process()
        try:
            process.reply_to(None, _START_SECONDS)
            source = base64.b64encode(self._source).decode()
            loading = {"file": str(self._file.absolute()), "source": source, "function": self._name}
            self._require_usable(process.reply_to(loading, self._timeout))
        except TimeoutError as error:
            problem, fix = f"takes more than {self._timeout:g} s to import.", "Do the work inside the function."
            raise UserError(problem, fix, where=str(self._file)) from error
        except EOFError as error:
            problem, fix = f"ends the process when it is imported ({error}).", "Import it by hand to see why."
            raise UserError(problem, fix, where=str(self._file)) from error
        except BaseException:
            process.end()
            raise
        return process

    def _require_usable(self, loaded: dict[str, Any]) -> None:
        """Refuse (UserError) a file whose import failed, or a function that is none."""
        if problem := loaded.get("problem"):
            where = f"{self._file}:{loaded['line']}" if loaded["line"] else str(self._file)
            fix = f"Mend it; python {self._file} shows the whole traceback."
            raise UserError(f"cannot be imported: {' '.join(problem.split())}.", fix, where=where)
        names: list[str] = loaded["names"]
        if loaded["parameters"] is None:
            near = difflib.get_close_matches(self._name, names, n=1) or names[:5]
            fix = f"Did you mean {' or '.join(near)}?" if near else "Define it there."
            raise UserError(f"has no function {self._name}.", fix, where=str(self._file))
        if loaded["parameters"] == 0:
            problem = f"{self._name} does not take a prompt and an answer as its first two arguments."
            raise UserError(problem, f"Begin it with: def {self._name}(prompt, answer):", where=str(self._file))

    def close(self) -> None:
        self._process.end()


class _Process:
    """A running `rule_worker` and the pipes to and from it, in a session of its own: Ctrl-C is for us alone.

    Where a reply fails to come, the process and all that it has started are ended, and it `is_lost`.
    """

    def __init__(self) -> None:
        self.is_lost = False
        request_end, self._requests = os.pipe()
        self._replies, reply_end = os.pipe()
        its_ends = request_end, reply_end
        # -P: the folder of the worker is no place to import from. One seed of hashes: one order of sets, always.
        command = [sys.executable, "-P", str(_WORKER), *map(str, its_ends)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=its_ends,
                start_new_session=True,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        finally:
            for end in its_ends:
                os.close(end)
        os.set_blocking(self._requests, False)

    def reply_to(self, message: dict[str, Any] | None, timeout: float) -> dict[str, Any]:
        """The reply to a message; to None what the process says by itself.

        Raises:
            TimeoutError, EOFError: none came in time, or the process ended; it is lost.
        """
        line = b"" if message is None else json.dumps(message, default=str).encode() + b"\n"
        try:
            reply: dict[str, Any] = json.loads(self._exchange(line, timeout))
            return reply
        except TimeoutError as error:
            status = self.end()
            if status != -signal.SIGKILL:  # it had ended before, and what it had started holds its pipes
                raise EOFError(_in_words(status)) from error
            raise
        except (OSError, EOFError, ValueError) as error:
            raise EOFError(_in_words(self.end())) from error
        except BaseException:
            self.end()
            raise

    def _exchange(self, line: bytes, timeout: float) -> bytes:
        until, left, received = time.monotonic() + timeout, memoryview(line), bytearray()
        with selectors.DefaultSelector() as ready:
            ready.register(self._replies, selectors.EVENT_READ)
            if left:
                ready.register(self._requests, selectors.EVENT_WRITE)
            while not received.endswith(b"\n"):
                events = ready.select(max(0.0, until - time.monotonic()))
                if not events or time.monotonic() > until:
                    raise TimeoutError
                for key, _ in events:
                    if key.fd == self._replies:
                        piece = os.read(self._replies, 2**16)
                        if not piece:
                            raise EOFError
                        received += piece
                    else:
                        left = left[os.write(self._requests, left) :]
                        if not left:
                            ready.unregister(self._requests)
        return bytes(received)

    def end(self) -> int:
        """Kill the process and all of its session's group, if that has not been done; its exit status."""
        if not self.is_lost:
            self.is_lost = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            os.close(self._requests)
            os.close(self._replies)
        return self._process.returncode


def _in_words(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"signal {-status}"
