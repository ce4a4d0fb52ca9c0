"""What a training step really takes of a machine's memory beside what is predicted, alone and on two ranks.

    python -m tests.benchmarks.memory [--layers 8] [--steps 2]

The model has the shapes of SmolLM2-135M with fewer layers, and random weights. Each setting is a process of its own, or
two: its resident memory before the weights are read is taken off the peak of its steps. Prints a table, and asserts
nothing: what an allocator keeps is a fact about a machine. Tensors are counted in tests/model/test_memory.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from simpo_cli.model.allocator import begin_without_cache
from tests.benchmarks.process import peak_resident_bytes

SETTINGS = {
    "full": (1, ()),
    "full, checkpointed": (1, ("model.gradient_checkpointing=true",)),
    "LoRA": (1, ("model.lora={}",)),
    "full, ddp on 2": (2, ("distributed.strategy=ddp",)),
    "full, fsdp2 on 2": (2, ("distributed.strategy=fsdp2",)),
    "full, checkpointed, fsdp2 on 2": (2, ("distributed.strategy=fsdp2", "model.gradient_checkpointing=true")),
    "LoRA, fsdp2 on 2": (2, ("distributed.strategy=fsdp2", "model.lora={}")),
}
RECIPE = """name: memory
model: {path: model, gradient_checkpointing: false}
data: {train: builtin:guide, holdout: 8, max_length: 512, max_prompt_length: 384}
train: {pairs_per_step: 16, tokens_per_microbatch: 1024, precision: fp32}
health: {num_answers: 0}
"""


def main() -> None:
    """Read the command line, measure, print."""
    begin_without_cache()  # as the command does
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--one", nargs="*")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(_one_rank(options.one, options.steps)))
        return
    with tempfile.TemporaryDirectory(prefix="simpo-memory-") as folder:
        _write_model(Path(folder, "model"), options.layers)
        Path(folder, "run.yaml").write_text(RECIPE, encoding="utf-8")
        Path(folder, "run").mkdir()
        print("| setting | predicted, GB | measured, GB | predicted over measured |\n|---|---|---|---|")
        for name, (ranks, more) in SETTINGS.items():
            command = [sys.executable, "-m", "tests.benchmarks.memory", "--steps", str(options.steps), "--one"]
            found = _on_ranks([*command, "run.yaml", "output_dir=run", *more], ranks, folder)
            predicted, measured = found[0]["predicted"], max(each["measured"] for each in found)
            print(f"| {name} | {predicted / 1e9:.2f} | {measured / 1e9:.2f} | {predicted / measured:.2f} |", flush=True)


def _write_model(folder: Path, layers: int) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.model.shapes import SMOLLM2_135M
    from tests.tiny import chatml_tokenizer

    config = AutoConfig.for_model(**SMOLLM2_135M | {"num_hidden_layers": layers})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    chatml_tokenizer(folder)


def _on_ranks(command: list[str], ranks: int, folder: str) -> list[dict[str, Any]]:
    """What each of so many processes of a command answers, in a folder."""
    root = Path(__file__).parents[2]
    place = {"PYTHONPATH": str(root), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613"}
    started = [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]
    return [json.loads(process.communicate()[0]) for process in started]


def _one_rank(arguments: list[str], steps: int) -> dict[str, Any]:
    """Predicted bytes of a step, the most that so many took beside what was there before the weights, and seconds."""
    import torch

    from simpo_cli.distributed import ranks
    from simpo_cli.model.moments import torchao_moment
    from simpo_cli.model.quantised import import_before_peft
    from simpo_cli.recipe.composition import compose
    from simpo_cli.run.stop import StopRequest
    from simpo_cli.train.build import build
    from simpo_cli.train.forecast import Survey
    from simpo_cli.train.loop import _accumulate
    from simpo_cli.train.run_plan import prepare
    from simpo_cli.train.saving import ResumeState
    from tests.train.runs import Memory

    composed = compose(arguments[0], arguments[1:])
    ranks.join("cpu", 600, alone=composed.recipe.distributed.strategy == "fsdp2")
    run = prepare(composed.recipe)
    work = Survey.of(run).workload(run.accelerator.device, run.compute, 0)
    work = replace(work, strategy=run.strategy, ranks=ranks.world_size())
    predicted = work.training(checkpointing=run.checkpointing).total(run.budget)
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)
    import_before_peft()  # code is no part of what is predicted
    import peft  # noqa: F401

    if composed.recipe.train.optimizer != "adamw":
        torchao_moment()
    before = psutil.Process().memory_info().rss
    with StopRequest() as stop:
        training, _, _ = build(run, Memory(), stop, ResumeState(), [])
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
        training.policy.train()
        seconds = []
        for step in range(steps):
            started = time.perf_counter()
            pairs = [run.data.train[i] for i in run.plan.pairs_of(step)]
            _accumulate(training, pairs, step)
            training.optimizer.step()
            training.optimizer.zero_grad()
            seconds.append(time.perf_counter() - started)
    measured = peak_resident_bytes() - before
    return {"predicted": predicted, "measured": measured, "seconds": seconds, "pairs": run.plan.pairs_per_step}


if __name__ == "__main__":
    main()
