"""How many files beta and a pair go through, counted while `simpo train` takes one step on two made-up pairs.

Counted from the composition of the recipe to the first backward pass of the loss. Something *holds* a value within n
steps if at most n attributes, keys or items lead to it.

    beta    from YAML to the loss. A file counts when one of its functions
              - is entered or left, within `compose`, with something that holds beta within 3 steps;
              - is left afterwards with something that holds it within 3 steps, or entered with something that holds it
                within 1 step (the value, or the recipe's `loss`);
              - waits, entered with something that holds it within 3 steps, when the objective is entered for the loss.
    a pair  from file to gradient. A file counts when one of its functions is entered or left with something that holds,
            within 1 step, text or tokens of the pair (a line, a record, the pair, its ids, a packed batch).
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

BETA, WORD = 1.8125, "zebrafish"  # they occur nowhere else
_RECIPE = f"""
name: tiny
model: {{path: builtin:guide}}
data: {{train: pairs.jsonl, holdout: 0, max_length: 256, max_prompt_length: 128}}
loss: {{beta: {BETA}}}
train: {{max_steps: 1, pairs_per_step: 2}}
"""
_PAIRS = [
    {"prompt": f"Where is {WORD} {n}?", "chosen": f"Open {WORD} {n}.", "rejected": f"Ask {WORD} {n}."} for n in (1, 2)
]
_FOREIGN = {"torch", "numpy", "accelerate", "rich", "transformers"}  # their objects are not opened
_CLOSED = str | bytes | int | float | None | np.ndarray | type | ModuleType | FunctionType | MethodType


@dataclass
class Routes:
    """The files of both routes; `look` is called at every entry and exit of a function."""

    package: Path
    word_ids: list[int]  # the tokens of WORD
    beta: set[str] = field(default_factory=set)
    pair: set[str] = field(default_factory=set)
    _composing: bool = False
    _waiting: set[str] = field(default_factory=set)  # files with beta on the stack as the objective made the loss

    def look(self, frame: FrameType, event: str, result: object) -> None:
        code = frame.f_code
        if self._waiting and code.co_name == "backward" and code.co_filename.endswith("torch/_tensor.py"):
            sys.setprofile(None)
            self.beta |= self._waiting
        file = self._file(frame)
        if event not in ("call", "return") or not file:
            return
        values = _arguments(frame) if event == "call" else [result]
        self._composing |= code.co_name == "compose"
        steps = 3 if self._composing or event == "return" else 1
        if any(_holds(value, _is_beta, steps) for value in values):
            self.beta.add(file)
        if any(_holds(value, self._is_of_pair, 1) for value in values):
            self.pair.add(file)
        self._composing &= code.co_name != "compose" or event == "call"
        if file.startswith("objective") and event == "call" and any(getattr(v, "requires_grad", False) for v in values):
            self._waiting = set(self._waiting_with_beta(frame))

    def _file(self, frame: FrameType) -> str:
        inside = f"{self.package}{os.sep}"
        name = frame.f_code.co_filename
        return name.removeprefix(inside) if name.startswith(inside) else ""

    def _waiting_with_beta(self, frame: FrameType | None) -> Iterator[str]:
        while frame is not None:
            if self._file(frame) and any(_holds(value, _is_beta, 3) for value in _arguments(frame)):
                yield self._file(frame)
            frame = frame.f_back

    def _is_of_pair(self, value: Any) -> bool:
        if isinstance(value, str | bytes):
            return (WORD if isinstance(value, str) else WORD.encode()) in value
        if type(value).__name__ == "Tensor" and not value.is_floating_point():
            value = value.detach().cpu().numpy()
        if isinstance(value, list | tuple) and value and all(type(one) is int for one in value):
            value = np.array(value)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.size < len(self.word_ids):
            return False
        return bool((sliding_window_view(value.ravel(), len(self.word_ids)) == self.word_ids).all(axis=1).any())


def _arguments(frame: FrameType) -> list[object]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)  # *, **
    return [frame.f_locals[name] for name in code.co_varnames[:count] if name in frame.f_locals]


def _is_beta(value: object) -> bool:
    return (type(value) is float and value == BETA) or (type(value) is str and value == str(BETA))


def _holds(value: Any, wanted: Callable[[Any], bool], steps: int) -> bool:
    if wanted(value):
        return True
    if steps == 0 or isinstance(value, _CLOSED) or type(value).__module__.split(".")[0] in _FOREIGN:
        return False
    if isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inner = list(value)
    else:
        slots = [name for kind in type(value).__mro__ for name in kind.__dict__.get("__slots__", ())]
        inner = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]
    return any(_holds(item, wanted, steps - 1) for item in inner[:60])


def follow(package: Path) -> Routes:
    """The files of a package that beta and a pair go through in one step of training."""
    from tokenizers import Tokenizer

    from simpo_cli.cli.main import run

    tokenizer = Tokenizer.from_file(str(package / "builtin/guide/tokenizer.json"))
    routes = Routes(package, tokenizer.encode(f" {WORD}", add_special_tokens=False).ids)
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["SIMPO_CACHE"] = f"{folder}/cache"
        Path("tiny.yaml").write_text(_RECIPE)
        Path("pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in _PAIRS))
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            threading.setprofile(routes.look)  # pairs are tokenized in threads
            sys.setprofile(routes.look)
            try:
                code = run(["train", "tiny.yaml", "--quick"])
            finally:
                sys.setprofile(None)
                threading.setprofile(None)
    assert code == 0, printed.getvalue()
    return routes
