"""A run as a log: which lines are written, and what is in them."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from simpo_cli.report.console import make_console
from simpo_cli.report.watch import Heartbeat
from simpo_cli.run.events import EvalRecord, RunHeader, RunOutcome, StepRecord


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def heartbeat(stream: io.StringIO, clock: Any) -> Heartbeat:
    return Heartbeat(make_console(stream, width=120), clock=clock, now=lambda: datetime(2026, 3, 1, 14, 26, 3))


def test_a_step_line_is_exactly_this(
    heartbeat: Heartbeat, stream: io.StringIO, step_record: Callable[..., StepRecord], evaluation: EvalRecord
) -> None:
    heartbeat.started(RunHeader("title", ()), num_steps=467, first_step=0)
    heartbeat.evaluated(evaluation)
    heartbeat.step(replace(step_record(180), loss=0.742, seconds=950 / 287))
    assert stream.getvalue().splitlines() == [
        "title",
        "14:26:03 eval step=0 loss=0.693 accuracy=0.512 low=0.468 high=0.556 n=500 prompts=480 margin=0.02 "
        "chosen_delta=-0.07 rejected_delta=-0.30 seconds=3.2",
        "14:26:03 step=180/467 loss=0.742 accuracy=0.631 n=128 margin=0.61 chosen_delta=-0.07 "
        "tokens_per_second=41210 eta=950s",
    ]


def test_the_drift_is_left_out_until_it_was_measured_and_nan_is_shown(
    heartbeat: Heartbeat, stream: io.StringIO, step_record: Callable[..., StepRecord]
) -> None:
    heartbeat.started(RunHeader("title", ()), num_steps=10, first_step=0)
    heartbeat.step(replace(step_record(1), loss=math.nan))
    line = stream.getvalue().splitlines()[-1]
    assert "loss=nan" in line
    assert "chosen_delta" not in line


def steps_written(stream: io.StringIO) -> list[int]:
    return [int(line.split("step=")[1].split("/")[0]) for line in stream.getvalue().splitlines() if "step=" in line]


def run(
    heartbeat: Heartbeat, clock: Any, step_record: Callable[..., StepRecord], *, steps: int, seconds: float
) -> None:
    heartbeat.started(RunHeader("title", ()), num_steps=steps, first_step=0)
    for step in range(1, steps + 1):
        clock.seconds += seconds
        heartbeat.step(step_record(step, seconds=seconds))


def test_slow_steps_are_all_written(
    heartbeat: Heartbeat, stream: io.StringIO, clock: Any, step_record: Callable[..., StepRecord]
) -> None:
    run(heartbeat, clock, step_record, steps=8, seconds=40)
    assert steps_written(stream) == list(range(1, 9))


def test_a_run_of_half_a_minute_does_not_fill_the_log(
    heartbeat: Heartbeat, stream: io.StringIO, clock: Any, step_record: Callable[..., StepRecord]
) -> None:
    run(heartbeat, clock, step_record, steps=62, seconds=0.5)
    assert steps_written(stream) == [1, 11, 21, 31, 41, 51, 61, 62]


def test_a_long_run_writes_every_percent_or_every_half_minute(
    heartbeat: Heartbeat, stream: io.StringIO, clock: Any, step_record: Callable[..., StepRecord]
) -> None:
    run(heartbeat, clock, step_record, steps=1000, seconds=1)
    assert steps_written(stream) == [*range(1, 1000, 10), 1000]
    stream.truncate(0)
    stream.seek(0)
    run(heartbeat, clock, step_record, steps=10_000, seconds=1)
    assert steps_written(stream) == [*range(1, 10_000, 30), 10_000]


def test_the_whole_log(
    heartbeat: Heartbeat,
    stream: io.StringIO,
    step_record: Callable[..., StepRecord],
    header: RunHeader,
    outcome: RunOutcome,
) -> None:
    heartbeat.note("loading \x1b[31mbuiltin:guide [b]")
    heartbeat.started(header, num_steps=1, first_step=0)
    heartbeat.step(replace(step_record(1), loss=0.5))
    heartbeat.finished(outcome)
    heartbeat.close()
    assert (
        stream.getvalue()
        == r"""14:26:03 loading \x1b[31mbuiltin:guide [b]
simpo 0.1.0 · train demo · cpu, 2 threads, float32 · no network used
loss     SimPO, sigmoid · beta 2.0 · gamma 1.0 (gamma/beta 0.5) · label smoothing off · SFT term off
model    builtin:guide · 1.9 M parameters, all trained
data     2,000 pairs to train, 500 held out by prompt
         LEN001 chosen is longer in 80.1 % of training pairs
14:26:03 step=1/1 loss=0.500 accuracy=0.631 n=128 margin=0.61 tokens_per_second=41210 eta=0s

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
    )
