"""One process against several on this machine's cores, and what `tests.benchmarks.scaling` says of the same steps.

    python -m tests.benchmarks.scale [--model FOLDER] [--data FILE] [--steps 4] [--rounds 3] [--ranks 1 2 4]

Every set-up runs the same steps of the same recipe by `simpo train`, in turn, round by round; threads are the cores
over the processes. What is in collectives is timed around them, each waited for at once: of the rank that waits least,
because the others wait for their neighbours' products. Prints medians with their range; asserts nothing.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import distributed as dist

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import lengths_of
from simpo_cli.distributed import ranks
from simpo_cli.model.source import find_model
from simpo_cli.recipe.composition import compose
from simpo_cli.train import loop
from simpo_cli.train.session import train
from tests.benchmarks.machine import describe_machine, product_speed, versions
from tests.benchmarks.process import peak_resident_bytes, spread
from tests.benchmarks.scaling import Machine, step
from tests.train.runs import Memory

_COLLECTIVES = ("all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor")
_NEWER = ("all_gather_single", "reduce_scatter_single")  # the names of the last two from torch 2.13 on
_SENT = 16 * 2**20  # numbers of a collective that is timed by itself
_GB = 1e9


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:guide")
    parser.add_argument("--data", default="builtin:guide")
    parser.add_argument("--steps", type=int, default=4, help="of each run; the first warms up")
    parser.add_argument("--pairs", type=int, default=8, help="of a step")
    parser.add_argument("--tokens", type=int, default=1024, help="budget of a micro-batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        what, file = options.one
        seen = _fabric() if what == "fabric" else _train(json.loads(what))
        Path(file).write_text(json.dumps(seen), encoding="utf-8")
        return
    recipe = [
        f"model.path={options.model}",
        f"data.train={options.data}",
        "data.holdout=0",
        "data.max_length=512",
        "data.max_prompt_length=256",
        f"train.max_steps={options.steps}",
        f"train.pairs_per_step={options.pairs}",
        f"train.tokens_per_microbatch={options.tokens}",
        "train.num_epochs=100",
        "train.precision=fp32",
        "checkpoint.keep=1",
        "health.num_answers=0",
        "distributed.timeout=120",
    ]
    set_ups = [(n, s) for n in options.ranks for s in (["none"] if n == 1 else ["ddp", "fsdp2"])]
    seen: dict[tuple[int, str], list[list[dict[str, Any]]]] = {set_up: [] for set_up in set_ups}
    fabric = {n: _together(n, "fabric") for n in options.ranks}
    for _ in range(options.rounds):
        for n, strategy in set_ups:
            with tempfile.TemporaryDirectory(prefix="simpo-scale-") as folder:
                values = [*recipe, f"output_dir={folder}/run", f"distributed.strategy={strategy}"]
                seen[n, strategy].append(_together(n, json.dumps(values)))
            print(f"{n} {strategy}", file=sys.stderr, flush=True)
    print(json.dumps({**describe_machine(), **versions("torch", "transformers")}))
    print("\n".join(_lines(seen, fabric, options)))


def _together(num_ranks: int, what: str) -> list[dict[str, Any]]:
    """What each of so many processes saw, which are the ranks of one run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="simpo-scale-") as folder:
        files = [Path(folder) / f"{rank}.json" for rank in range(num_ranks)]
        shared = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // num_ranks))}
        if num_ranks > 1:
            shared |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.scale", "--one", what, str(file)],
                env={**shared, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {})},
            )
            for rank, file in enumerate(files)
        ]
        codes = [process.wait() for process in running]
        assert not any(codes), codes
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


# One process


def _train(values: list[str]) -> dict[str, Any]:
    """A run, and of each of its steps the seconds, those in collectives, and the lengths of its pairs."""
    steps: list[dict[str, Any]] = []
    record, began = loop._step_record, [0.0]

    def kept(sums: Any, done: int, plan: Any, rate: float, seconds: float, training: Any) -> Any:
        pairs = training.run.data.train.select(plan.pairs_of(done - 1))
        steps.append({"seconds": seconds, "collectives": spent[0] - began[0], "lengths": lengths_of(pairs).tolist()})
        began[0] = spent[0]
        return record(sums, done, plan, rate, seconds, training)

    with _timed_collectives() as spent, patch.object(loop, "_step_record", kept):
        accumulate = loop._accumulate

        def from_here(*args: Any) -> Any:
            began[0] = spent[0]
            return accumulate(*args)

        with patch.object(loop, "_accumulate", from_here):
            train(compose("demo", values), observer=Memory(), quick=True)
    return {"steps": steps, "peak": peak_resident_bytes()}


