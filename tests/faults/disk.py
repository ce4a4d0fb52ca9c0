"""Faults of the disk: `python -m tests.faults.disk` causes them and prints what came of each, as rows of Markdown.

System calls are made to fail with strace, where it is there; disks that are really full or read-only are mounted, where
one may. What cannot be done here is said and not counted. With --quick a few of each kind, which takes about a minute.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.children import be_ready_to_fork, environment, make_place
from tests.faults.table import table

if TYPE_CHECKING:
    from tests.faults.calls import Counts

_ONE_IN_QUICK = 130


def main() -> int:
    """Cause the faults and print the tables; 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description="Cause faults of the disk and look at what they leave.")
    parser.add_argument("--one-in", type=int, default=1, help="only one system call of so many")
    parser.add_argument("--quick", action="store_true", help="a few of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = _prepare(Path(folder))
        from tests.faults.calls import PARTS, CallByCall
        from tests.faults.forked import has_strace
        from tests.faults.real_disks import RealDisks, may_mount

        calls = CallByCall(place)
        wrong: list[str] = []
        if has_strace():
            one_in = _ONE_IN_QUICK if options.quick else options.one_in
            counts = []
            for part in PARTS[:1] if options.quick else PARTS:
                counts.append((part.name, calls.look_at(part, one_in)))
                wrong += counts[-1][1].wrong
            print(_calls_table(counts), end="\n\n")
        else:
            print("System calls were not made to fail: strace is not here, or may not look at a process.\n")
        disks = RealDisks(place)
        rows = list(disks.without_mounting(quick=options.quick))
        if reason := may_mount(place):
            print(f"No disk was filled or made read-only: {reason}\n")
        else:
            rows += disks.with_mounting(quick=options.quick)
            if not options.quick:
                disks.make_adapters()
                rows += disks.other_commands()
        shown = [(row.fault, str(int(row.code)), "no" if row.problems else "yes") for row in rows]
        print(table(("fault", "exit code", "as it should be"), shown))
        wrong += [f"{row.fault}: {problem}" for row in rows for problem in row.problems]
    for problem in wrong:
        print(f"wrong  {problem}", file=sys.stderr)
    return int(bool(wrong))


def _prepare(folder: Path) -> Path:
    """A place to run in, and everything imported; nothing in this process may touch a tensor before it forks."""
    os.environ |= environment(folder)
    be_ready_to_fork()
    maker = get_context("fork").Process(target=make_place, args=(folder,))
    maker.start()
    maker.join()
    assert maker.exitcode == 0
    return folder


def _calls_table(counts: "Sequence[tuple[str, Counts]]") -> str:
    faults = ("ENOSPC", "EIO", "EDQUOT", "KILL")
    heads = ("part of a run", "calls", *faults, "exit code 4", "did no harm", "different states", "wrong")
    rows = []
    for name, found in counts:
        cases = [found.cases[fault] for fault in faults]
        numbers = [found.points, *cases, found.refused, found.harmless, len(found.states), len(found.wrong)]
        rows.append((name, *(f"{number:,}" for number in numbers)))
    return table(heads, rows)


if __name__ == "__main__":
    sys.exit(main())
