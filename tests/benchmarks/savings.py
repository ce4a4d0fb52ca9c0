"""What each saving of memory takes and costs: weights, optimizer and layers computed again, one beside the other.

    python -m tests.benchmarks.savings --model FOLDER --data FILE     memory and speed of some steps of a real model
    python -m tests.benchmarks.savings --accuracy                     held-out accuracy of the embedded model

Prints a table as Markdown, and asserts nothing. Memory is that of `memory`: the peak of resident memory over the steps
on top of what was there before the weights, beside what `simpo plan` says. Accuracy is compared with that of full
tuning in float32 on the same held-out pairs, over the same seeds: the difference is that of the mean over seeds, and
its interval is over prompts, so it says nothing of other seeds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from simpo_cli import statistics
from simpo_cli.formatting import points_cell, share_cell
from tests.benchmarks.process import in_own_process, spread

_LORA = ("model.lora.rank=16", "train.learning_rate=3e-3")  # four times the rate of the recipe; not searched for
HELD = {
    "full, float32": (),
    "full, bfloat16": ("model.weights_dtype=bf16",),
    "LoRA": _LORA,
    "LoRA, nf4": (*_LORA, "model.quantization=nf4"),
    "LoRA, int8": (*_LORA, "model.quantization=int8"),
}
"""How weights are held and which are trained, with the overrides for it."""
OPTIMIZERS = ("adamw", "adamw_8bit")
SEEDS = (1, 2, 3)
_ROOT = Path(__file__).parents[2]
RECIPE = """name: savings
model: {{path: {model}}}
data: {{train: {data}, holdout: 8, max_length: 256, max_prompt_length: 128}}
train: {{pairs_per_step: 2, tokens_per_microbatch: 512}}
health: {{num_answers: 0}}
"""


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--at-once", type=int, default=1, help="runs of --accuracy side by side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="simpo-savings-") as folder:
        os.chdir(folder)
        if options.accuracy:
            _print_accuracy(options.at_once)
        else:
            _print_memory(options.model.resolve(), options.data.resolve(), options.steps)


def _print_memory(model: Path, data: Path, steps: int) -> None:
    Path("run.yaml").write_text(RECIPE.format(model=model, data=data), encoding="utf-8")
    Path("run").mkdir()
    print(
        "| weights | optimizer | checkpointing | predicted, GB | measured, GB | over | pairs/s |\n" + "|---" * 7 + "|"
    )
    for name, more in HELD.items():
        for optimizer in OPTIMIZERS:
            for on in (False, True):
                settings = (f"train.optimizer={optimizer}", f"model.gradient_checkpointing={str(on).lower()}")
                task = ("run.yaml", "output_dir=run", *more, *settings, "--steps", str(steps))
                found = in_own_process("memory", *task, PYTHONPATH=str(_ROOT), OMP_NUM_THREADS="2")
                predicted, measured = (found[key] / 1e9 for key in ("predicted", "measured"))
                speed = spread([found["pairs"] / seconds for seconds in found["seconds"]])
                sizes = f"{predicted:.2f} | {measured:.2f} | {predicted / measured:.2f}"
                print(f"| {name} | {optimizer} | {'on' if on else 'off'} | {sizes} | {speed} |", flush=True)


def _print_accuracy(at_once: int) -> None:
    tasks = [(name, optimizer, seed) for seed in SEEDS for name in HELD for optimizer in OPTIMIZERS]
    with ThreadPoolExecutor(at_once) as pool:
        found = dict(zip(tasks, pool.map(_right, tasks), strict=True))
    print(
        "| weights | optimizer | accuracy of each seed | mean | less full, float32, adamw, points |\n"
        + "|---" * 5
        + "|"
    )
    wanted = _over_seeds(found, *next(iter(tasks))[:2])
    for name in HELD:
        for optimizer in OPTIMIZERS:
            each = ", ".join(f"{100 * found[name, optimizer, seed].mean():.1f}" for seed in SEEDS)
            mean = _over_seeds(found, name, optimizer)
            # a prompt a pair
            difference = points_cell(statistics.mean(mean - wanted).as_json())
            shown = share_cell(statistics.mean(mean).as_json())
            print(f"| {name} | {optimizer} | {each} | {shown} | {difference} |", flush=True)


def _over_seeds(found: dict[tuple[str, str, int], Any], name: str, optimizer: str) -> Any:
    return np.mean([found[name, optimizer, seed] for seed in SEEDS], axis=0)


def _right(task: tuple[str, str, int]) -> Any:
    """Of each held-out pair, whether the model of a demo run prefers the chosen response; half of a tie."""
    name, optimizer, seed = task
    run = Path(f"{name}-{optimizer}-{seed}".replace(", ", "-").replace(" ", "-"))
    given = (f"output_dir={run}", f"seed={seed}", f"train.optimizer={optimizer}", "health.num_answers=0", *HELD[name])
    command = [sys.executable, "-m", "simpo_cli", "train", "demo", *given]
    subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}, check=True, capture_output=True
    )
    rows = [json.loads(line) for line in (run / "evals-pairs.jsonl").read_text("utf-8").splitlines()]
    differences = np.array([row["chosen_after"] - row["rejected_after"] for row in rows])
    return np.where(differences == 0, 0.5, differences > 0)


if __name__ == "__main__":
    main()
