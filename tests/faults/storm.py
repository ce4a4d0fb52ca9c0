"""Processes that are killed at random instants: `python -m tests.faults.storm --kills 300` prints what was left.

A run is started with --resume, killed by SIGKILL at an instant drawn uniformly from the length of an unbroken run, and
looked at; then it is started again, until it has come to its end. Then its weights, moments and logs are compared with
those of the unbroken run, and the next run begins.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from simpo_cli.cli.quiet import quiet_libraries
from simpo_cli.train.checkpoint import find_checkpoints
from tests.faults.children import Children
from tests.faults.place import make_place
from tests.train.same_bits import final_state, rows, timeless

TRAIN = ("train", "run.yaml", "--resume")


@dataclass
class Tally:
    """What a storm has seen.

    Attributes:
        kills: SIGKILLs that met a living process.
        during: kills by what the run was doing.
        runs: runs that came to their end and were compared.
        differing: files of those that differed from the unbroken run's.
        lost: times that the newest whole checkpoint was of an earlier step than before.
        damaged: checkpoints that a kill left half.
    """

    kills: int = 0
    during: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    differing: int = 0
    lost: int = 0
    damaged: int = 0

    def table(self) -> str:
        """The counts, a line each."""
        lines = [
            ("kills", self.kills),
            *((f"  {what}", self.during[what]) for what in PHASES),
            ("runs that came to their end", self.runs),
            ("files that differ from an unbroken run's", self.differing),
            ("commits lost", self.lost),
            ("checkpoints damaged", self.damaged),
        ]
        return "\n".join(f"{name:<44}{count:>8,}" for name, count in lines)


PHASES = ("before the first checkpoint", "between saves", "inside a save or a rotation", "after the last step")


def storm(children: Children, kills: int, seed: int, epochs: int = 1) -> Tally:
    """Kill `run` in the children's place so many times, in as many runs as that takes.

    Args:
        children: processes; their place holds what `make_place` makes.
        kills: how many.
        seed: of the instants.
        epochs: length of a run, nine steps each.
    """
    draw, tally = random.Random(seed), Tally()
    command = (*TRAIN, f"train.num_epochs={epochs}")
    runs = children.place / "runs"
    run, unbroken = runs / "run", runs / "unbroken"
    started = time.perf_counter()
    code = children.run(*command, "name=unbroken")
    assert code == 0, children.said()
    seconds = time.perf_counter() - started
    last = rows(unbroken / "metrics.jsonl")[-1]["step"]
    committed = -1
    while tally.kills < kills or run.exists():
        begins, started = not run.exists(), time.perf_counter()
        [pid] = children.start(command)
        # when there have been enough, the last run is left to come to its end
        codes = children.wait(draw.uniform(0, seconds) if tally.kills < kills else None)
        if codes is None:
            with suppress(ProcessLookupError):  # it ended in this very moment
                os.kill(pid, signal.SIGKILL)
            codes = children.wait()
        if codes == [-signal.SIGKILL]:
            tally.kills += 1
            tally.during[_phase(run / "checkpoints", last)] += 1
            committed = _look(run, committed, tally)
        else:
            assert codes == [0], children.said()
            if begins:  # the machine is less busy than it was
                seconds = min(seconds, time.perf_counter() - started)
            tally.runs += 1
            tally.differing += _compare(run, unbroken)
            shutil.rmtree(run)
            committed = -1
    return tally


def _phase(checkpoints: Path, last: int) -> str:
    if any(checkpoints.glob(".tmp-*")):
        return PHASES[2]
    whole, _ = find_checkpoints(checkpoints)
    if not whole:
        return PHASES[0]
    return PHASES[3] if whole[0].step == last else PHASES[1]


def _look(run: Path, committed: int, tally: Tally) -> int:
    """The newest whole checkpoint's step, with every byte of it read; logs hold whole lines."""
    whole, damaged = find_checkpoints(run / "checkpoints")
    for found in whole:
        for name in found.manifest.files:
            with found.open(name):
                pass
    tally.damaged += len(damaged)
    newest = whole[0].step if whole else -1
    tally.lost += newest < committed
    for name in ("metrics.jsonl", "evals.jsonl"):
        if (run / name).exists():
            rows(run / name)
    if (run / "run.json").exists():
        json.loads((run / "run.json").read_text(encoding="utf-8"))
    return newest


def _compare(run: Path, unbroken: Path) -> int:
    """How many files of two runs differ: weights, moments and model; the logs, timing aside."""
    ours, theirs = final_state(run), final_state(unbroken)
    differing = sum(ours.get(name) != digest for name, digest in theirs.items())
    differing += sum(timeless(run / name) != timeless(unbroken / name) for name in ("metrics.jsonl", "evals.jsonl"))
    steps = [row["step"] for row in rows(run / "metrics.jsonl")]
    assert steps == sorted(set(steps))
    return differing


def main() -> int:
    """Run a storm of its own and print the table."""
    parser = argparse.ArgumentParser(description="Kill training runs at random instants and compare what is left.")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3, help="length of a run; nine steps, each with a save, are one")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder, Children(make_place(Path(folder))) as children:
        tally = storm(children, options.kills, options.seed, options.epochs)
    print(tally.table())
    return int(tally.differing + tally.lost + tally.damaged > 0)


if __name__ == "__main__":
    sys.exit(main())
