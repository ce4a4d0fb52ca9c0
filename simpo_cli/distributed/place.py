"""Where a process stands among those that a launcher started, by the environment that it was given."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from simpo_cli.errors import UserError


@dataclass(frozen=True, slots=True)
class Place:
    """One process of a run of several."""

    rank: int  # 0 is the one that writes
    world_size: int  # processes of the run, on all hosts
    local_rank: int  # among those of this host
    local_size: int  # processes of this host
    restarts: int = 0  # how often the launcher has started all of them anew

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def place_in(environment: Mapping[str, str] | None = None) -> Place | None:
    """The place that a launcher gave this process: torchrun, `accelerate launch`, srun or our own; None without one.

    Raises:
        UserError: the environment names a part of a place and not the rest.
    """
    environment = os.environ if environment is None else environment
    if "WORLD_SIZE" not in environment:
        return None
    try:
        size, rank = int(environment["WORLD_SIZE"]), int(environment["RANK"])
        local_rank = int(environment.get("LOCAL_RANK", rank))
        local_size = int(environment.get("LOCAL_WORLD_SIZE", size))
        restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the environment names WORLD_SIZE, and no place in it: {error}.",
            "Start simpo by torchrun, accelerate launch or srun, or by itself with distributed.num_processes.",
        ) from error
    return Place(rank, size, local_rank, local_size, restarts)
