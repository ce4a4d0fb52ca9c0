"""Signals that stop a run, sent in every phase of it: what it says, the exit code, and the bits of what goes on.

The child sends the signal to itself as it enters the phase, so that each case is the same on every machine.
"""

import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from simpo_cli.errors import ExitCode
from tests.faults.children import Children
from tests.faults.phases import EVALUATION, EXPORT, SAVE, TOKENIZING, TRAINING, Interruption
from tests.faults.same_run import Content, content_of, differing_bits
from tests.faults.table import table

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# four steps of two micro-batches or more, evaluations at 0, 3 and 4; one checkpoint, for one that a signal asked for
# amid the evaluation of its step knows less of it
COMMAND = (
    "train", "run.yaml", "--resume", "train.max_steps=4", "train.tokens_per_microbatch=100", "checkpoint.keep=1"
)  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """A place in a run, and what a signal there leads to."""

    name: str
    phase: str  # this and `count` as in `Interruption`
    count: int
    said: str  # how far the run had come, in the words of the message
    is_left_at_once: bool = False  # the first signal already leaves, so that there is no second Ctrl-C


MOMENTS = (
    Moment("tokenizing, on a thread", TOKENIZING, 2, "before the first step; nothing is lost", is_left_at_once=True),
    Moment("in step 1", TRAINING, 1, "after step 0 of 4; everything is saved"),
    Moment("amid the micro-batches of step 1", TRAINING, 3, "after step 0 of 4; everything is saved"),
    Moment("in an evaluation", EVALUATION, 2, "after step 3 of 4; everything is saved", is_left_at_once=True),
    Moment("in a save", SAVE, 3, "after step 2 of 4; everything is saved"),
    Moment("in the export", EXPORT, 1, "after step 4 of 4; everything is saved"),
)
TWICE = (signal.SIGINT, signal.SIGINT)


def stop_and_go_on(children: Children, moment: Moment, signals: Sequence[int], unbroken: Content) -> None:
    """Stop the run of `COMMAND` in a moment, go on with it and compare it with one that nobody stopped.

    There is one signal, or the two of a second Ctrl-C. A run that is there is removed, with the tokens in the cache.
    """
    for name in ("runs/run", "cache"):
        shutil.rmtree(children.place / name, ignore_errors=True)
    interrupted = Interruption(moment.phase, moment.count, [int(number) for number in signals])
    code = children.run(*COMMAND, interrupted=interrupted)
    last = children.said().rstrip().splitlines()[-2:]
    if len(signals) > 1:
        assert code == ExitCode.INTERRUPTED, children.said()
        assert last[-1] == "Interrupted."
    else:
        assert code == ExitCode.SAVED, children.said()
        assert last == [
            f"Stopped by {signal.Signals(signals[0]).name} {moment.said}.",
            f"  Resume with: simpo {' '.join(word for word in COMMAND if word != '--resume')} --resume",
        ]
    assert "Traceback" not in children.said()
    assert children.run(*COMMAND) == 0, children.said()
    assert differing_bits(content_of(children.place / "runs" / "run"), unbroken) == {}


def every_signal_in_every_moment(children: Children) -> str:
    """Send them all, and return a table of what they led to.

    Raises:
        AssertionError: an exit code, a message or a bit is not what it should be.
    """
    assert children.run(*COMMAND) == 0, children.said()
    unbroken = content_of(children.place / "runs" / "run")
    rows = []
    for moment in MOMENTS:
        for number in SIGNALS:
            stop_and_go_on(children, moment, [number], unbroken)
        if not moment.is_left_at_once:
            stop_and_go_on(children, moment, TWICE, unbroken)
        second = "left at the first" if moment.is_left_at_once else f"{ExitCode.INTERRUPTED}, same bits"
        rows.append([moment.name, *[f"{ExitCode.SAVED}, same bits" for _ in SIGNALS], second])
    return table(["a signal", *(number.name for number in SIGNALS), "second Ctrl-C"], rows)
