"""Checkpoints that several processes write and read: whatever their number, and whatever fails on one of them."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simpo_cli.distributed import files
from simpo_cli.errors import ExitCode
from simpo_cli.run.checkpoint import reap
from simpo_cli.run.manifest import find_checkpoints, open_checkpoint
from tests.distributed.checkpoint_crews import DEATHS, KINDS, PIECE, SIZES, names, state_of

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the crews have worked."""
    folder = tmp_path_factory.mktemp("crews")
    command = [sys.executable, "-m", "tests.distributed.checkpoint_crews", str(folder)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def seen(place: Path) -> dict[str, Any]:
    """What the ranks of each crew saw."""
    content: dict[str, Any] = json.loads((place / "seen.json").read_text(encoding="utf-8"))
    return content


def is_aligned(file: Path) -> bool:
    """Whether each tensor begins where its type may, for readers that map the file."""
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return all(entry["data_offsets"][0] % {"F32": 4, "BF16": 2}[entry["dtype"]] == 0 for entry in header.values())


def test_every_rank_writes_whole_tensors_which_together_are_all(place: Path) -> None:
    expected = state_of(3)
    for kind in KINDS:
        for size in SIZES:
            folder = place / f"{kind}-{size}" / "step-00000003"
            ends = [""] if size == 1 else [f"-r{rank}" for rank in range(size)]
            parts = [folder / f"{stem}{end}.safetensors" for end in ends for stem in ("weights", "optimizer")]
            others = ["optimizer.json", "progress.json", "manifest.json"]
            assert names(folder) == sorted([*(part.name for part in parts), *others])
            found = [(name, tensor) for part in parts for name, tensor in load_file(part).items()]
            assert sorted(name for name, _ in found) == sorted(expected)
            assert all(torch.equal(tensor, expected[name]) for name, tensor in found)
            assert all(tensor.dtype == expected[name].dtype for name, tensor in found)
            assert all(is_aligned(part) for part in parts)
            open_checkpoint(folder).verify()


def test_a_rank_holds_no_more_than_one_tensor_whole(seen: dict[str, Any]) -> None:
    """What it gathers lies in one place, to which it comes in pieces."""
    assert seen["written"] == {str(size): [{"places": 1, "at once": PIECE}] * size for size in SIZES}


def test_any_number_of_ranks_reads_what_any_number_has_written(seen: dict[str, Any]) -> None:
    right = {f"{one}-{size} as {kind}": [] for one in KINDS for size in SIZES for kind in KINDS}
    assert seen["read"] == {str(size): [right] * size for size in SIZES}


def test_ranks_and_shards_round_narrow_weights_alike(place: Path, seen: dict[str, Any]) -> None:
    assert seen["moved"] == {str(size): [None] * size for size in SIZES}
    states = []
    for kind in KINDS:
        for size in SIZES:
            files = (place / f"moved-{kind}-{size}" / "step-00000003").glob("*.safetensors")
            states.append({name: tensor for file in files for name, tensor in load_file(file).items()})
    assert states[0]["narrow.weight"].dtype == torch.bfloat16
    for state in states[1:]:
        assert all(torch.equal(tensor, state[name]) for name, tensor in states[0].items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [0, 1])
def test_whatever_call_fails_on_one_rank_all_raise_it_and_nothing_is_half_there(
    seen: dict[str, Any], kind: str, bad: int
) -> None:
    reason = os.strerror(errno.ENOSPC)
    error = [errno.ENOSPC, f"rank 1 on {HOST}: {reason}" if bad else reason]
    before = ["step-00000001", "step-00000002"]
    first, other = (rank[f"{kind}, rank {bad}"] for rank in seen["disks"])
    assert first == other
    assert len(first) > 20
    assert all(raised == error and damaged == [] for raised, _, damaged in first)
    left = [found for _, found, _ in first]
    last = len(left) if bad else left.index([*before, "step-00000003"])
    assert left[:last] == [before] * last
    assert left[last:] == [[*before, "step-00000003"]] * (0 if bad else 3)  # its new name could not be synced


def test_a_run_of_two_ranks(seen: dict[str, Any]) -> None:
    first, other = seen["run"]
    for rank in (first, other):
        assert rank["checkpoints"] == ["step-00000002", "step-00000003"]
        assert rank["files"] == rank["files at the end"] == [".lock", ".owner", "checkpoints"]
        assert rank["full"][0] == ExitCode.ENVIRONMENT
        assert f": rank 1 on {HOST}: No space left on device; that of step 3 is kept." in rank["full"][1]
        assert rank["not finite"][0] == ExitCode.NUMBERS
        assert "step 4 is not saved: exp_avg of five.weight of the optimizer's state is not" in rank["not finite"][1]
    for what in ("full", "not finite", "other model"):
        assert first[what] == other[what]
    for what, who, problem in (
        ("no room", 0, "the disk is too full for the checkpoint of step 4: "),
        ("not shared", 1, "the run folder "),
    ):
        theirs, own = (other, first) if who == 0 else (first, other)
        assert own[what][1].startswith(problem)
        assert theirs[what] == [ExitCode.ENVIRONMENT, f"rank {who} on {HOST}: {own[what][1]}"]
    assert "is not the one that rank 0 writes to: its .shared." in first["not shared"][1]
    assert first["other model"][1].endswith("step-00000002 does not fit the model: more is only in the model.")


def test_a_damaged_file_of_one_rank_has_all_resume_from_the_checkpoint_before(seen: dict[str, Any]) -> None:
    damage = "step-00000003: weights-r1.safetensors holds other bytes than were saved"
    expected = {"saved": [3, 2], "loaded": 2, "differing": [], "damage": [damage]}
    for rank in (*seen["run"], *seen["resumed by one"]):
        assert {name: rank[name] for name in expected} == expected


@pytest.mark.parametrize("number", range(len(DEATHS)), ids=["-".join(map(str, death)) for death in DEATHS])
def test_a_rank_that_dies_takes_nothing_with_it(place: Path, seen: dict[str, Any], number: int) -> None:
    kind, who, call = DEATHS[number]
    expected: list[str | None] = ["LostRanksError"] * 2
    expected[who] = None
    assert seen["deaths"][number] == expected
    parent = place / f"dying-{kind}-{who}-{call}"
    assert reap(parent) == (1 if who == 0 else 0)
    assert names(parent) == ["step-00000001"]
    [[found], damaged] = find_checkpoints(parent)
    found.verify()
    assert damaged == []


def test_bytes_are_dealt_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.ranks, "world_size", lambda: 3)
    sizes = {"a": 5, "b": 9, "c": 4, "d": 4, "e": 0, "f": 3, "g": 4}
    dealt = files.deal(sizes)
    assert dealt == files.deal(dict(reversed(sizes.items())))
    assert sorted(name for part in dealt for name in part) == sorted(sizes)
    assert dealt == [["b", "e"], ["a", "g"], ["c", "d", "f"]]
