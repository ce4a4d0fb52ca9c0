"""What a rank computes of many pairs, and the numbers of all pairs on every rank.

A sharded model is computed by all ranks together, so each runs as many micro-batches as the one that has most: what it
has too few are `idle` ones, of the shortest pair, whose numbers count for nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Packing, deal, tokens_of_each
from simpo_cli.distributed import ranks
from simpo_cli.errors import ExitCode
from simpo_cli.model.backend import backend_of
from simpo_cli.model.out_of_memory import OutOfMemoryError, ran_out
from simpo_cli.run.stop import Stopped, StopRequest


@dataclass(frozen=True, slots=True)
class Share:
    """A rank's part of the micro-batches of some pairs.

    Attributes:
        microbatches: positions within the pairs.
        first_number: number of the first of them among those of all ranks.
        idle: how many more some other rank has, where all have to run as many; else 0.
        shortest: position of the pair that idle micro-batches are made of.
    """

    microbatches: Sequence[Sequence[int]]
    first_number: int = 0
    idle: int = 0
    shortest: int = 0

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], budget: int, packing: Packing, *, is_sharded: bool) -> "Share":
        """What this rank computes of pairs, in micro-batches of at most `budget` tokens."""
        shares = deal(pairs, ranks.world_size(), budget, packing)
        mine, rank = shares[ranks.rank()], ranks.rank()
        idle = max(map(len, shares)) - len(mine) if is_sharded else 0
        shortest = int(tokens_of_each(pairs, packing).argmin()) if idle else 0
        return cls(mine, sum(map(len, shares[:rank])), idle, shortest)


class Numbers:
    """Numbers of each of some pairs, filled a micro-batch at a time without waiting for the device.

    Args:
        rows: how many numbers a pair has.
        num_pairs: pairs, of which this rank fills a part.
    """

    def __init__(self, rows: int, num_pairs: int, device: torch.device) -> None:
        self._numbers = torch.empty(rows, num_pairs, dtype=backend_of(device).widest, device=device)
        self._order: list[int] = []

    def add(self, positions: Sequence[int], numbers: Tensor) -> None:
        """The (rows, p) numbers of the pairs at these positions."""
        start = len(self._order)
        self._numbers[:, start : start + len(positions)] = numbers
        self._order += positions

    def of_all(self, *more: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(rows, num_pairs) of all ranks' pairs, in their order, and sums of further tensors, on the CPU.

        The device is waited for once, and the ranks are asked once: no two of them have the same pair, so that adding
        their numbers is exact.
        """
        rows, count = self._numbers.shape
        own, extras = self._numbers[:, : len(self._order)], [tensor.reshape(-1) for tensor in more]
        if ranks.world_size() > 1:
            placed = torch.zeros_like(self._numbers)
            placed[:, torch.tensor(self._order, dtype=torch.long, device=own.device)] = own
            read = ranks.sum_over_ranks(torch.cat([placed.reshape(-1), *extras])).cpu().double()
            in_order = read[: rows * count].view(rows, count)
        else:
            read = torch.cat([own.reshape(-1), *extras]).cpu().double()
            in_order = torch.empty(rows, count, dtype=torch.float64)
            in_order[:, self._order] = read[: rows * count].view(rows, count)
        summed = torch.split(read[rows * count :], [len(tensor) for tensor in extras])
        return in_order, [part.view(tensor.shape) for part, tensor in zip(summed, more, strict=True)]


class Failure:
    """What stops a rank in the middle of its share, kept until all ranks know of it.

    With one rank, and where a sharded model has the others in the middle of a collective, an error is raised where it
    is: that rank ends, and its launcher ends the others.
    """

    def __init__(self, stop: StopRequest | None, *, is_sharded: bool) -> None:
        several = ranks.world_size() > 1
        self._stop, self._waits, self._is_lockstep = stop, several and not is_sharded, several and is_sharded
        self._error: OutOfMemoryError | Stopped | None = None

    def between(self, microbatches: Iterable[Sequence[int]]) -> Iterable[Sequence[int]]:
        """The micro-batches, with a look at the signals before each where this rank may stop there by itself."""
        return microbatches if self._stop is None or self._is_lockstep else self._stop.between(microbatches)

    def __enter__(self) -> "Failure":
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> bool:
        if self._waits and isinstance(error, OutOfMemoryError | Stopped):
            self._error = error
        elif self._waits and error is not None and ran_out(error):
            self._error = OutOfMemoryError("a micro-batch does not fit in memory.", "")
        return self._error is not None

    def flags(self, device: torch.device) -> Tensor:
        """(2,) whether memory ran out here, and whether a signal came."""
        is_asked = isinstance(self._error, Stopped) or (self._stop is not None and self._stop.number > 0)
        flags = [isinstance(self._error, OutOfMemoryError), is_asked]
        return torch.tensor(flags, dtype=backend_of(device).widest, device=device)

    def require_none(self, flags: Tensor, what: str) -> None:
        """Raise on all ranks what one of them had; their flags are summed.

        Raises:
            Stopped: a signal came on a rank.
            OutOfMemoryError: memory ran out on one.
        """
        if ranks.world_size() == 1 or not bool(flags.any()):
            return
        error = self._error if isinstance(self._error, OutOfMemoryError) else None
        mine = {
            "signal": self._stop.number if self._stop is not None else 0,
            "memory": None if error is None else [error.problem, error.fix],
        }
        said = ranks.exchange(mine, what)
        if signal := max(one["signal"] for one in said):
            raise Stopped(signal)
        problem, fix = next(one["memory"] for one in said if one["memory"])
        raise OutOfMemoryError(problem, fix, exit_code=ExitCode.ENVIRONMENT)
