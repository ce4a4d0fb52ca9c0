"""Places by the environment: what torchrun, accelerate launch, Kubernetes, srun and our own launcher set."""

from typing import Any

import pytest

from simpo_cli.distributed.place import Place, place_in, take_place
from simpo_cli.errors import UserError

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
POD = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
JOB = {  # a batch script, which srun has not started
    "SLURM_JOB_ID": "7123456",
    "SLURM_JOB_NODELIST": "gpu[03-04,07]",
    "SLURM_NTASKS": "12",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = JOB | {
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "12",
    "SLURM_STEP_NODELIST": "gpu[03-04,07]",
    "SLURM_STEP_TASKS_PER_NODE": "5(x2),2",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        (TORCHRUN, Place(5, 8, 1, 4)),
        (TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2"}, Place(5, 8, 1, 4, restarts=2)),
        (POD, Place(3, 4, 0, 1)),
        (JOB, None),
        (STEP, Place(11, 12, 1, 2)),
        (STEP | {"SLURM_PROCID": "9", "SLURM_LOCALID": "4", "SLURM_NODEID": "1"}, Place(9, 12, 4, 5)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),  # srun --pty bash
        (STEP | TORCHRUN, Place(5, 8, 1, 4)),  # srun started torchrun, once a host
        (STEP | {"OMPI_COMM_WORLD_SIZE": "2"}, None),  # and here the daemons of mpirun
        (STEP | {"MPI_LOCALRANKID": "0"}, None),
        ({"WORLD_SIZE": "1"}, None),
        (POD | {"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, Place(0, 1, 0, 1)),  # what is left of --nnodes=1:2
        ({"RANK": "1", "LOCAL_RANK": "1"}, None),
    ],
)
def test_a_place_is_what_the_launcher_says(environment: dict[str, str], place: Place | None) -> None:
    assert place_in(environment) == place


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, and no RANK."),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE=two, and no place in it: invalid literal"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "WORLD_SIZE=2, and RANK=2 with LOCAL_RANK=0 of 1 in it."),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "2"}, "WORLD_SIZE=2, and RANK=1 with LOCAL_RANK=2 of 2 in it."),
        (
            {name: value for name, value in STEP.items() if name != "SLURM_NODEID"},
            "SLURM_STEP_NUM_TASKS=12, and no SLURM_NODEID.",
        ),
        (STEP | {"SLURM_NODEID": "3"}, "SLURM_STEP_NUM_TASKS=12, and no place in it: list index out of range."),
    ],
)
def test_half_an_environment_is_refused(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(UserError, match="^the environment names ") as caught:
        place_in(environment)
    assert problem in caught.value.problem
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("more", "address"),
    [
        ({}, ("gpu03", "23458")),
        ({"SLURM_STEP_NODELIST": "login"}, ("login", "23458")),
        ({"SLURM_STEP_NODELIST": "rack[1-2]n[07,09],x[1-3]"}, ("rack1n07", "23458")),
        ({"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}, ("10.0.0.7", "29500")),
    ],
)
def test_torch_finds_what_srun_says(more: dict[str, str], address: tuple[str, str]) -> None:
    names: Any = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    with pytest.MonkeyPatch.context() as patch:
        environment: dict[str, str] = STEP | more
        patch.setattr("os.environ", environment)
        assert take_place() == place_in(STEP)
        assert [environment[name] for name in names] == ["12", "11", "1", "2", *address]
        assert take_place() == place_in(STEP)  # again, now by the names of torchrun
