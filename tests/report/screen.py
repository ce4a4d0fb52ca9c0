"""What the views are shown, made up, and a terminal small enough to read."""

import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from simpo_cli.formatting import Cell
from simpo_cli.report.console import make_console
from simpo_cli.run.events import EvalRecord, Note, RunHeader, RunOutcome, StepRecord
from simpo_cli.table import Row, Table

STEP = StepRecord(
    step=1,
    epoch=0.1,
    loss=0.742,
    rewards_chosen=-2.0,
    rewards_rejected=-2.6,
    rewards_margins=0.61,
    rewards_accuracies=0.631,
    rewards_target_reached=0.4,
    logps_chosen=-1.0,
    logps_rejected=-1.3,
    sft_loss=None,
    grad_norm=1.5,
    learning_rate=1e-6,
    pairs=128,
    tokens=40_000,
    pairs_per_second=130.0,
    tokens_per_second=41_210.0,
    memory_gb=12.34,
    seconds=2.0,
    gradient_weight=0.3,
)
EVALUATION = EvalRecord(
    step=0,
    pairs=500,
    prompts=480,
    loss=0.693,
    accuracy=0.512,
    accuracy_low=0.468,
    accuracy_high=0.556,
    margin=0.02,
    target_reached=0.1,
    logps_chosen=-1.2,
    logps_rejected=-1.21,
    logps_chosen_delta=-0.07,
    logps_rejected_delta=-0.3,
    probe_pairs=64,
    seconds=3.21,
)
HEADER = RunHeader(
    title="simpo 0.1.0 · train demo · cpu, 2 threads, float32 · no network used",
    lines=(
        Note("loss", "SimPO, sigmoid · beta 2.0 · gamma 1.0 (gamma/beta 0.5) · label smoothing off · SFT term off"),
        Note("model", "builtin:guide · 1.9 M parameters, all trained"),
        Note("data", "2,000 pairs to train, 500 held out by prompt"),
        Note("", "LEN001 chosen is longer in 80.1 % of training pairs"),
    ),
)
OUTCOME = RunOutcome(
    run_dir="runs/demo",
    model_dir="runs/demo/model",
    steps=62,
    seconds=38.2,
    answers=(("How do I invite a teammate?", "Teams are great.", "Open Settings, choose People, press Invite."),),
    table=Table(
        ("before", "after"),
        [
            Row(
                "held-out accuracy",
                (Cell("51.2 %", "46.8 to 55.6"), Cell("96.4 %", "94.4 to 97.7")),
                "n = 500 pairs, one seed",
            ),
            Row("length-balanced", (Cell("50.9 %"), Cell("95.8 %"))),
            Row("mean margin", (Cell("0.02"), Cell("3.11"))),
        ],
    ),
    next_commands=(
        ("simpo stats builtin:guide", "the audit of the data that this run used"),
        ("simpo recipe copy smollm2-135m", "a recipe for your own pairs"),
    ),
)
HEADER_LINES = """simpo 0.1.0 · train demo · cpu, 2 threads, float32 · no network used
loss     SimPO, sigmoid · beta 2.0 · gamma 1.0 (gamma/beta 0.5) · label smoothing off · SFT term off
model    builtin:guide · 1.9 M parameters, all trained
data     2,000 pairs to train, 500 held out by prompt
         LEN001 chosen is longer in 80.1 % of training pairs
"""
OUTCOME_LINES = """
                    before                  after
held-out accuracy   51.2 % (46.8 to 55.6)   96.4 % (94.4 to 97.7)   n = 500 pairs, one seed
length-balanced     50.9 %                  95.8 %
mean margin         0.02                    3.11

"How do I invite a teammate?"
  before  Teams are great.
  after   Open Settings, choose People, press Invite.

model   runs/demo/model
next    simpo stats builtin:guide        the audit of the data that this run used
        simpo recipe copy smollm2-135m   a recipe for your own pairs
"""


def step_record(step: int, **changes: Any) -> StepRecord:
    """A step of a run whose loss falls."""
    return replace(STEP, **{"step": step, "loss": 0.15 + 0.6 * math.exp(-step / 20), **changes})


def printed(
    draw: Callable[..., object], *given: Any, width: int = 100, encoding: str = "utf-8", **settings: Any
) -> str:
    """What a function writes on the console that it gets as its first argument."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, newline="", write_through=True)
    draw(make_console(stream, width=width), *given, **settings)
    return written.getvalue().decode(encoding)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Screen:
    """What a terminal shows after it was sent some text: just the codes that a live display uses."""

    def __init__(self, width: int, text: str) -> None:
        self.width = width
        self.lines = [""]
        self.row = self.column = 0
        self.cursor_is_shown = True
        for code, number, letter, plain in re.findall(r"(\x1b\[\??(\d*)[\d;]*([a-zA-Z]))|([^\x1b])", text):
            if plain:
                self._put(plain)
            elif letter == "A":
                self.row -= int(number or 1)
                assert self.row >= 0, "moved above the top"
            elif letter == "K":
                self.lines[self.row] = ""
            elif letter in "hl" and number == "25":
                self.cursor_is_shown = letter == "h"
            else:
                assert letter == "m", f"unexpected {code!r}"

    def _put(self, character: str) -> None:
        if character == "\n":
            self.row += 1
            self.column = 0  # the terminal driver adds the carriage return
            if self.row == len(self.lines):
                self.lines.append("")
        elif character == "\r":
            self.column = 0
        else:
            assert character.isprintable(), f"unexpected {character!r}"
            assert self.column < self.width, f"wrapped: {self.lines[self.row]!r}"
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip()
