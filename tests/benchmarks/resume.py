"""How long a run takes until it goes on: from the command to the first step, at an early step and at late ones.

    python -m tests.benchmarks.resume [--steps 1 1000 20000]

A run of the built-in model is stopped after a step; what it saved is committed again as that of a later one, with as
many lines in its log. Every resume is a process of its own, forked when everything is imported. Prints what was seen on
this machine, and asserts nothing.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simpo_cli.run.checkpoint import CheckpointWriter, commit
from simpo_cli.run.manifest import find_checkpoints

ROUNDS = 5
LOG = "child.log"
RECIPE = """name: run
model: {path: builtin:guide}
data: {train: builtin:guide, holdout: 64, max_length: 256, max_prompt_length: 128}
train: {pairs_per_step: 8, learning_rate: 1e-4, precision: fp32, num_epochs: 1000}
eval: {every: 100000}
checkpoint: {every: 1, keep: 1}
tracking: {log_every: 1}
"""


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 1_000, 20_000])
    options = parser.parse_args()
    import simpo_cli.report.watch
    import simpo_cli.train.session  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="simpo-resume-") as folder:
        os.chdir(folder)
        os.environ["SIMPO_CACHE"] = str(Path(folder, "cache"))
        Path("run.yaml").write_text(RECIPE, encoding="utf-8")
        run = Path("runs/run")
        _to_the_step(2)
        print("median of processor seconds, and of seconds on the clock, from the command to the step that is next")
        for step in options.steps:
            _say_it_is_at(run, step)
            seen = [_to_the_step(1) for _ in range(ROUNDS)]
            parts = {name: statistics.median(one[name] for one in seen) for name in seen[0]}
            print(f"step {step:>7,}  " + "  ".join(f"{name} {value:.2f}" for name, value in parts.items()))


def _say_it_is_at(run: Path, step: int) -> None:
    """Commit the only checkpoint again, as that of another step, with a log as long as that."""
    [[saved], _] = find_checkpoints(run / "checkpoints")
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(rows[0])
    lines = "".join(json.dumps({**first, "step": number}) + "\n" for number in range(1, step + 1))
    (run / "metrics.jsonl").write_text(lines, encoding="utf-8")
    contents = {name: (saved.folder / name).read_bytes() for name in saved.manifest.files}
    progress = json.loads(contents["progress.json"])
    progress["lines"]["metrics.jsonl"] = step
    progress.pop("digests", None)  # of lines that are others now
    contents["progress.json"] = json.dumps(progress).encode()
    shutil.rmtree(saved.folder)

    def write(files: CheckpointWriter) -> None:
        for name, content in contents.items():
            with files.open(name) as file:
                file.write(content)

    commit(run / "checkpoints", step, write, saved.manifest.facts)


def _to_the_step(nth: int) -> dict[str, float]:
    """Go on with the run in a forked process, until it takes its nth step, and return what that took."""
    read, write = os.pipe()
    gc.freeze()  # what the parent made is not the run's to collect: a full collection of it takes a quarter of a second
    pid = os.fork()
    if pid == 0:
        _go_on(nth, write)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        told = stream.read()
    os.waitpid(pid, 0)
    assert told, Path(LOG).read_text(encoding="utf-8")
    return json.loads(told)


def _go_on(nth: int, write: int) -> None:
    from simpo_cli.cli.main import run
    from simpo_cli.train import build, loop, saving

    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target in (1, 2):
        os.dup2(log, target)
    started, cpu = time.perf_counter(), time.process_time()
    reading, steps = 0.0, 0

    def timed(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal reading
            before = time.process_time()
            result = real(*args, **options)
            reading += time.process_time() - before
            return result

        return call

    accumulate = loop.accumulate

    def at_the_step(*args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps < nth:
            return accumulate(*args, **options)
        spent = time.process_time() - cpu
        seen = {"cpu": spent, "of it weights and moments": reading, "clock": time.perf_counter() - started}
        os.write(write, json.dumps(seen).encode())
        os._exit(0)

    for module, name in ((build, "load_start"), (saving, "load_state")):
        setattr(module, name, timed(getattr(module, name)))
    loop.accumulate = at_the_step
    sys.argv = ["simpo", "train", "run.yaml", "--resume"]
    try:
        run(sys.argv[1:])
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
