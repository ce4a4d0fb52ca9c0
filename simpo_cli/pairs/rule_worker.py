"""The far end of a rule: a process that runs a user's Python file, and calls a function of it for one answer at a time.

It is started as a file and imports nothing of ours, so that it is there at once. It speaks JSON, a line a message,
through two pipes of its own; stdin, stdout and stderr lead nowhere, whatever the rule prints.

    to it                               from it
                                        {}                                            once, when it is there
    {file, source, function}            {names, parameters}, or {problem, line}       once
    {prompt, answer, record}            {value}, or {reason, message}                 for every answer
"""

import base64
import contextlib
import ctypes
import inspect
import json
import math
import os
import signal
import sys
import traceback
from types import ModuleType
from typing import IO, Any

_PR_SET_PDEATHSIG = 1
_MOST_CHARACTERS = 300  # of what an exception says
_LARGEST = 1e100  # score: sums of squares of larger ones are not finite


def main() -> None:
    """Serve until nobody asks any more."""
    own = os.getpid()
    requests, replies = (os.fdopen(int(fd), mode) for fd, mode in zip(sys.argv[1:3], ("r", "w"), strict=True))
    for pipe in (requests, replies):
        os.set_inheritable(pipe.fileno(), False)
    if sys.platform == "linux":  # a rule in an endless loop does not notice that nobody waits for it any more
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _send(replies, {})
    loading = json.loads(requests.readline())
    function, loaded = _loaded(**loading)
    _send(replies, loaded)
    for line in requests:
        reply = _outcome(function, json.loads(line), loaded["parameters"])
        if os.getpid() != own:  # the rule forked, and this is its child, which nobody asked
            os._exit(0)
        _send(replies, reply)
    os._exit(0)  # whatever threads the rule has left running


def _send(replies: IO[str], message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _loaded(file: str, source: str, function: str) -> tuple[Any, dict[str, Any]]:
    """The function of a file that is run here, and what to say of it."""
    sys.path.insert(0, os.path.dirname(file))
    module = ModuleType("simpo_rule")
    module.__file__ = file
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for a class's module
    try:
        exec(compile(base64.b64decode(source), file, "exec"), vars(module))
    except BaseException as error:
        return None, {"problem": f"{type(error).__name__}: {_said_by(error)}".rstrip(": "), "line": _line(error, file)}
    names = [name for name, value in vars(module).items() if inspect.isfunction(value)]
    found = vars(module).get(function)
    return found, {"names": names, "parameters": _num_parameters(found) if callable(found) else None}


def _line(error: BaseException, file: str) -> int | None:
    """The last line of the file on the way to an error."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    return next((at.lineno for at in reversed(traceback.extract_tb(error.__traceback__)) if at.filename == file), None)


def _num_parameters(function: Any) -> int:
    """How many of prompt, answer and record a function takes by position; 0 where it does not take the first two."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one of C that does not say
        return 2
    for count in (3, 2):
        with contextlib.suppress(TypeError):
            signature.bind(*range(count))
            return count
    return 0


def _outcome(function: Any, asked: dict[str, Any], num_parameters: int) -> dict[str, Any]:
    """The number that a rule gives an answer, or why there is none."""
    given = [asked["prompt"], asked["answer"], asked["record"]][:num_parameters]
    try:
        value = function(*given)
    except BaseException as error:  # sys.exit and its like are no numbers either
        return {"reason": type(error).__name__[:60], "message": _said_by(error)}
    if isinstance(value, str | bytes | bytearray):  # which float() would read
        return {"reason": "not a number", "message": repr(value)[:_MOST_CHARACTERS]}
    try:
        number = float(value)
    except OverflowError:
        return {"reason": "not finite", "message": "a whole number beyond every float"}
    except BaseException:
        return {"reason": "not a number", "message": f"a {type(value).__name__}"}
    if not math.isfinite(number):
        return {"reason": "not finite", "message": str(number)}
    if abs(number) > _LARGEST:
        return {"reason": "too large", "message": f"{number:g}"}
    return {"value": number}


def _said_by(error: BaseException) -> str:
    try:
        return str(error)[:_MOST_CHARACTERS]
    except BaseException:  # of a class of the rule's own
        return ""


if __name__ == "__main__":
    main()
