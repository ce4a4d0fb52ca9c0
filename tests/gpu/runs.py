"""Parts that run the command itself: memory that runs out, the same bits twice and after a kill, one rank under FSDP2,
and the marked tests.
"""

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from simpo_cli.builtin import guide_model_dir
from simpo_cli.cli.options import quiet_libraries
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.composition import compose
from tests.gpu import models
from tests.gpu.check import Place, need, require

_ROOT = Path(__file__).parents[2]
_MARK = "pytest.mark.cuda"
_MOST_SECONDS = 180.0


# Memory that runs out


def out_of_memory(place: Place) -> tuple[str, dict[str, Any]]:
    """A run whose micro-batches do not fit goes on with smaller ones, and comes to the same numbers."""
    need("scipy")
    quiet_libraries()
    whole = _train(place, place.folder / "whole")
    with _less_memory(place):
        starved = _train(place, place.folder / "starved")
    notes = [note for note in starved["notes"] if "ran out of memory" in note]
    apart = max(abs(a - b) / abs(a) for a, b in zip(whole["losses"], starved["losses"], strict=True))
    facts = {"notes": notes, "budgets": [whole["budget"], starved["budget"]], "losses_apart": apart}
    facts["stands_for_it"] = None if place.on_cuda else "an allocation that is made to fail above 300 tokens"
    require(bool(notes), "memory did not run out, so nothing was shown", facts)
    require(starved["budget"] < whole["budget"], "the budget is what it was", facts)
    require(apart <= (1e-3 if place.on_cuda else 1e-4), f"the losses differ by {apart:.2g} of their size", facts)
    return f"survived with {starved['budget']:,} tokens instead of {whole['budget']:,}; losses to {apart:.1e}", facts


def _train(place: Place, folder: Path, *more: str) -> dict[str, Any]:
    """A few steps of the demo in this process; its notes, losses and the budget in its receipt."""
    from simpo_cli.train.session import train
    from tests.train.runs import Memory

    observer = Memory()
    sizes = _FEW if place.tiny else _WIDE
    train(compose("demo", [f"output_dir={folder}", "train.max_steps=3", *_UNWATCHED, *sizes, *more]), observer=observer)
    receipt = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {
        "notes": observer.notes,
        "losses": [record.loss for record in observer.steps],
        "budget": receipt["plan"]["tokens_per_microbatch"],
        "memory": receipt["plan"]["memory"],
        "peak": max(record.memory_gb for record in observer.steps) * 1e9,
    }


_UNWATCHED = ["health.num_answers=0", "data.eval=null"]
_WIDE = ["train.pairs_per_step=384", "train.tokens_per_microbatch=16384", "data.holdout=20"]
_FEW = ["train.pairs_per_step=16", "train.tokens_per_microbatch=1024", "data.holdout=8"]


@contextmanager
def _less_memory(place: Place) -> Iterator[None]:
    """A card with hardly any memory left; on a CPU a forward pass that fails above a number of tokens."""
    if place.on_cuda:
        peak = torch.cuda.max_memory_allocated()
        place.release()  # what torch keeps counts towards the limit
        total = torch.cuda.get_device_properties(place.device).total_memory
        torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
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


def measured_microbatch(place: Place) -> tuple[str, dict[str, Any]]:
    """What a run measures before step 1 against the peak of its steps, and again with activations on the host."""
    need("scipy")
    quiet_libraries()
    runs = {}
    for offload in (False, True) if place.on_cuda else (False,):  # a CPU refuses to move what is there already
        place.release()
        more = [f"model.activation_offload={str(offload).lower()}"]
        runs[offload] = _train(place, place.folder / f"measured-{offload}", *more)
    ours = runs[False]
    measured, peak = ours["memory"]["measured_bytes"], ours["peak"]
    facts = {"memory": ours["memory"], "peak_bytes": peak}
    if not place.on_cuda:
        return f"measured {measured / 1e6:.1f} MB; on a CPU nobody counts the peak", facts
    facts["offloaded_bytes"] = runs[True]["peak"]
    require(peak <= 1.05 * measured, f"a step took {peak / 1e9:.2f} GB, and {measured / 1e9:.2f} were measured", facts)
    require(runs[True]["losses"] == ours["losses"], "activations on the host changed a loss", facts)
    require(runs[True]["peak"] < peak, "activations on the host saved nothing", facts)
    return (
        f"measured {measured / 1e9:.2f} GB, peak of the steps {peak / 1e9:.2f}; with activations on the host "
        f"{runs[True]['peak'] / 1e9:.2f}, the same losses",
        facts,
    )


# The same bits