@contextmanager
def _timed_collectives() -> Iterator[list[float]]:
    """Adds up the seconds that this process is in collectives, in the one number of a list."""
    spent = [0.0]

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            work = collective(*args, **options)
            if work is not None:
                work.wait()
            spent[0] += time.perf_counter() - started
            return work

        return call

    names = [name for name in (*_COLLECTIVES, *_NEWER) if hasattr(dist, name)]
    with patch.multiple(dist, **{name: timed(getattr(dist, name)) for name in names}):
        yield spent


def _fabric() -> dict[str, Any]:
    """How fast this process multiplies and copies, and sends to the others, while they do the same."""
    ranks.join("cpu", 600)
    sent, size = torch.ones(_SENT), ranks.world_size()
    part, whole = sent[: _SENT // size], torch.empty(_SENT // size * size)
    works: dict[str, Callable[[], Any]] = {
        "copy": lambda: whole.copy_(sent[: len(whole)]),
        "all_reduce": lambda: dist.all_reduce(sent),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part.clone(), whole),
        "hop": lambda: dist.all_reduce(torch.ones(1)),
    }
    seen: dict[str, Any] = {"flops": product_speed(torch.device("cpu"), seconds=3.0)}
    for name, work in works.items():
        if name == "copy" or size > 1:
            times = []
            for _ in range(7):
                if size > 1:
                    dist.barrier()
                started = time.perf_counter()
                work()
                times.append(time.perf_counter() - started)
            seen[name] = median(times[2:])
    ranks.leave()
    return seen


# What was seen, and what is said of it


def _machine(fabric: list[dict[str, Any]], strategy: str, share: float) -> Machine:
    """The machine as so many ranks at once found it."""
    n, size = len(fabric), 4.0 * _SENT
    of = {name: median(one[name] for one in fabric) for name in fabric[0]}
    link = hop = 1.0
    if n > 1:
        took = of["all_reduce"] / 2 if strategy == "ddp" else (2 * of["all_gather"] + of["reduce_scatter"]) / 3
        link, hop = (n - 1) * size / n / took, of["hop"] / 2 / (n - 1)
    return Machine(
        flops=of["flops"],
        flops_share=share,
        memory=2 * size / of["copy"],
        memory_bytes=0.0,
        ranks_per_host=n,
        link=link,
        network=link,
        hop=hop,
        compute_bytes=4,
        overlaps=False,
    )


def _lines(
    seen: dict[tuple[int, str], list[list[dict[str, Any]]]], fabric: dict[int, list[dict[str, Any]]], options: Any
) -> list[str]:
    config = find_model(options.model).text_config
    # of one process it is known what share of the products' speed a step reaches; the rest is foretold
    machine = _machine(fabric[1], "none", 1.0)
    alone = [one for run in seen[1, "none"] for one in run[0]["steps"][1:]]
    share = float(
        np.median([_predicted(config, machine, 1, "none", one, options.tokens) / one["seconds"] for one in alone])
    )
    lines = [
        f"{options.model}, {options.pairs} pairs a step, micro-batches of {options.tokens} tokens, float32; "
        f"n = {len(alone)} steps of {options.rounds} runs; share of the products' speed with one process {share:.2f}",
        "| ranks | strategy | seconds a step | times one process | in collectives, % | model, s | model / measured "
        "| peak, GB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = median(one["seconds"] for one in alone)
    for (n, strategy), runs in seen.items():
        steps = [[rank["steps"][i] for rank in run] for run in runs for i in range(1, options.steps)]
        seconds = [max(rank["seconds"] for rank in one) for one in steps]
        within = [100 * min(rank["collectives"] for rank in one) / s for one, s in zip(steps, seconds, strict=True)]
        there = _machine(fabric[n], strategy, share)
        said = [_predicted(config, there, n, strategy, one[0], options.tokens) for one in steps]
        ratios = [p / s for p, s in zip(said, seconds, strict=True)]
        peak = median(max(rank["peak"] for rank in run) / _GB for run in runs)
        lines.append(
            f"| {n} | {strategy} | {spread(seconds)} | {median(seconds) / base:.2f} | {spread(within, 1)} "
            f"| {median(said):.2f} | {spread(ratios)} | {peak:.2f} |"
        )
    for n, of in fabric.items():
        bare = {name: median(one[name] for one in of) for name in of[0]}
        sent = {name: round(4 * _SENT / _GB / took, 2) for name, took in bare.items() if name not in ("flops", "hop")}
        hop = f"; {bare['hop'] * 1e6:.0f} us for one number" if n > 1 else ""
        lines.append(f"{n} at once: {bare['flops'] / _GB:.0f} GFLOP/s each; GB/s {sent}{hop}")
    return lines


def _predicted(config: Any, machine: Machine, n: int, strategy: str, one: dict[str, Any], budget: int) -> float:
    ids = np.zeros(4096, dtype=np.int32)
    pairs = [EncodedPair(ids[:p], ids[:c], ids[:r], prompt_key="", where="") for p, c, r in one["lengths"]]
    return step(config, machine, n, strategy, pairs, budget).high


if __name__ == "__main__":
    main()
