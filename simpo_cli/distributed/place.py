"""Where a process stands among those that a launcher started, by the environment that it was given, and what it says
to the others of an error.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simpo_cli.errors import ExitCode, UserError

_STARTED_BY_OTHERS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "MPI_LOCALRANKID")
_SRUN_PORTS = range(20_000, 30_000)  # below those that systems hand out


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

    Kubernetes gives the only process of a job a WORLD_SIZE of 1: that is no launcher's doing, and may start its own.

    Raises:
        UserError: the environment names a part of a place and not the rest.
    """
    environment = os.environ if environment is None else environment
    try:
        environment = {**environment, **_named_by_srun(environment)}
        if "WORLD_SIZE" not in environment:
            return None
        size = int(environment["WORLD_SIZE"])
        if size == 1 and not {"RANK", "LOCAL_RANK"} <= environment.keys():
            return None
        rank = int(environment["RANK"])
        local_rank = int(environment.get("LOCAL_RANK", "0"))  # without one, every host has one process
        local_size = int(environment.get("LOCAL_WORLD_SIZE", size if "LOCAL_RANK" in environment else 1))
        restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except (LookupError, ValueError) as error:
        what = f"no {error.args[0]}" if isinstance(error, KeyError) else f"no place in it: {error}"
        raise _no_place(environment, what) from error
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise _no_place(environment, f"RANK={rank} with LOCAL_RANK={local_rank} of {local_size} in it")
    return Place(rank, size, local_rank, local_size, restarts)


def take_place() -> Place | None:
    """The place of this process, named in its environment as torch looks for it.

    Raises:
        UserError: as in `place_in`.
    """
    place = place_in()
    os.environ.update(_named_by_srun(os.environ))
    return place


def as_json(error: UserError) -> dict[str, Any]:
    """An error of this process, for others of the run."""
    return {
        "host": socket.gethostname(),
        "problem": error.problem,
        "fix": error.fix,
        "where": error.where,
        "key": error.key,
        "exit_code": int(error.exit_code),
        "is_shared": error.is_shared,
        "is_consequence": error.is_consequence,
    }


def from_json(said: Mapping[str, Any], rank: int) -> UserError:
    """The error of another process, which says whose it is."""
    error = UserError(
        f"rank {rank} on {said['host']}: {said['problem']}",
        said["fix"],
        where=said["where"],
        key=said["key"],
        exit_code=ExitCode(said["exit_code"]),
    )
    error.is_shared, error.is_consequence = said["is_shared"], said["is_consequence"]
    return error


def _no_place(environment: Mapping[str, str], what: str) -> UserError:
    name = "WORLD_SIZE" if "WORLD_SIZE" in environment else "SLURM_STEP_NUM_TASKS"
    return UserError(
        f"the environment names {name}={environment[name]}, and {what}.",
        "Start simpo by torchrun, accelerate launch or srun, or by itself with distributed.num_processes.",
    )


def _named_by_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """What srun says of one of its several tasks, by the names of torchrun; an address that is set there stays.

    Empty elsewhere, also in a batch script, and where srun only started another launcher. The tasks meet on the first
    host of the step, at a port that follows from the numbers of job and step.
    """
    if any(name in environment for name in _STARTED_BY_OTHERS) or environment.get("SLURM_STEP_NUM_TASKS", "1") == "1":
        return {}
    counts = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])  # 8(x2),4
    tasks_of_hosts = [tasks for tasks, hosts in counts for _ in range(int(hosts or "1"))]
    first_host = re.sub(r"\[(\w+)[^]]*\]", r"\1", environment["SLURM_STEP_NODELIST"]).split(",")[0]  # gpu[01-03,07],x
    number = int(environment["SLURM_JOB_ID"]) + int(environment.get("SLURM_STEP_ID", "0"))
    return {
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks_of_hosts[int(environment["SLURM_NODEID"])],
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_host),
        "MASTER_PORT": environment.get("MASTER_PORT", str(_SRUN_PORTS[number % len(_SRUN_PORTS)])),
    }
