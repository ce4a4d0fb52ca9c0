"""Checkpoints of one, two and four ranks: written, damaged and read in a folder that the command line names.

What each rank saw goes to seen.json there; the tests of test_checkpoints.py look at it, and at the files.
"""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn, optim
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from simpo_cli.distributed import files, ranks
from simpo_cli.distributed.sharded import is_sharded, local, reshard, rows_of
from simpo_cli.errors import UserError
from simpo_cli.model.policy import trainable
from simpo_cli.recipe.schema import CheckpointRecipe, TrainRecipe
from simpo_cli.run import folder as run_folder
from simpo_cli.run.folder import CHECKPOINTS, RunFolder
from simpo_cli.run.manifest import find_checkpoints, open_checkpoint
from simpo_cli.run.receipt import Identity
from simpo_cli.train.optimizer import load_state, make_optimizer, save_state, start_moments
from simpo_cli.train.saving import CheckpointSaver, ResumeState
from tests.distributed.crew import crew

SIZES = (1, 2, 4)
KINDS = ("whole", "sharded")
PIECE = 64  # bytes, so that a tensor is gathered in several
FACTS = {"recipe_sha256": "abc"}
CALLS = ("mkdir", "open", "write", "fsync", "close", "rename")


class Small(nn.Module):
    """Five rows, a layer in bfloat16, a tied weight, an empty one, one without a shape, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.five = nn.Linear(7, 5)
        self.tied = nn.Linear(7, 5, bias=False)
        self.tied.weight = self.five.weight
        self.narrow = nn.Linear(5, 7, dtype=torch.bfloat16)
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.number = nn.Parameter(torch.tensor(0.0))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.narrow((self.five(rows) + self.tied(rows)).bfloat16()) * self.number


def state_of(seed: int) -> dict[str, Tensor]:
    """Weights and moments by name, as they are saved with this seed."""
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, parameter in trainable(Small()).items():
        state[name] = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        for key in ("exp_avg", "exp_avg_sq"):  # float32, as one of the weights is narrower
            state[f"{name}.{key}"] = torch.randn(parameter.shape, generator=draw)
    return state


def training(kind: str, seed: int) -> tuple[Small, optim.Optimizer]:
    """A model and its optimizer on this rank, with the numbers of a seed."""
    model = Small()
    if kind == "sharded":
        if not dist.is_initialized():  # one rank joins nobody
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (ranks.world_size(),))
        fully_shard(model.narrow, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params={model.number, model.frozen})
    optimizer = make_optimizer(model, TrainRecipe())
    start_moments(optimizer)
    fill(model, optimizer, seed)
    return model, optimizer


def fill(model: nn.Module, optimizer: optim.Optimizer, seed: int) -> None:
    """Give what this rank holds the numbers of a seed."""
    expected = state_of(seed)
    for name, tensor in _tensors(model, optimizer).items():
        local(tensor).detach().copy_(_part(expected[name], tensor))
    for state in optimizer.state.values():
        state["step"] = seed


def _tensors(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    weights = trainable(model)
    moments = {
        f"{name}.{key}": optimizer.state[weights[name]][key] for name in weights for key in ("exp_avg", "exp_avg_sq")
    }
    return weights | moments


def _part(whole: Tensor, like: Tensor) -> Tensor:
    return whole[rows_of(like)] if is_sharded(like) else whole


def differing(model: nn.Module, optimizer: optim.Optimizer, seed: int) -> list[str]:
    """The tensors of this rank that do not have the numbers of a seed."""
    expected = state_of(seed)
    tensors = _tensors(model, optimizer)
    assert tensors.keys() == expected.keys()
    assert {state["step"] for state in optimizer.state.values()} == {seed}
    return [name for name, tensor in tensors.items() if not torch.equal(local(tensor), _part(expected[name], tensor))]


def save(parent: Path, step: int, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """A checkpoint, without what a run adds."""

    def conclude(written: Any) -> None:
        with written.open("progress.json") as file:
            file.write(b"{}")

    files.commit(parent, step, lambda written: save_state(written, model, optimizer), conclude, FACTS)


def names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


# What crews do


def writing(place: Path) -> dict[str, Any]:
    """Save a model of each kind; where the tensors lie that were gathered, and the bytes that came at once."""
    for kind in KINDS:
        model, optimizer = training(kind, seed=3)
        save(place / f"{kind}-{ranks.world_size()}", 3, model, optimizer)
    tensors = {name: tensor for name, tensor in _tensors(model, optimizer).items() if is_sharded(tensor)}
    with patch.object(dist, "gather", wraps=dist.gather) as gather:
        turns = files.in_turns(tensors, files.deal({name: tensor.nbytes for name, tensor in tensors.items()}))
        places = {tensor.data_ptr() for tensor in turns if tensor.numel() > 0}
    pieces = [call.args[0].nbytes * ranks.world_size() for call in gather.call_args_list]
    return {"places": len(places), "at once": max(pieces)}


def reading(place: Path, sizes: tuple[int, ...]) -> dict[str, list[str]]:
    """Of each checkpoint read into each kind of training, the tensors that came out wrong."""
    seen = {}
    for kind in KINDS:
        for saved in [f"{one}-{size}" for one in KINDS for size in sizes]:
            model, optimizer = training(kind, seed=4)
            load_state(open_checkpoint(place / saved / "step-00000003"), model, optimizer)
            seen[f"{saved} as {kind}"] = differing(model, optimizer, 3)
    return seen


def moving(place: Path) -> None:
    """Three steps of each kind of training, with gradients that all ranks have."""
    for kind in KINDS:
        model, optimizer = training(kind, seed=5)
        for state in optimizer.state.values():
            local(state["exp_avg_sq"]).abs_()
        for step in range(3):
            gradients = state_of(6 + step)
            for name, weight in trainable(model).items():
                weight.grad = torch.zeros_like(weight)
                local(weight.grad).copy_(_part(gradients[name], weight))
            for group in optimizer.param_groups:
                group["lr"] = 1e-3
            optimizer.step()
        save(place / f"moved-{kind}-{ranks.world_size()}", 3, model, optimizer)


@contextmanager
def failing(at: int) -> Iterator[list[str]]:
    """The calls of `os` that write, by name; the one at position `at` fails."""
    called: list[str] = []

    def shim(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            called.append(name)
            if len(called) - 1 == at:
                if name == "close":
                    real(*args)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **options)

        return call

    patches = [patch.object(os, name, shim(name, getattr(os, name))) for name in CALLS]
    for one in patches:
        one.start()
    try:
        yield called
    finally:
        for one in patches:
            one.stop()


def disks(place: Path) -> dict[str, Any]:
    """Every call of a save fails in turn, on one rank: what this rank raises, and which steps are there afterwards."""
    seen: dict[str, Any] = {}
    for kind, bad in product(KINDS, range(ranks.world_size())):
        parent = place / f"disk-{kind}-{bad}"
        model, optimizer = training(kind, seed=1)
        save(parent, 1, model, optimizer)
        with failing(-1) as called:
            save(parent, 2, model, optimizer)
        outcomes = []
        for at in range(ranks.exchange(len(called), "counting")[bad]):
            raised = None
            with failing(at if ranks.rank() == bad else -1):
                try:
                    save(parent, 3, model, optimizer)
                except OSError as error:
                    raised = [error.errno, error.strerror]
            _all_are_here()
            outcomes.append([raised, names(parent), [error.reason for error in find_checkpoints(parent)[1]]])
            _all_are_here()
            if ranks.is_first():
                shutil.rmtree(parent / "step-00000003", ignore_errors=True)
            _all_are_here()
        seen[f"{kind}, rank {bad}"] = outcomes
    return seen


def _all_are_here() -> None:
    ranks.exchange(None, "waiting")


def _saver(folder: RunFolder, model: nn.Module, optimizer: optim.Optimizer) -> tuple[CheckpointSaver, Any]:
    """The saver of a run of which there is no more than this."""
    recipe = SimpleNamespace(checkpoint=CheckpointRecipe(keep=2))
    health = SimpleNamespace(as_json=dict, alerts_as_json=list)
    run: Any = SimpleNamespace(
        policy=model,
        optimizer=optimizer,
        steps_done=1,
        run=SimpleNamespace(recipe=recipe),
        start_scores=None,
        evaluated_at=-1,
        answers_before=[],
        checked_before=[],
        health=health,
        budget=64,
        eval_losses={},
    )
    receipt: Any = SimpleNamespace(content={"plan": {}, "self_check": {}}, write=lambda *_: None)
    plan = {"train_pairs": 90, "held_out_pairs": 0, "tokens": "c"}
    identity = Identity({}, {"train": [], "eval": None}, {"revision": None, "files": {}}, "a", "b", plan, {})
    return CheckpointSaver(folder, run, receipt, identity, None), run


def a_run(place: Path) -> dict[str, Any]:
    """A run saves, cannot save, and is resumed from what is not damaged."""
    path = place / "run"
    if ranks.is_first():
        folder = RunFolder.create(path)
    _all_are_here()
    if not ranks.is_first():
        folder = RunFolder.follow(path)
    files.require_shared(folder)
    model, optimizer = training("sharded", seed=1)
    saver, run = _saver(folder, model, optimizer)
    for run.steps_done in (1, 2, 3):
        reshard(model)
        fill(model, optimizer, run.steps_done)
        model(torch.ones(2, 7))  # leaves the parameters of the root whole
        with room_on(0):
            saver.save()
    run.steps_done = 4
    seen: dict[str, Any] = {}
    with failing(2 if ranks.rank() == 1 else -1):
        seen["full"] = _error(saver.save)
    with room_on(1):
        seen["no room"] = _error(saver.save)
    if ranks.rank() == 1:
        local(optimizer.state[model.five.weight]["exp_avg"]).fill_(float("inf"))
    model(torch.ones(2, 7))
    seen["not finite"] = _error(saver.save)
    _all_are_here()
    seen["checkpoints"], seen["files"] = names(path / CHECKPOINTS), names(path)
    _all_are_here()
    if ranks.is_first():
        damaged = path / CHECKPOINTS / "step-00000003" / "weights-r1.safetensors"
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
    seen |= resumed(path, "sharded")
    model, _ = training("whole", seed=9)
    model.more = nn.Parameter(torch.zeros(2))
    optimizer = make_optimizer(model, TrainRecipe())
    start_moments(optimizer)
    seen["other model"] = _error(lambda: ResumeState.of(path).load(model, optimizer))
    with patch.object(run_folder, "_LOOKS_FOR_TOKEN", 1):
        other = folder if ranks.is_first() else RunFolder.follow(place)
        seen["not shared"] = _error(lambda: files.require_shared(other))
    _all_are_here()
    seen["files at the end"] = names(path)
    folder.close()
    return seen


def room_on(rank: int) -> Any:
    """A disk that is full for all ranks but one."""
    free = SimpleNamespace(free=2**40 if ranks.rank() == rank else 0)
    return patch.object(run_folder.shutil, "disk_usage", lambda _: free)


def resumed(path: Path, kind: str) -> dict[str, Any]:
    """What a run is resumed from."""
    state = ResumeState.of(path)
    model, optimizer = training(kind, seed=9)
    if kind == "sharded":
        model(torch.ones(2, 7))
    loaded = state.load(model, optimizer)
    return {
        "saved": [one.step for one in state.saved],
        "loaded": loaded.step,
        "differing": differing(model, optimizer, loaded.step),
        "damage": [str(error) for error in state.damaged],
    }


def _error(work: Callable[[], object]) -> list[Any]:
    try:
        work()
    except UserError as error:
        return [int(error.exit_code), error.problem]
    return []


def dying(place: Path, kind: str, who: int, call: str) -> str:
    """A rank dies at a call of its save; what the other one raises."""
    parent = place / f"dying-{kind}-{who}-{call}"
    model, optimizer = training(kind, seed=1)
    save(parent, 1, model, optimizer)
    if ranks.rank() == who:
        patch.object(os, call, lambda *_: os._exit(9)).start()
    try:
        save(parent, 2, model, optimizer)
    except Exception as error:
        return type(ranks.explained(error) or error).__name__
    return "saved"


DEATHS = [("whole", 1, "write"), ("sharded", 1, "write"), ("sharded", 1, "fsync"), ("whole", 0, "rename")]


def main(place: Path) -> None:
    """Crew after crew."""
    files._PIECE = PIECE
    seen: dict[str, Any] = {
        "written": {size: crew(size, lambda: writing(place)) for size in SIZES},
        "read": {size: crew(size, lambda: reading(place, SIZES)) for size in SIZES},
        "moved": {size: crew(size, lambda: moving(place)) for size in SIZES},
        "disks": crew(2, lambda: disks(place)),
        "run": crew(2, lambda: a_run(place)),
        "resumed by one": crew(1, lambda: resumed(place / "run", "whole")),
        "deaths": [crew(2, partial(dying, place, *death), timeout=2.0) for death in DEATHS],
    }
    (place / "seen.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
