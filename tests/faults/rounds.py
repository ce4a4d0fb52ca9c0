"""Rounds in a child that kills itself in a chosen part of a round, with all that it has started.

A function of `KILLS` is called in the child before its command. The parts of a round run in the child itself instead of
processes of their own, which is quick, and kills all of them at once, as the end of their launcher does.
"""

import os
import signal
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from simpo_cli.pairs import samples


def in_this_process() -> None:
    """Have the parts of a round run here."""
    from simpo_cli.cli.main import run
    from simpo_cli.pairs import rounds, sample

    sample._MOST_ROWS = 48  # two batches a round
    rounds.run_alone = lambda command: run(command[command.index("simpo_cli") + 1 :])


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


def at(module_name: str, name: str, count: int, is_wanted: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Die when a function is called for the how manyth time, of the calls that are wanted."""
    module, calls = import_module(module_name), [0]
    real = getattr(module, name)

    @wraps(real)
    def deadly(*args: Any, **options: Any) -> Any:
        calls[0] += is_wanted(*args, **options)
        if calls[0] == count:
            die()
        return real(*args, **options)

    setattr(module, name, deadly)


def _in_a_batch(name: str, folder: str, count: int) -> None:
    """Die while a batch of answers or scores is written: half of its line is on the disk."""
    in_this_process()
    real, calls = samples.add_rows, [0]

    def torn(file: Path, rows: Any) -> None:
        rows = list(rows)
        calls[0] += file.name == f".{name}.0.log" and file.parent.name == folder and "batch" in rows[0]
        real(file, rows)
        if calls[0] == count:
            content = file.read_bytes()
            os.truncate(file, len(content) - 40)
            die()

    samples.add_rows = torn


def in_sampling() -> None:
    _in_a_batch("answers", "answers", 2)


def in_scoring() -> None:
    _in_a_batch("scores.rule", "answers", 1)


def in_answers_to_held_out_prompts() -> None:
    _in_a_batch("answers", "held-out", 2)


def before_the_pairs() -> None:
    """The account of the pairs is there and they are not."""
    in_this_process()
    at("simpo_cli.pairs.make", "write_text", 2, lambda file, _: file.name in ("pairs.jsonl", "candidates.jsonl"))


def in_training() -> None:
    in_this_process()
    at("simpo_cli.train.loop", "accumulate", 2)


def in_the_second_training() -> None:
    in_this_process()
    at("simpo_cli.train.loop", "accumulate", 3)


def before_the_curve() -> None:
    """All of a round is done and rounds.json does not say it."""
    in_this_process()
    at("simpo_cli.pairs.rounds", "write_json", 3)


KILLS = (
    in_sampling,
    in_scoring,
    before_the_pairs,
    in_training,
    in_answers_to_held_out_prompts,
    before_the_curve,
    in_the_second_training,
)
