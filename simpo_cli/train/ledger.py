"""The account of the records: every one that was read is somewhere, and the numbers add up."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from simpo_cli.data.plan import Plan
from simpo_cli.data.prepare import PreparedData
from simpo_cli.data.store import EncodedSource


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the records of one side of the data went.

    read + repeated = trained + held_out + not_reached + refused + the sum of dropped.

    Attributes:
        read: records of any kind that were read.
        repeated: how many more pairs there are because sources are repeated (`repeat` in the recipe).
        trained: different pairs that a step was taken on so far.
        held_out: pairs that are scored and never trained on.
        not_reached: pairs that no step was taken on so far.
        refused: malformed records.
        dropped: pairs without signal, by reason.
    """

    read: int
    repeated: int
    trained: int
    held_out: int
    not_reached: int
    refused: int
    dropped: Mapping[str, int]

    def __post_init__(self) -> None:
        left = self.read + self.repeated
        found = self.trained + self.held_out + self.not_reached + self.refused + sum(self.dropped.values())
        assert left == found, f"{left} records read, repetitions counted, and {found} accounted for: {self}"
        assert min(self.repeated, self.trained, self.held_out, self.not_reached) >= 0, self

    def as_json(self) -> dict[str, Any]:
        """Its part of run.json."""
        return asdict(self)


def train_ledger(data: PreparedData, plan: Plan, steps_done: int) -> Ledger:
    """The account of the training records after so many steps.

    Args:
        data: the pairs of the run.
        plan: which of them a step takes.
        steps_done: optimizer steps so far.
    """
    trained = plan.num_pairs_after(steps_done)
    return _ledger(
        data.train_source,
        trained=trained,
        held_out=len(data.held_out) if data.eval_source is None else 0,
        not_reached=len(data.train) - trained,
    )


def eval_ledger(source: EncodedSource) -> Ledger:
    """The account of the records of data.eval, which are held out all of them."""
    return _ledger(source, trained=0, held_out=len(source.pairs), not_reached=0)


def _ledger(source: EncodedSource, *, trained: int, held_out: int, not_reached: int) -> Ledger:
    return Ledger(
        read=source.account.records_read,
        repeated=source.repeated,
        trained=trained,
        held_out=held_out,
        not_reached=not_reached,
        refused=len(source.account.refused),
        dropped=dict(sorted(source.account.dropped.items())),
    )
