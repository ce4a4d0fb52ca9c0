"""What a child is doing, told so that it survives the child, and children that interrupt themselves at a chosen place.

The functions at which the phases of a run begin are wrapped in the forked child, and nowhere else. Each wrapper writes
the phase into one byte of a file, which is there also after SIGKILL. A child can be told to send itself signals when it
enters a phase for the nth time, or at the nth event in it, which is a call of a function or the return from one, those
of C included: that is the same place in every run, on a machine of any speed.
"""

import errno
import importlib
import os
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

STARTING, TOKENIZING, LOADING, RESUMING = "starting", "tokenizing", "loading", "resuming"
TRAINING, EVALUATION, SAVE, ROTATION, BETWEEN = "training", "evaluation", "save", "rotation", "logs and run.json"
EXPORT, LAST_EVALUATION, REPORT = "export", "last evaluation", "report"
PHASES = (
    *(STARTING, TOKENIZING, LOADING),
    RESUMING,  # starting and loading, where there is something to go on from
    *(TRAINING, EVALUATION, SAVE, ROTATION, BETWEEN, EXPORT, LAST_EVALUATION, REPORT),
)

# Where each begins: in its caller's module. Phases may lie in one another; the inner one counts.
_BEGINNINGS = (
    (TOKENIZING, "simpo_cli.data.store.cache", "make_tokens"),
    (TOKENIZING, "simpo_cli.data.encode.pairs", "encode_pairs"),  # on a thread of its own
    (LOADING, "simpo_cli.train.session", "build"),
    (TRAINING, "simpo_cli.train.loop", "accumulate"),
    (TRAINING, "simpo_cli.train.step", "pack"),  # once a micro-batch
    (EVALUATION, "simpo_cli.train.loop", "score_pairs"),
    (SAVE, "simpo_cli.train.saving", "commit"),
    (ROTATION, "simpo_cli.train.saving", "rotate"),
    (EXPORT, "simpo_cli.train.outcome", "save_model"),
    (LAST_EVALUATION, "simpo_cli.train.outcome", "conclude"),
    (REPORT, "simpo_cli.report.run_page", "write_run_report"),
)


@dataclass(frozen=True)
class Interruption:
    """Where a child sends itself signals."""

    phase: str | None  # that it enters; None for any
    count: int = 1  # for the how manyth time, from 1
    signals: Sequence[int] = ()  # what it sends, in this order
    fills_the_disk: bool = False  # from there on no checkpoint finds room
    event: int | None = None  # not as it enters, but at the how manyth event in that phase, over all times, from 1


COUNT_EVENTS = Interruption(None, event=0)
"""Nowhere: what happens in each phase is only counted."""
_COUNTS = struct.Struct(f"{len(PHASES)}q")


def tell_phases(file: Path, interruption: Interruption | None) -> None:
    """Wrap the beginnings of the phases in this process, a child that ends soon, for `read_phase` to read the file."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    now, entered, events = [STARTING], 0, dict.fromkeys(PHASES, 0)
    wanted = interruption or Interruption(None, 0)

    def interrupt() -> None:
        if wanted.fills_the_disk:
            os.write = _full
        for number in wanted.signals:
            os.kill(os.getpid(), number)

    def count(*_: object) -> None:
        phase = now[-1]
        if wanted.phase in (None, phase):
            events[phase] += 1
            if events[phase] == wanted.event:
                interrupt()

    def tell(phase: str) -> None:
        os.pwrite(descriptor, bytes([PHASES.index(phase)]), 0)
        if wanted.event is not None:
            os.pwrite(descriptor, _COUNTS.pack(*events.values()), 1)
            sys.setprofile(count if wanted.phase in (None, phase) else None)  # of this thread

    def enter(phase: str) -> None:
        nonlocal entered
        now.append(phase)
        tell(phase)
        if wanted.event is None and wanted.phase in (None, phase):
            entered += 1
            if entered == wanted.count:
                interrupt()

    def leave(phase: str) -> None:
        now.pop()
        if phase == LOADING:
            now[0] = BETWEEN
        tell(now[-1])

    def within(phase: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def wrapped(*args: Any, **options: Any) -> Any:
            enter(phase)
            try:
                return real(*args, **options)
            finally:
                leave(phase)

        return wrapped

    tell(STARTING)
    for phase, module_name, name in _BEGINNINGS:
        module = importlib.import_module(module_name)
        setattr(module, name, within(phase, getattr(module, name)))


def _full(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_phase(file: Path) -> str:
    """What a child was doing when it ended."""
    told = file.read_bytes()
    return PHASES[told[0]] if told else STARTING


def read_events(file: Path) -> Mapping[str, int]:
    """How many events of each phase a child has counted, of those that it was told to count."""
    return dict(zip(PHASES, _COUNTS.unpack(file.read_bytes()[1:]), strict=True))
