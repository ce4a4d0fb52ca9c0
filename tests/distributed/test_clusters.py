"""The scripts of docs/clusters.md, run by bash; what stands in for torchrun and Slurm notes how it was called."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from simpo_cli.recipe.composition import compose
from tests.cli.seen import write_run_recipe

PAGE = Path(__file__).parents[2] / "docs" / "clusters.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
NODE = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_JOB_ID": "7",
    "RANK": "1",
    "MASTER_ADDR": "simpo-master-0",
    "MASTER_PORT": "23456",
}

pytestmark = pytest.mark.skipif(not TEXT, reason="the package is installed, not a checkout")


def _fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def _called(script: str, folder: Path, *, exit_code: int = 0) -> tuple[int, list[list[str]]]:
    """How a script ends, and the programs that it calls, with their words."""
    for name in ("torchrun", "srun", "scontrol"):
        (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\n" {name} "$@" "" >> calls\nexit {exit_code}\n')
        (folder / name).chmod(0o700)
    environment = {**os.environ, **NODE, "PATH": f"{folder}:{os.environ['PATH']}"}
    words = ["bash", "-u", "-c", script]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    calls = (folder / "calls").read_text().removesuffix("\n\n").split("\n\n")
    return done.returncode, [call.split("\n") for call in calls]


def _require_training(words: list[str], folder: Path) -> None:
    """The words are a command that resumes a run of a recipe as `simpo` reads it."""
    assert words[:2] == ["simpo", "train"]
    assert words[3] == "--resume"
    write_run_recipe(folder, "run", "builtin:guide")
    compose(str(folder / "run.yaml"), words[4:])


def _nodes(words: list[str], folder: Path) -> Any:
    """What torchrun makes of its words."""
    arguments = get_args_parser().parse_args(words[1:])
    assert arguments.no_python
    _require_training([arguments.training_script, *arguments.training_script_args], folder)
    return arguments


def test_torchrun_knows_the_words_of_each_script(tmp_path: Path) -> None:
    sky, pods = map(yaml.safe_load, _fenced("yaml"))
    two_hosts, _, elastic = _fenced("bash")
    for script, nodes, master in [
        (two_hosts, "2", "host-1"),
        (sky["run"], "2", "10.0.0.1"),
        (elastic, "1:2", ""),
    ]:
        (tmp_path / "calls").unlink(missing_ok=True)
        code, [words] = _called(script, tmp_path)
        arguments = _nodes(words, tmp_path)
        assert code == 0
        assert (arguments.nnodes, str(arguments.nproc_per_node)) == (nodes, "8")
        assert master in ("", arguments.master_addr)
    assert sky["num_nodes"] == 2
    specs = pods["spec"]["pytorchReplicaSpecs"]
    assert specs["Worker"] == specs["Master"]
    [container] = specs["Master"]["template"]["spec"]["containers"]
    words = [re.sub(r"\$\((\w+)\)", lambda name: NODE[name[1]], word) for word in container["command"]]
    arguments = _nodes(words, tmp_path)
    assert (arguments.nnodes, arguments.node_rank) == ("2", 1)
    assert arguments.nproc_per_node == str(container["resources"]["limits"]["nvidia.com/gpu"])
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in specs["Master"]["template"]["spec"]["volumes"]}


@pytest.mark.parametrize(("exit_code", "requeued"), [(0, []), (75, [["scontrol", "requeue", "7"]]), (4, [])])
def test_a_job_that_was_saved_returns_to_the_queue(tmp_path: Path, exit_code: int, requeued: list[list[str]]) -> None:
    code, [step, *calls] = _called(_fenced("bash")[1], tmp_path, exit_code=exit_code)
    assert (code, calls) == (exit_code, requeued)
    assert step[:3] == ["srun", "--kill-on-bad-exit=0", "--wait=120"]
    _require_training(step[3:], tmp_path)