def repeat_and_resume(place: Place) -> tuple[str, dict[str, Any]]:
    """The demo twice with `train.deterministic`, and once more killed and resumed: the same bits.

    The three run side by side. They find TF32 switched on by the environment, as container images have it, and their
    self-check has to pass all the same.
    """
    need("scipy")
    steps, every = (12, 3) if place.tiny else (40, 10)
    recipe = ["train.deterministic=true", f"train.max_steps={steps}", f"checkpoint.every={every}", *_UNWATCHED]
    recipe += ["data.holdout=8", "train.pairs_per_step=4"] if place.tiny else ["train.precision=bf16"]
    runs = {name: _Command(place, name, recipe) for name in ("first", "second", "killed")}
    try:
        killed_at = runs["killed"].kill_behind_a_checkpoint()
        runs["killed"] = _Command(place, "killed", recipe, "--resume")
        for run in runs.values():
            run.finish()
    finally:
        for run in runs.values():
            run.end()
    hashes = {name: _hashes(place.folder / name) for name in runs}
    receipts = {name: json.loads((place.folder / name / "run.json").read_text(encoding="utf-8")) for name in runs}
    packings = {name: receipt["self_check"]["packing"] for name, receipt in receipts.items()}
    facts = {"hashes": hashes, "steps": steps, "killed_behind": killed_at, "packings": packings}
    for name in ("second", "killed"):
        differ = [file for file, digest in hashes["first"].items() if hashes[name].get(file) != digest]
        require(not differ, f"first and {name} run differ in {', '.join(differ)}", facts)
    require(set(packings.values()) == {"shared_prefix"}, f"prompts are not shared under TF32: {packings}", facts)
    told = ", ".join(f"{file} {digest[:8]}" for file, digest in hashes["first"].items())
    return f"{steps} steps; first, second and killed run (behind {killed_at}) have the same bits: {told}", facts


class _Command:
    """`simpo train demo` in a process, its output in a file."""

    def __init__(self, place: Place, name: str, recipe: list[str], *flags: str) -> None:
        self._folder = place.folder / name
        self._output = (place.folder / f"{name}{''.join(flags)}.txt").open("w+", encoding="utf-8")
        environment = {**_environment(), "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
        if not place.on_cuda:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simpo_cli", "train", "demo", f"output_dir={self._folder}", *recipe, *flags],
            cwd=_ROOT,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def kill_behind_a_checkpoint(self) -> str:
        """Kill the run when its first checkpoint behind step 0 is there; that checkpoint's name."""
        end = time.monotonic() + _MOST_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            found = sorted(folder.name for folder in (self._folder / "checkpoints").glob("step-*"))
            if len(found) > 1:
                self.end()
                return found[-1]
            time.sleep(0.02)
        self.end()
        require(False, "the run ended before it could be killed", {"output": self._told()})
        raise AssertionError

    def finish(self) -> None:
        code = self._process.wait(timeout=_MOST_SECONDS)
        require(code == 0, f"simpo train ended with {code}", {"output": self._told()})

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _told(self) -> str:
        self._output.seek(0)
        return self._output.read()[-3000:]


def _hashes(run: Path) -> dict[str, str]:
    """Of the model, and of weights and moments after the last step, which are in float32."""
    last = max((run / "checkpoints").glob("step-*"))
    files = [run / "model" / "model.safetensors", *sorted(last.glob("*.safetensors"))]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, sys.path)])}


# One rank under FSDP2


def one_rank_fsdp2(place: Place) -> tuple[str, dict[str, Any]]:
    """Steps by `none` and by `fsdp2` with one rank: the same losses, and what FSDP2 costs where it saves nothing."""
    need("scipy")
    shape = models.tiny() if place.tiny else models.smollm2_135m()
    model = _folder_of(shape, place.folder / "135M")
    steps, skipped = (6, 2) if place.tiny else (24, 4)
    recipe = [f"model.path={model}", f"train.max_steps={steps}", "distributed.num_processes=1", *_UNWATCHED]
    recipe += ["train.pairs_per_step=8"] if place.tiny else ["train.precision=bf16", "train.pairs_per_step=128"]
    records = {}
    for strategy in ("none", "fsdp2"):
        run = _Command(place, strategy, [*recipe, f"distributed.strategy={strategy}"])
        try:
            run.finish()
        finally:
            run.end()
        lines = (place.folder / strategy / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        records[strategy] = [json.loads(line) for line in lines]
    none, sharded = records.values()
    apart = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(none, sharded, strict=True))
    seconds = {name: statistics.median(row["seconds"] for row in rows[skipped:]) for name, rows in records.items()}
    memory = {name: max(row["memory_gb"] for row in rows) for name, rows in records.items()}
    facts = {"steps": steps, "median_seconds": seconds, "memory_gb": memory, "losses_apart": apart}
    require(len(none) == steps, f"{len(none)} steps were logged", facts)
    require(apart <= (1e-3 if place.on_cuda else 1e-5), f"the losses differ by {apart:.2g} of their size", facts)
    told = ", ".join(f"{way} {seconds[way]:.3g} s and {memory[way]:.3g} GB" for way in records)
    name = "a tiny model" if place.tiny else "135M"
    return f"a step of {name}: {told} (medians of {steps - skipped} steps); losses to {apart:.1e}", facts


def _folder_of(shape: Any, folder: Path) -> Path:
    """A model of a shape with random weights and the tokenizer of builtin:guide, as a folder."""
    shutil.copytree(guide_model_dir(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokens = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape.update({name: tokens[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(folder)
    return folder


# Tests


def cuda_tests(place: Place) -> tuple[str, dict[str, Any]]:
    """The tests that are marked `cuda`; on a CPU they are only collected."""
    for module in ("pytest", "pytest_socket", "hypothesis"):
        need(module)
    files = sorted(str(file) for file in (_ROOT / "tests").rglob("test_*.py") if _MARK in file.read_text("utf-8"))
    only = ["--collect-only"] if place.tiny else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *only, *files],
        cwd=_ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=_MOST_SECONDS,
        check=False,
    )
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]])[-1]
    facts = {"files": len(files), "output": (done.stdout + done.stderr)[-3000:]}
    require(done.returncode == 0, f"pytest -m cuda: {last}", facts)
    return f"pytest -m cuda{' --collect-only' if place.tiny else ''}: {last.strip('= ')}", facts
