"""Processes that are killed at random instants: `python -m tests.faults.storm --kills 300` prints what was left.

A run is started with --resume, killed by SIGKILL at an instant drawn uniformly from the length of an unbroken run, and
looked at; then it is started again, until it has come to its end. Then every file of it is compared with that of the
unbroken run, and the next run begins, with no tokens in the cache. The first run of all is interrupted fifty times, at
instants counted in phases, so that it hardly moves from one to the next. Time passes quickly in some phases, and few
instants fall into them: a third of the kills is aimed, and strikes each phase as often as any other.

Several storms go on side by side, each in a folder of its own, and they take turns with the optimizers: plain AdamW,
8-bit moments of bitsandbytes, and those of torchao with weights that are rounded stochastically. What they have seen is
a few numbers, and a run is removed once it was compared, so a storm may last for days. After it come the signals that
stop a run in every phase, and the state machine.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path

from hypothesis.stateful import run_state_machine_as_test

from simpo_cli.cli.options import quiet_libraries
from simpo_cli.errors import ExitCode
from tests.faults.children import Children, make_place
from tests.faults.machine import few_or_many, machine_for
from tests.faults.phases import (
    BETWEEN,
    COUNT_EVENTS,
    EVALUATION,
    EXPORT,
    LAST_EVALUATION,
    LOADING,
    PHASES,
    REPORT,
    RESUMING,
    ROTATION,
    SAVE,
    STARTING,
    TOKENIZING,
    TRAINING,
    Interruption,
)
from tests.faults.same_run import Content, content_of, damage_in, differing_bits, newest_whole_step
from tests.faults.signals import every_signal_in_every_moment
from tests.faults.table import table

ALL = "all"
_SECONDS_BETWEEN_LINES = 20.0
_MOST_FINDINGS = 20
_INTERRUPTIONS_OF_ONE_RUN = 50
_OF_EACH_STEP = (TRAINING, EVALUATION, SAVE, ROTATION, BETWEEN)
_ONE_AIMED_IN = 3
OPTIMIZERS = ((), ("train.optimizer=adamw_8bit",), ("train.optimizer=adamw_8bit", "model.weights_dtype=bf16"))


@dataclass
class Tally:
    """What a storm has seen, by the phase in which its kills struck; the key `ALL` counts everything once."""

    kills: Counter[str] = field(default_factory=Counter)  # SIGKILLs that met a living process
    aimed: Counter[str] = field(default_factory=Counter)  # of them, at an event drawn from their phase's
    runs: Counter[str] = field(default_factory=Counter)  # compared, under every phase in which they had been killed
    differing: Counter[str] = field(default_factory=Counter)  # their bits that differed from the unbroken run's
    lost: Counter[str] = field(
        default_factory=Counter
    )  # the newest whole checkpoint was of an earlier step than before
    damaged: Counter[str] = field(default_factory=Counter)  # files and checkpoints that a kill left half
    findings: list[str] = field(default_factory=list)  # the first of these in words

    def found(self, sentence: str) -> None:
        """Note what should not be; no more than a few, however long the storm."""
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(sentence)

    def with_that_of(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def line(self) -> str:
        """The sums, for a line of progress."""
        return (
            f"{self.kills[ALL]:,} kills, {self.runs[ALL]:,} runs compared, {self.differing[ALL]:,} bits differ, "
            f"{self.lost[ALL]:,} commits lost, {self.damaged[ALL]:,} files damaged"
        )

    def table(self) -> str:
        """The counts as a table of Markdown, a line for each phase and the sums."""
        counts = (self.kills, self.aimed, self.runs, self.differing, self.lost, self.damaged)
        rows = [[phase, *(f"{count[phase]:,}" for count in counts)] for phase in (*PHASES, ALL)]
        names = ["killed in", "kills", "of them aimed", "runs compared", "differing bits", "lost commits", "damaged"]
        return table(names, rows)


class Storm:
    """A storm over runs of so many epochs, nine steps each, with some settings, in one place."""

    def __init__(self, children: Children, seed: int, epochs: int = 1, settings: Sequence[str] = ()) -> None:
        self.tally = Tally()
        self._children, self._draw = children, random.Random(seed)
        self._command = ("train", "run.yaml", "--resume", f"train.num_epochs={epochs}", *settings)
        self._run, self._cache = children.place / "runs" / "run", children.place / "cache"
        self._struck_in = set[str]()
        shutil.rmtree(self._run, ignore_errors=True)  # what others have left there
        started = time.perf_counter()
        code = children.run(*self._command, interrupted=COUNT_EVENTS)
        assert code == 0, children.said()
        self._seconds = time.perf_counter() - started
        self._events = {**children.events(), RESUMING: children.events()[LOADING]}
        self._unbroken: Content = content_of(self._run)
        self._begin_anew()

    def interrupt_one_run(self, times: int) -> None:
        """Kill one run so many times, hardly a step apart, and compare it."""
        for _ in range(times):
            before = newest_whole_step(self._run)
            interrupted = Interruption(None, self._draw.randint(1, 6), [signal.SIGKILL])
            code = self._children.run(*self._command, interrupted=interrupted)
            assert code == -signal.SIGKILL, self._children.said()
            self._look(before)
        assert self._children.run(*self._command) == 0, self._children.said()
        self._compare()

    def strike_in_each_phase(self) -> None:
        """Kill one run once in every phase, at an event drawn uniformly from those of that phase, and compare it."""
        # resuming needs something saved, which rotation leaves
        of_each_step = self._draw.sample(_OF_EACH_STEP, len(_OF_EACH_STEP))
        for phase in (TOKENIZING, STARTING, LOADING, *of_each_step, RESUMING, EXPORT, LAST_EVALUATION, REPORT):
            # none of those of each step takes the run further than a fifth of its length
            events = self._events[phase] // (len(_OF_EACH_STEP) if phase in _OF_EACH_STEP else 1)
            before = newest_whole_step(self._run)
            told = LOADING if phase == RESUMING else phase
            aim = Interruption(told, signals=[signal.SIGKILL], event=self._draw.randint(1, max(events, 1)))
            code = self._children.run(*self._command, interrupted=aim)
            if code == -signal.SIGKILL:
                self._look(before, aim)
                continue
            assert code == 0, self._children.said()  # there were fewer events than were counted
            if phase == RESUMING:  # an unbroken run could not tell how many
                self._events[phase] = self._children.events()[told]
            self._compare()
        if self._run.exists():
            assert self._children.run(*self._command) == 0, self._children.said()
            self._compare()

    def kill(self, kills: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """Kill at so many instants, or until it is over, in as many runs as that takes; the last comes to its end."""
        wanted = self.tally.kills[ALL] + kills
        while (is_enough := self.tally.kills[ALL] >= wanted or is_over()) is False or self._run.exists():
            begins, started, before = not self._run.exists(), time.perf_counter(), newest_whole_step(self._run)
            [pid] = self._children.start(self._command)
            codes = self._children.wait(None if is_enough else self._draw.uniform(0, self._seconds))
            if codes is None:
                with suppress(ProcessLookupError):  # it ended in this very moment
                    os.kill(pid, signal.SIGKILL)
                codes = self._children.wait()
            if codes == [-signal.SIGKILL]:
                self._look(before)
            else:
                assert codes == [0], self._children.said()
                if begins:  # the machine may be more or less busy than it was
                    self._seconds = time.perf_counter() - started
                self._compare()

    def _look(self, before: int, aim: Interruption | None = None) -> None:
        """See what a kill has left: nothing lost that was there before, and nothing half."""
        phase = self._children.phase()
        assert aim is None or phase == aim.phase
        if before >= 0 and phase in (STARTING, TOKENIZING, LOADING):
            phase = RESUMING
        self._struck_in.add(phase)
        self.tally.kills.update([phase, ALL])
        self.tally.aimed.update([phase, ALL] if aim is not None else [])
        newest = newest_whole_step(self._run)
        if newest < before:
            self.tally.lost.update([phase, ALL])
            self.tally.found(f"killed in {phase}: step {before} was saved, and {newest} is what is left")
        for damage in damage_in(self._run, self._unbroken):
            self.tally.damaged.update([phase, ALL])
            self.tally.found(f"killed in {phase}: {damage}")

    def _compare(self) -> None:
        """Compare a run that came to its end, and remove it."""
        phases = [*self._struck_in, ALL]
        self.tally.runs.update(phases)
        for name, bits in differing_bits(content_of(self._run), self._unbroken).items():
            self.tally.differing.update(dict.fromkeys(phases, bits))
            self.tally.found(f"killed in {', '.join(sorted(self._struck_in))}: {bits:,} bits of {name} differ")
        self._begin_anew()

    def _begin_anew(self) -> None:
        shutil.rmtree(self._run)
        shutil.rmtree(self._cache)
        self._struck_in.clear()


def rage(
    folder: Path, kills: int, seed: int, epochs: int, lanes: int, say: Callable[[str], None], over: threading.Event
) -> Tally:
    """Storms side by side, with a line of what they have seen now and then.

    After Ctrl-C, which sets `over`, or a failure of one, each only ends its run.
    """
    storms: list[Storm] = []

    def one(number: int) -> None:
        mine = kills // lanes + (number < kills % lanes)
        with Children(make_place(folder / f"lane-{number}")) as children:
            storm = Storm(children, seed + number, epochs, OPTIMIZERS[number % len(OPTIMIZERS)])
            storms.append(storm)
            if number == 0 and mine > _INTERRUPTIONS_OF_ONE_RUN:
                storm.interrupt_one_run(_INTERRUPTIONS_OF_ONE_RUN)
                mine -= _INTERRUPTIONS_OF_ONE_RUN
            wanted = storm.tally.kills[ALL] + mine
            for _ in range(-(-mine // (_ONE_AIMED_IN * len(PHASES)))):
                if not over.is_set():
                    storm.strike_in_each_phase()
            storm.kill(wanted - storm.tally.kills[ALL], over.is_set)

    def seen() -> Tally:
        tally = Tally()
        for storm in list(storms):
            tally = tally.with_that_of(storm.tally)
        return tally

    started = time.perf_counter()
    with ThreadPoolExecutor(lanes) as threads:
        waiting: set[Future[None]] = {threads.submit(one, number) for number in range(lanes)}
        while waiting:
            try:
                done, waiting = wait(waiting, timeout=_SECONDS_BETWEEN_LINES)
            except KeyboardInterrupt:
                say("coming to the end of the runs that have begun")
                over.set()
                continue
            for future in done:
                if future.exception() is not None:
                    over.set()
                future.result()
            say(f"{seen().line()}, {(time.perf_counter() - started) / 60:.1f} min")
    return seen()


def _elsewhere(place: Path, do: Callable[[Children], str | None]) -> str | None:
    """Do something with children in a place of their own."""
    with Children(make_place(place)) as children:
        return do(children)


def main() -> int:
    """Run the storms, the signals and the state machine, and print what came of them."""
    parser = argparse.ArgumentParser(description="Kill training runs at random instants and compare what is left.")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3, help="length of a run; nine steps, each with a save, are one")
    parser.add_argument("--lanes", type=int, default=max(3, min(4, os.cpu_count() or 1)), help="storms side by side")
    parser.add_argument("--events", type=int, default=8, help="runs of the state machine, of up to six events each")
    options = parser.parse_args()
    quiet_libraries()
    over = threading.Event()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        tally = rage(Path(folder), options.kills, options.seed, options.epochs, options.lanes, say, over)
        print(tally.table(), end="\n\n", flush=True)
        for sentence in tally.findings:
            print(sentence)
        if over.is_set():
            return ExitCode.INTERRUPTED
        with ThreadPoolExecutor(2) as threads:
            say("every signal in every phase, and events in any order")
            signals = threads.submit(_elsewhere, Path(folder) / "signals", every_signal_in_every_moment)
            events = threads.submit(
                _elsewhere,
                Path(folder) / "events",
                lambda it: run_state_machine_as_test(machine_for(it), settings=few_or_many(options.events)),
            )
            events.result()
            print(signals.result(), end="\n\n")
            print(f"{options.events} runs under events in any order went on from what was committed last.")
    return int(bool(tally.findings))


if __name__ == "__main__":
    sys.exit(main())
