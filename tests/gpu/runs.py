"""Parts that run the command itself: memory that runs out, the same bits twice and after a kill, the marked tests."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simpo_cli.model.policy import Policy
from tests.gpu.check import Place, need, require

_ROOT = Path(__file__).parents[2]


# Memory that runs out


def out_of_memory(place: Place) -> tuple[str, dict[str, Any]]:
    """A run whose micro-batches do not fit goes on with smaller ones, and comes to the same numbers."""
    need("scipy")
    whole = _train(place, place.folder / "whole")
    with _less_memory(place):
        starved = _train(place, place.folder / "starved")
    notes = [note for note in starved["notes"] if "ran out of memory" in note]
    apart = max(abs(a - b) / abs(a) for a, b in zip(whole["losses"], starved["losses"], strict=True))
    facts = {"notes": notes, "budgets": [whole["budget"], starved["budget"]], "losses_apart": apart}
    facts["stands_for_it"] = None if place.on_cuda else "an allocation that is made to fail above 300 tokens"
    require(bool(notes), "memory did not run out, so nothing was shown", facts)
    require(starved["budget"] < whole["budget"], "the budget is what it was", facts)
    require(apart <= (0.02 if place.on_cuda else 1e-4), f"the losses differ by {apart:.2g} of their size", facts)
    return f"survived with {starved['budget']:,} tokens instead of {whole['budget']:,}; losses to {apart:.1e}", facts


def _train(place: Place, folder: Path) -> dict[str, Any]:
    """A few steps of the demo in this process; its notes, losses and the budget in its receipt."""
    from simpo_cli.recipe import compose
    from simpo_cli.train.run import train
    from tests.train.conftest import Memory

    observer = Memory()
    sizes = _FEW if place.tiny else _WIDE
    composed = compose("demo", [f"output_dir={folder}", "train.max_steps=3", "health.num_answers=0", *sizes])
    train(composed, observer=observer)
    receipt = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {
        "notes": observer.notes,
        "losses": [record.loss for record in observer.steps],
        "budget": receipt["plan"]["tokens_per_microbatch"],
    }


_WIDE = ["train.pairs_per_step=128", "train.tokens_per_microbatch=4096", "data.eval=null", "data.holdout=20"]
_FEW = ["train.pairs_per_step=16", "train.tokens_per_microbatch=1024", "data.eval=null", "data.holdout=8"]


@contextmanager
def _less_memory(place: Place) -> Iterator[None]:
    """A card with hardly any memory left; on a CPU a forward pass that fails above a number of tokens."""
    if place.on_cuda:
        torch.cuda.empty_cache()
        peak = torch.cuda.max_memory_reserved()
        total = torch.cuda.get_device_properties(place.device).total_memory
        torch.cuda.set_per_process_memory_fraction(0.5 * peak / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    forward = Policy.forward

    def fails_above(policy: Policy, packed: Any) -> Any:
        if policy.training and torch.is_grad_enabled() and len(packed.tokens) > 300:
            raise torch.OutOfMemoryError("planted")
        return forward(policy, packed)

    Policy.forward = fails_above  # type: ignore[method-assign]
    try:
        yield
    finally:
        Policy.forward = forward  # type: ignore[method-assign]


# The same bits


def repeat_and_resume(place: Place) -> tuple[str, dict[str, Any]]:
    """The demo twice with `train.deterministic`, and once more killed and resumed: one model, to the bit."""
    need("scipy")
    steps = 4 if place.tiny else 24
    common = [
        "train.deterministic=true",
        f"train.max_steps={steps}",
        "checkpoint.every=2",
        "health.num_answers=0",
        *(["data.eval=null", "data.holdout=8", "train.pairs_per_step=4"] if place.tiny else []),
    ]
    hashes = {}
    for name in ("first", "second"):
        _command(place, name, common)
        hashes[name] = _model_hash(place, name)
    killed_at = _killed(place, "killed", common)
    _command(place, "killed", common, "--resume")
    hashes["killed"] = _model_hash(place, "killed")
    facts = {"hashes": hashes, "steps": steps, "killed_with": killed_at}
    require(len(set(hashes.values())) == 1, f"the models differ: {hashes}", facts)
    return f"{steps} steps: first, second and killed run have one model ({hashes['first'][:12]})", facts


def _started(place: Place, name: str, recipe: list[str], *flags: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path[1:]])}
    if not place.on_cuda:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.Popen(
        [sys.executable, "-m", "simpo_cli", "train", "demo", f"output_dir={place.folder / name}", *recipe, *flags],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _command(place: Place, name: str, recipe: list[str], *flags: str) -> None:
    process = _started(place, name, recipe, *flags)
    output, _ = process.communicate(timeout=180)
    require(process.returncode == 0, f"simpo train ended with {process.returncode}", {"output": output[-3000:]})


def _killed(place: Place, name: str, recipe: list[str]) -> str:
    """Start a run, and kill it when its first checkpoint behind step 0 is there; returns that checkpoint's name."""
    process = _started(place, name, recipe)
    checkpoints = place.folder / name / "checkpoints"
    end = time.monotonic() + 180
    try:
        while time.monotonic() < end and process.poll() is None:
            found = sorted(folder.name for folder in checkpoints.glob("step-*") if folder.name != "step-00000000")
            if found:
                return found[-1]
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
    require(False, "the run ended before it could be killed", {"output": output[-3000:]})
    raise AssertionError


def _model_hash(place: Place, name: str) -> str:
    return hashlib.sha256((place.folder / name / "model" / "model.safetensors").read_bytes()).hexdigest()


# Tests


def cuda_tests(place: Place) -> tuple[str, dict[str, Any]]:
    """The tests that are marked `cuda`; on a CPU they are only collected."""
    for module in ("pytest", "pytest_socket", "hypothesis"):
        need(module)
    only = ["--collect-only"] if place.tiny else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "cuda", *only, "tests/model", "tests/train"],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path[1:]])},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]])[-1]
    facts = {"output": (done.stdout + done.stderr)[-3000:]}
    require(done.returncode == 0, f"pytest -m cuda: {last}", facts)
    return f"pytest -m cuda{' --collect-only' if place.tiny else ''}: {last.strip('= ')}", facts
