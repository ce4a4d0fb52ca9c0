"""Runs of several processes, of which one is killed at random: `python -m tests.faults.rank_storm --kills 300`.

A run is started with --resume on 1, 2 or 4 ranks, replicated or sharded, and SIGKILL strikes one of them at an instant
drawn uniformly from the length of an unbroken run. The others end by themselves, or after the seconds that a launcher
gives them, and nothing of them may be alive ten seconds later. Then what was left is looked at, and the run is started
again, every second one on another number of ranks each time. What came to its end is compared with the unbroken run:
its curve, and where the ranks were always the same, its bits.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from simpo_cli.cli.options import quiet_libraries
from simpo_cli.distributed.launch import _SECONDS_TO_END
from tests.distributed.test_runs import differing_weights, largest_difference
from tests.faults.children import Children, make_place
from tests.faults.same_run import damage_in, newest_whole_step
from tests.faults.table import table

_WAYS = (("ddp", 2), ("fsdp2", 2), ("ddp", 4), ("fsdp2", 4))  # on one rank there is nobody else to be killed
_MOST_DIFFERENCE = 1e-5


class RankStorm:
    """A storm in one place.

    Attributes:
        seen: by strategy and number of ranks (`ddp 2`) and by what was counted.
        findings: what should not be.
    """

    def __init__(self, children: Children, seed: int) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.findings: list[str] = []
        self.worst = 0.0  # relative difference of a curve
        self._children, self._draw = children, random.Random(seed)
        self._unbroken = {way: self._whole_run(f"unbroken-{way[0]}-{way[1]}", way) for way in (("none", 1), *_WAYS)}

    def kill(self, kills: int) -> None:
        """Kill so many times, in as many runs as that takes; the last comes to its end."""
        number = 0
        while self._count("kills") < kills:
            number += 1
            self._one_run(f"run-{number}", always_the_same=number % 2 == 0, kills=kills)

    def _count(self, what: str) -> int:
        return sum(count for (_, name), count in self.seen.items() if name == what)

    def _whole_run(self, name: str, way: tuple[str, int]) -> tuple[Path, float]:
        """A run that nobody touches, and its seconds."""
        started = time.perf_counter()
        codes = self._children.run_ranks(way[1], *_command(name, way))
        assert set(codes) == {0}, self._children.said()
        return self._children.place / name, time.perf_counter() - started

    def _one_run(self, name: str, *, always_the_same: bool, kills: int) -> None:
        run, way = self._children.place / name, self._draw.choice(_WAYS)
        shutil.rmtree(self._children.place / "cache")
        used = {way}
        while not self._is_over(run, way, kills):
            if not always_the_same:
                way = self._draw.choice((("none", 1), *_WAYS))
                used.add(way)
        unbroken, _ = self._unbroken[way]
        label = "always the same" if len(used) == 1 else "changing"
        self.seen[label, "runs"] += 1
        self.worst = max(self.worst, largest_difference(unbroken, run))
        if self.worst > _MOST_DIFFERENCE:
            self.findings.append(f"{name} on {used}: the curve differs by {self.worst:.0e}")
        if len(used) == 1 and (differing := differing_weights(unbroken, run)):
            self.findings.append(f"{name} on {used}: {len(differing)} tensors differ, such as {differing[0]}")
        shutil.rmtree(run)

    def _is_over(self, run: Path, way: tuple[str, int], kills: int) -> bool:
        """Start or resume the run and kill one of its ranks; whether it came to its end first."""
        before, ranks, label = newest_whole_step(run), way[1], f"{way[0]} {way[1]}"
        pids = self._children.start(*[_command(run.name, way)] * ranks, together=ranks > 1)
        is_enough = self._count("kills") >= kills
        codes = self._children.wait(None if is_enough else self._draw.uniform(0, self._unbroken[way][1]))
        victim, were_ended = self._draw.randrange(ranks), False
        if codes is None:
            with suppress(ProcessLookupError):  # it ended in this very moment
                os.kill(pids[victim], signal.SIGKILL)
            codes = self._children.wait(_SECONDS_TO_END)
            if codes is None:  # who waits for what a dead rank was to say is ended by the launcher
                were_ended = True
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                codes = self._children.wait() or []
        if codes == [0] * ranks:
            return True
        if -signal.SIGKILL not in codes:
            self.findings.append(f"{label} ended with {codes} though nobody was killed: {self._children.said()[-300:]}")
        self.seen[label, "kills"] += 1
        self.seen[label, "of rank 0"] += victim == 0
        self.seen[label, "others ended by the launcher"] += were_ended
        if newest_whole_step(run) < before:
            self.seen[label, "lost commits"] += 1
            self.findings.append(f"{label}: step {before} was saved, and {newest_whole_step(run)} is what is left")
        for damage in _damage(run, self._unbroken[way][0]):
            self.seen[label, "damaged"] += 1
            self.findings.append(f"{label}: {damage}")
        return False

    def table(self) -> str:
        """What was counted, as a table of Markdown."""
        counted = ("kills", "of rank 0", "others ended by the launcher", "lost commits", "damaged")
        labels = [f"{strategy} {ranks}" for strategy, ranks in (("none", 1), *_WAYS)]
        rows = [[label, *(f"{self.seen[label, what]:,}" for what in counted)] for label in labels]
        rows.append(["all", *(f"{self._count(what):,}" for what in counted)])
        return table(["ranks", *counted], rows)


def _command(run: str, way: tuple[str, int]) -> tuple[str, ...]:
    return ("train", "run.yaml", f"output_dir={run}", "--resume", f"distributed.strategy={way[0]}")


def _damage(run: Path, unbroken: Path) -> list[str]:
    """What is not whole of a run; the numbers of model/ depend on the order of sums, its files and sizes do not."""
    sizes = {file.name: file.stat().st_size for file in (unbroken / "model").glob("*.safetensors")}
    saved = {file.name: file.stat().st_size for file in (run / "model").glob("*.safetensors")}
    content: Mapping[str, bytes] = {f"model/{file.name}": file.read_bytes() for file in (run / "model").glob("*")}
    found = damage_in(run, content)
    return [*found, *([f"model/ holds {saved}"] if (run / "model").is_dir() and saved != sizes else [])]


def storm(place: Path, kills: int, seed: int) -> RankStorm:
    """A storm of so many kills in a folder."""
    with Children(make_place(place)) as children:
        raging = RankStorm(children, seed)
        raging.kill(kills)
        return raging


def main() -> int:
    """Run the storm, and print what came of it."""
    parser = argparse.ArgumentParser(description="Kill single processes of runs of several, and compare what is left.")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quiet_libraries()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="rank-storm-") as folder:
        raging = storm(Path(folder), options.kills, options.seed)
    print(raging.table(), end="\n\n")
    runs = {label: raging.seen[label, "runs"] for label in ("always the same", "changing")}
    print(
        f"{runs['always the same']} runs on the same ranks throughout, compared bit for bit, and {runs['changing']} on "
        f"changing ones; the curves differ by at most {raging.worst:.0e}; "
        f"{(time.perf_counter() - started) / 60:.1f} min"
    )
    for sentence in raging.findings[:20]:
        print(sentence)
    return int(bool(raging.findings))


if __name__ == "__main__":
    sys.exit(main())
