"""What the benchmark of the audit has seen: as lines for a terminal, and as a page with a plot."""

import datetime
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.page import plot_file, table

Seen = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]

_INTRODUCTION = """# Benchmarks: the audit

Written by `{command} --page docs` on {date}, which anyone
can repeat. Numbers are medians with the range in brackets over n = {rounds} fresh processes of each kind, the kinds
taking turns.

{facts}

{pairs:,} pairs made up by a fixed seed, {megabytes:,.0f} MB of JSON lines, with known shares of repeated prompts,
duplicates, near-duplicates and contradictions. *Processor* is the time of all processes of a measurement, *peak memory*
what they hold together. *reading* makes pairs of records and does nothing else; *without near-duplicates* is `simpo
stats FILE --json` with the signatures and the search among them put out of action; *whole audit* is `simpo stats FILE
--eval OTHER --json`.
"""


def print_heading(machine: Mapping[str, Any], pairs: int, megabytes: float, rounds: int) -> None:
    """Print the machine, the pairs and the heads of the columns."""
    for line in _facts(machine):
        print(line)
    print(f"{pairs:,} made-up pairs, {megabytes:,.0f} MB; medians of n = {rounds} fresh processes\n")
    heading = f"{'seconds':>9}  {'(range)':<18}{'MB/s':>8}{'processor':>11}{'MB/s':>8}{'peak MB':>9}"
    print(f"{'':<25}{'pairs':>10}{heading}", flush=True)


def print_line(kind: str, count: int, megabytes: float, measured: Sequence[Mapping[str, Any]]) -> None:
    """Print what was seen of one kind."""
    seconds, processor = (_values(measured, key) for key in ("seconds", "processor_seconds"))
    spread = f"({min(seconds):.2f} to {max(seconds):.2f})"
    clock = f"{median(seconds):>9.2f}  {spread:<18}{megabytes / median(seconds):>8.1f}"
    used = f"{median(processor):>11.2f}{megabytes / median(processor):>8.1f}"
    print(f"{kind:<25}{count:>10,}{clock}{used}{max(_values(measured, 'peak_bytes')) / 1e6:>9.0f}", flush=True)


def write_audit_page(
    folder: Path, machine: Mapping[str, Any], seen: Seen, megabytes: Mapping[int, float], command: str
) -> None:
    """Write benchmarks-audit.md and benchmarks-audit.svg.

    Args:
        folder: where to.
        machine: what it was measured on.
        seen: the measurements of each kind at each number of pairs.
        megabytes: of the files, by the number of pairs.
        command: what was typed.
    """
    whole = {count: measured for (kind, count), measured in seen.items() if kind == "whole audit"}
    pairs = max(whole)
    parts = [
        _INTRODUCTION.format(
            command=command,
            date=datetime.date.today().isoformat(),
            rounds=len(whole[pairs]),
            facts="\n".join(f"- {line}" for line in _facts(machine)),
            pairs=pairs,
            megabytes=megabytes[pairs],
        ),
        _table(seen, megabytes),
        "## How time grows\n\n![seconds against pairs](benchmarks-audit.svg)\n\n" + _growth(whole),
        "## In tokens\n\n" + _tokens(seen),
    ]
    (folder / "benchmarks-audit.md").write_text("\n".join(parts), encoding="utf-8")
    _plot(whole, folder / "benchmarks-audit.svg")


def _facts(machine: Mapping[str, Any]) -> list[str]:
    used = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}",
        f"Python {machine['python']}, {used}",
    ]


def _values(measured: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(one[key]) for one in measured]


def _spread(values: Sequence[float], digits: int = 1) -> str:
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _table(seen: Seen, megabytes: Mapping[int, float]) -> str:
    head = " | pairs | MB | n | seconds | MB/s | processor seconds | MB a processor second | peak memory, MB"
    rows: list[Sequence[str]] = [head.split(" | ")]
    for (kind, count), measured in seen.items():
        size = megabytes[count]
        seconds, processor = (_values(measured, key) for key in ("seconds", "processor_seconds"))
        cells = (
            kind,
            f"{count:,}",
            f"{size:,.0f}",
            f"{len(measured)}",
            _spread(seconds),
            _spread([size / one for one in seconds]),
            _spread(processor),
            f"{size / median(processor):.1f}",
            f"{max(_values(measured, 'peak_bytes')) / 1e6:.0f}",
        )
        rows.append(cells)
    return table(rows)


def _growth(whole: Mapping[int, Sequence[Mapping[str, Any]]]) -> str:
    """How much longer twice the pairs take, and the memory that a pair more takes."""
    counts = sorted(whole)
    times = {count: median(_values(whole[count], "seconds")) for count in counts}
    peaks = {count: max(_values(whole[count], "peak_bytes")) for count in counts}
    doubled = ", ".join(
        f"{large / small:.1f} times the pairs took {times[large] / times[small]:.2f} times as long"
        for small, large in itertools.pairwise(counts)
    )
    per_pair = (peaks[counts[-1]] - peaks[counts[0]]) / (counts[-1] - counts[0])
    return f"{doubled[:1].upper()}{doubled[1:]}.\nA pair more takes {per_pair:.0f} bytes at the peak of memory.\n"


def _tokens(seen: Seen) -> str:
    (ours,) = (measured for (kind, _), measured in seen.items() if kind == "in tokens")
    (library,) = (measured for (kind, _), measured in seen.items() if kind == "library alone")
    said = []
    for key, name in (("seconds", "by the clock"), ("processor_seconds", "by processor time")):
        shares = [100 * b / a for a, b in zip(_values(ours, key), _values(library, key), strict=True)]
        said.append(f"{_spread(shares, 0)} % {name}")
    return (
        "`simpo stats FILE --tokenizer MODEL --json`, the rest of the audit included, against the tokenizer library\n"
        f"alone on the same texts in the same batches: {', '.join(said)}.\n"
    )


def _plot(whole: Mapping[int, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Seconds against pairs, every measurement a point, with the straight line through nought and the last median."""
    with plot_file(file, 1, 6.0) as axes:
        most = max(whole)
        axes.plot([0, most], [0, median(_values(whole[most], "seconds"))], color="0.7", label="in proportion")
        for number, (count, measured) in enumerate(whole.items()):
            seconds = _values(measured, "seconds")
            axes.plot([count] * len(seconds), seconds, "o", color="C0", label=None if number else "whole audit")
        axes.set_xlabel("pairs")
        axes.set_ylabel("seconds")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False)
