"""Held-out pairs to read: what they say, and what training did to their margin."""

from collections.abc import Sequence
from dataclasses import dataclass

from simpo_cli.formatting import fixed
from simpo_cli.report.page import readable
from simpo_cli.report.run_files import Row, RunFiles


@dataclass(frozen=True, slots=True)
class Sample:
    """One pair: its place, its margin before and after, and its texts under their names."""

    where: str
    margin: str
    texts: Sequence[tuple[str, str]]


def pair_samples(run: RunFiles) -> dict[str, list[Sample]]:
    """The run's samples by why they were taken: `drawn` by the seed, `worst` for the margins that fell most."""
    samples: dict[str, list[Sample]] = {"drawn": [], "worst": []}
    for row in run.samples:
        if row["why"] in samples and row["line"] <= len(run.pairs):
            samples[row["why"]].append(_sample(row, run.pairs[row["line"] - 1]))
    return samples


def _sample(row: Row, pair: Row) -> Sample:
    before, after = (pair[f"chosen_{when}"] - pair[f"rejected_{when}"] for when in ("before", "after"))
    return Sample(
        where=pair["where"],
        margin=f"{fixed(before, 3)} before, {fixed(after, 3)} after",
        texts=[(name, readable(row[name])) for name in ("prompt", "chosen", "rejected")],
    )
