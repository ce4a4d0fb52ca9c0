"""Our training step against TRL's CPO trainer: same model, same pairs, in turn, in one call.

    python -m tests.benchmarks.versus --model FOLDER --peer .venv-peer/bin/python [--full]

What both sides have in common: the weights (float32), the pairs and their order, pairs a step, the loss, a clip at 1.0,
fused AdamW, threads, no checkpointing of activations, no logging, no saving. Each side is a fresh process that lives
through all rounds of a data set and works only in its turn. Before anything is timed it is checked that both score the
same tokens and find the same loss. Results go to docs/benchmarks.json; `page` makes tables and plot of it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from transformers import AutoConfig

from tests.benchmarks.flops import Shape, needed_flops, padded_flops, shape_of
from tests.benchmarks.page import write_page
from tests.benchmarks.predict import SIZES, MemoryModel, choose_sizes, fit_memory
from tests.benchmarks.sample import (
    DATA_SETS,
    MAX_LENGTH,
    MAX_PROMPT_LENGTH,
    WARM_UP_CHOICE,
    DataSet,
    TooFewError,
    by_hash,
    made_up_pair,
    read_pairs,
    steps_from,
)
from tests.benchmarks.turns import ChildSide, StoppedError, take_turns
from tests.benchmarks.work import Precision, Work, WorkPair

SEED = 20240523
MOST_DIFFERENCE = 1e-4  # relative, of loss and mean log-probs in the first step
COMPARED = 4  # the peer's micro-batch that must fit: longer pairs are left out
PROBED = (192, 384, 576)
GROWTH_REPEATS = 3
GROWTH = {  # (pairs, prompt tokens, response tokens) of made-up steps
    "response": [(1, 128, length) for length in (64, 128, 256, 512)],
    "prompt": [(1, length, 128) for length in (64, 128, 256, 512)],
    "pairs": [(count, 64, 64) for count in (1, 2, 4, 8, 16)],
}


class DisagreementError(RuntimeError):
    """The two sides do not compute the same thing, so their times do not compare."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Who takes part, and how it is set."""

    who: Literal["ours", "peer"]
    microbatch: int = 0  # the peer's, in pairs
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        return f"{self.who}{self.microbatch or ''}-{self.precision}"


@dataclass(frozen=True, slots=True)
class Bench:
    """What a call was asked for.

    Attributes:
        model: folder.
        peer: the Python of the peer's environment.
        threads: of both sides.
        rounds: measured steps of each side on each data set.
        memory: most bytes that a process of the peer may be predicted to take.
        scratch: folder for the files that the sides read.
    """

    model: str
    peer: str
    threads: int
    rounds: int
    memory: float
    scratch: Path

    def start(self, entry: Entry, work: Work) -> ChildSide:
        """A fresh process of one side; it has loaded the model and waits."""
        work = replace(work, microbatch=entry.microbatch or 1, precision=entry.precision, threads=self.threads)
        file = work.save(self.scratch / f"{entry.name}.json")
        python, program = (sys.executable, "our_side") if entry.who == "ours" else (self.peer, "peer_side")
        environment = {
            "OMP_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        return ChildSide(entry.name, [python, "-m", f"tests.benchmarks.{program}", str(file)], environment)


def probe_peer(bench: Bench, shape: Shape) -> MemoryModel:
    """How the peer's memory grows with a batch, from three small ones in a fresh process.

    As in real steps, the wide micro-batch comes when there are gradients already, and its rows differ in length: a
    batch without padding needs no mask, and takes attention's leaner path.
    """
    pairs = []
    for width in (64, *PROBED):
        wide = made_up_pair(width // 3, width - width // 3, shape.vocabulary)
        pairs += [made_up_pair(8, 8, shape.vocabulary), replace(wide, rejected=wide.rejected[: width // 3])]
    peaks = {}
    with ExitStack() as stack:
        peer = bench.start(Entry("peer", 1), Work(model=bench.model, pairs=pairs, pairs_per_step=2))
        stack.callback(peer.close)
        peer.ask(do="step")  # makes the optimizer's state
        for width in PROBED:
            peaks[width] = int(peer.ask(do="step")["peak_bytes"])
    return fit_memory(peaks, rows=2)


def require_same_tokens(work: Work, scored: Sequence[dict[str, list[int]]], name: str) -> None:
    """Stop unless a side scores exactly the tokens of the work, behind the same prompts.

    Raises:
        DisagreementError: names the first pair.
    """
    if len(scored) != len(work.pairs):
        raise DisagreementError(f"{name} has {len(scored)} pairs instead of {len(work.pairs)}")
    for number, (pair, ids) in enumerate(zip(work.pairs, scored, strict=True)):
        wanted = {"chosen": pair.chosen, "rejected": pair.rejected}
        if ids != {**wanted, "chosen_prompt": pair.prompt, "rejected_prompt": pair.prompt}:
            raise DisagreementError(f"{name} scores other tokens in pair {number}: no comparison is made")


def largest_difference(answers: dict[str, list[dict[str, Any]]], step: int) -> float:
    """The largest relative difference of loss and mean log-probs between the first side and the others, in one step."""
    first, *others = (rows[step] for rows in answers.values())
    keys = ("loss", "logps_chosen", "logps_rejected")
    return max((abs(row[key] / first[key] - 1) for row in others for key in keys), default=0.0)


def run_session(
    bench: Bench, shape: Shape, entries: Sequence[Entry], pairs: list[WorkPair], pairs_per_step: int, rate: float = 1e-6
) -> dict[str, Any]:
    """Some sides on the steps of one data set, in turn.

    Args:
        shape: of the model, for the counts.
        entries: who takes part; the first is what the others are compared with.
        pairs: of the warm-up step and of all measured steps.
        pairs_per_step: pairs of one step.
        rate: learning rate.

    Raises:
        DisagreementError: tokens, or in float32 losses of the first step, differ.
    """
    work = Work(
        model=bench.model, pairs=pairs, pairs_per_step=pairs_per_step, learning_rate=rate, max_length=MAX_LENGTH
    )
    rounds = work.num_steps - 1
    with ExitStack() as stack:
        sides = []
        for entry in entries:
            side = bench.start(entry, work)
            stack.callback(side.close)
            sides.append(side)
            if "scored" in side.ready:
                require_same_tokens(work, side.ready["scored"], entry.name)
        warm_up = take_turns(sides, 1, do="step")
        difference = largest_difference(warm_up, 0)
        if difference > MOST_DIFFERENCE and all(entry.precision == "fp32" for entry in entries):
            found = {name: {key: rows[0][key] for key in ("loss", "logps_chosen")} for name, rows in warm_up.items()}
            raise DisagreementError(f"the sides differ by {difference:.1e} in the first step: {found}")
        ours = next(side for side, entry in zip(sides, entries, strict=True) if entry.who == "ours")
        speeds: dict[str, list[float]] = {entry.precision: [] for entry in entries}
        answers: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        for number in range(rounds):
            for name, rows in take_turns(sides, 1, do="step").items():
                answers[name] += rows
            for precision, seen in speeds.items():
                seen.append(ours.ask(do="products", precision=precision)["flops_per_second"])
            _say(
                f"  round {number + 1}: " + ", ".join(f"{n} {rows[-1]['seconds']:.1f} s" for n, rows in answers.items())
            )
    measured = pairs[pairs_per_step:]
    return {
        "pairs_per_step": pairs_per_step,
        "rounds": rounds,
        "mean_tokens": {
            part: sum(len(getattr(pair, part)) for pair in measured) / len(measured)
            for part in ("prompt", "chosen", "rejected")
        },
        "same_tokens": len(work.pairs),
        "first_step_difference": difference,
        "later_differences": [largest_difference(answers, step) for step in range(rounds)],
        "product_speeds": speeds,
        "needed_flops": [sum(needed(shape, pair) for pair in work.step(number + 1)) for number in range(rounds)],
        "machine": ours.ready["machine"],
        "sides": [
            {
                "name": entry.name,
                "who": entry.who,
                "microbatch": entry.microbatch,
                "precision": entry.precision,
                "num_parameters": side.ready["num_parameters"],
                "libraries_bytes": side.ready["libraries_bytes"],
                "peak_bytes": answers[entry.name][-1]["peak_bytes"],
                "state_bytes": 16 * side.ready["num_parameters"],
                "given_as_ids": side.ready.get("given_as_ids", 0),
                "counted_flops": [counted(entry, shape, work.step(number + 1)) for number in range(rounds)],
                "versions": side.ready["versions"],
                "warm_up": warm_up[entry.name][0],
                "steps": answers[entry.name],
            }
            for entry, side in zip(entries, sides, strict=True)
        ],
    }


def needed(shape: Shape, pair: WorkPair) -> int:
    """Operations that the method needs for a pair."""
    return needed_flops(shape, len(pair.prompt), len(pair.chosen), len(pair.rejected))


def padded(shape: Shape, pairs: Sequence[WorkPair], microbatch: int) -> int:
    """Operations that padded micro-batches of consecutive pairs take."""
    groups = [pairs[start : start + microbatch] for start in range(0, len(pairs), microbatch)]
    return sum(padded_flops(shape, 2 * len(group), max(pair.row for pair in group)) for group in groups)


@dataclass(slots=True)
class Speeds:
    """Operations a second, of the counted kind, that each side is thought to reach; brought up to date as it runs."""

    by_entry: dict[str, float]

    def seconds(self, entry: Entry, shape: Shape, pairs: Sequence[WorkPair]) -> float:
        """Predicted time of a step."""
        return counted(entry, shape, pairs) / self.by_entry[entry.name]

    def learn(self, entries: Sequence[Entry], shape: Shape, pairs: Sequence[WorkPair], session: dict[str, Any]) -> None:
        """Take over what a session has shown."""
        measured = pairs[session["pairs_per_step"] :]
        for entry, side in zip(entries, session["sides"], strict=True):
            seconds = sum(row["seconds"] for row in side["steps"])
            self.by_entry[entry.name] = counted(entry, shape, measured) / seconds


def counted(entry: Entry, shape: Shape, pairs: Sequence[WorkPair]) -> int:
    """Operations of a step: what the method needs for our side, what padding makes of it for the peer."""
    if entry.who == "ours":
        return sum(needed(shape, pair) for pair in pairs)
    return padded(shape, pairs, entry.microbatch)


@dataclass(frozen=True, slots=True)
class Source:
    """The pairs of one data set that take part.

    Attributes:
        every: all pairs with signal, in the order of the sample.
        longest: the longest row that the peer's memory allows at the micro-batch that is compared.
    """

    data: DataSet
    every: list[WorkPair]
    longest: int

    @property
    def pairs(self) -> list[WorkPair]:
        """Those that both sides can take."""
        return [pair for pair in self.every if pair.row <= self.longest]

    def result(self, session: dict[str, Any], taken: Sequence[WorkPair], suffix: str = "") -> dict[str, Any]:
        """A session under the name of the data set, with the account of its pairs."""
        return {
            "key": self.data.key,
            "title": self.data.title + suffix,
            "pairs_in_file": len(self.every),
            "too_long": len(self.every) - len(taken),
            **session,
        }


def prepare(data: DataSet, folder: Path, model: str, longest: int) -> Source:
    """Read a data set and put it in the order of the sample."""
    return Source(data, by_hash(read_pairs(folder / data.file, model), SEED), longest)


def versus(
    bench: Bench,
    shape: Shape,
    sources: Sequence[Source],
    memory: MemoryModel,
    speeds: "Speeds",
    save: Callable[[dict[str, Any]], None],
    *,
    end: float,
    size: int | None,
    full: bool,
) -> None:
    """All data sets, one after the other, within the time if there is a limit (`make bench`).

    Args:
        speeds: what is known of the sides; more is known afterwards.
        save: called with each data set's result.
        end: the moment of the monotonic clock at which all of it shall be done.
        size: pairs of a step, if it is not left to the time there is.
        full: micro-batches of 16 where they fit, and pairs of all lengths.
    """
    usual = [Entry("ours"), Entry("peer", 1), Entry("peer", COMPARED)]
    for number, source in enumerate(sources):
        costs = {
            left.data.key: [_predicted(bench, speeds, shape, usual, left, size) for size in SIZES]
            for left in sources[number:]
        }
        pairs_per_step = size or choose_sizes(costs, end - time.monotonic())[source.data.key]
        pairs = steps_from(source.pairs, pairs_per_step, bench.rounds)
        entries, not_run = list(usual), []
        need = _peak_at(memory, pairs, 16)
        if full and need <= bench.memory and pairs_per_step % 16 == 0:
            entries.append(Entry("peer", 16))
        else:
            not_run.append({"microbatch": 16, "predicted_bytes": need, "fits": need <= bench.memory})
        predicted = sum(speeds.seconds(entry, shape, pairs) for entry in entries)
        _say(
            f"{source.data.title}: {bench.rounds} rounds of {pairs_per_step} pairs, about {predicted / 60:.1f} minutes"
        )
        session = run_session(bench, shape, entries, pairs, pairs_per_step)
        speeds.learn(entries, shape, pairs, session)
        peaks = {entry.name: _peak_at(memory, pairs, entry.microbatch) for entry in entries if entry.who == "peer"}
        save(source.result({**session, "not_run": not_run, "predicted_peaks": peaks}, source.pairs))
        if full and len(source.pairs) < len(source.every):
            save(all_lengths(bench, shape, source, memory, pairs_per_step))


def all_lengths(bench: Bench, shape: Shape, source: Source, memory: MemoryModel, pairs_per_step: int) -> dict[str, Any]:
    """A data set with its longest pairs too, against the peer at micro-batch 1, which has room for them."""
    pairs = steps_from(source.every, pairs_per_step, bench.rounds)
    peer = Entry("peer", 1)
    not_run = [
        {"microbatch": microbatch, "predicted_bytes": _peak_at(memory, pairs, microbatch), "fits": False}
        for microbatch in (COMPARED, 16)
    ]
    _say(f"{source.data.title}, all lengths: {bench.rounds} rounds of {pairs_per_step} pairs")
    session = run_session(bench, shape, [Entry("ours"), peer], pairs, pairs_per_step)
    peaks = {peer.name: _peak_at(memory, pairs, 1)}
    return source.result({**session, "not_run": not_run, "predicted_peaks": peaks}, source.every, ", all lengths")


def _predicted(
    bench: Bench, speeds: Speeds, shape: Shape, entries: Sequence[Entry], source: Source, pairs_per_step: int
) -> float:
    """Seconds of a whole data set at so many pairs a step; without end when it has too few pairs for them."""
    try:
        pairs = steps_from(source.pairs, pairs_per_step, bench.rounds)
    except TooFewError:
        return float("inf")
    loading = 10 * len(entries)
    return loading + sum(speeds.seconds(entry, shape, pairs) for entry in entries)


def _peak_at(memory: MemoryModel, pairs: Sequence[WorkPair], microbatch: int) -> float:
    """Predicted peak bytes of the worst micro-batch of consecutive pairs."""
    groups = [pairs[start : start + microbatch] for start in range(0, len(pairs), microbatch)]
    return max(memory.peak(2 * len(group), max(pair.row for pair in group)) for group in groups)


def first_speeds(bench: Bench) -> Speeds:
    """What each side may reach on this machine, from the speed of its products alone."""
    with ExitStack() as stack:
        ours = bench.start(Entry("ours"), Work(model=bench.model, pairs=[], pairs_per_step=1))
        stack.callback(ours.close)
        speed = float(ours.ask(do="products", precision="fp32")["flops_per_second"])
    peers = [Entry("peer", microbatch) for microbatch in (1, COMPARED, 16)]
    return Speeds({Entry("ours").name: 0.6 * speed, **{entry.name: 0.5 * speed for entry in peers}})


def alone_seconds(bench: Bench, shape: Shape, source: Source, speeds: Speeds) -> float:
    """Predicted time of `measure_alone`."""
    points = [point for points in GROWTH.values() for point in points]
    flops = sum(needed(shape, pair) for pair in steps_from(source.pairs, 16, bench.rounds))
    flops += GROWTH_REPEATS * sum(count * needed_flops(shape, prompt, each, each) for count, prompt, each in points)
    return 20 + flops / speeds.by_entry[Entry("ours").name]


def measure_alone(bench: Bench, shape: Shape, source: Source, *, rounds: int) -> dict[str, Any]:
    """Our side by itself: steps of 16 real pairs, and how time grows with made-up ones.

    Args:
        rounds: measured steps of real pairs; 0 where such steps have been measured already.
    """
    pairs = steps_from(source.pairs, 16, rounds)
    work = Work(model=bench.model, pairs=pairs, pairs_per_step=16)
    with ExitStack() as stack:
        ours = bench.start(Entry("ours"), work)
        stack.callback(ours.close)
        speeds, steps = [], []
        for _ in range(work.num_steps):
            steps.append(ours.ask(do="step"))
            speeds.append(ours.ask(do="products", precision="fp32")["flops_per_second"])
        growth: dict[str, list[dict[str, Any]]] = {
            what: [{"pairs": n, "prompt": prompt, "response": response, "steps": []} for n, prompt, response in points]
            for what, points in GROWTH.items()
        }
        for repeat in range(GROWTH_REPEATS):
            for point in (point for points in growth.values() for point in points):
                made_up = [
                    made_up_pair(point["prompt"], point["response"], shape.vocabulary, seed=repeat * 100 + i)
                    for i in range(point["pairs"])
                ]
                point["needed_flops"] = sum(needed(shape, pair) for pair in made_up)
                point["steps"].append(ours.ask(do="pairs", pairs=[_as_message(pair) for pair in made_up]))
    return {
        "key": source.data.key,
        "title": source.data.title,
        "pairs_per_step": 16,
        "steps": steps[1:],
        "product_speeds": speeds,
        "needed_flops": [sum(needed(shape, pair) for pair in work.step(number)) for number in range(1, work.num_steps)],
        "growth": growth,
    }


def _as_message(pair: WorkPair) -> dict[str, list[int]]:
    return {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def main() -> None:
    """Read the command line, measure, save, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--peer", required=True, help="the Python of the environment that has TRL")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--sets", default=",".join(data.key for data in DATA_SETS), help="which data sets")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each side on each data set")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pairs", type=int, choices=SIZES, help="pairs a step; else as many as the time allows")
    parser.add_argument("--minutes", type=float, default=38.0, help="for everything")
    parser.add_argument(
        "--memory-gb", type=float, default=_memory_gb(), help="most that a process of the peer may be predicted to need"
    )
    parser.add_argument("--longest", type=int, default=MAX_LENGTH, help="leave out pairs with longer rows")
    parser.add_argument(
        "--full", action="store_true", help="16 pairs a step, all lengths and bf16 too, no limit of time"
    )
    parser.add_argument("--no-growth", action="store_true", help="leave out how time grows")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the results")
    options = parser.parse_args()
    started = time.monotonic()
    chosen = [data for data in DATA_SETS if data.key in options.sets.split(",")]
    missing = [str(path) for path in (Path(options.model) / "config.json", Path(options.peer)) if not path.exists()]
    missing += [data.file for data in chosen if not (options.data / data.file).is_file()]
    if missing or not chosen:
        parser.error(f"not there: {', '.join(missing) or options.sets}")

    results: dict[str, Any] = {
        "schema_version": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "kind": "make bench-full" if options.full else "make bench",
        "complete": False,
        "model": Path(options.model).resolve().name,
        "settings": {
            "rounds": options.rounds,
            "max_length": MAX_LENGTH,
            "max_prompt_length": MAX_PROMPT_LENGTH,
            "seed": SEED,
            "beta": Work(model="", pairs=[], pairs_per_step=1).beta,
            "gamma": Work(model="", pairs=[], pairs_per_step=1).gamma,
            "memory_limit_bytes": options.memory_gb * 1e9,
            "warm_up_choice": WARM_UP_CHOICE,
        },
        "versus": [],
        "alone": None,
        "precision": None,
    }

    def save(**parts: Any) -> None:
        results.update(parts, seconds=time.monotonic() - started)
        (options.output / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    shape = shape_of(AutoConfig.from_pretrained(options.model).get_text_config())
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            options.model, options.peer, options.threads, options.rounds, options.memory_gb * 1e9, Path(scratch)
        )
        if bench.memory > _available_bytes():
            parser.error(f"--memory-gb {options.memory_gb:g} is more than the {_available_bytes() / 1e9:.1f} GB free")
        try:
            memory = probe_peer(bench, shape)
            longest = min(options.longest, memory.widest(2 * COMPARED, bench.memory))
            results["peer_memory"] = {
                "fixed": memory.fixed,
                "per_token": memory.per_token,
                "per_score": memory.per_score,
                "longest_row": longest,
            }
            _say(
                f"peer: {memory.per_token / 1e6:.2f} MB a padded token; at micro-batch {COMPARED} rows of up to "
                f"{longest} tokens stay within {options.memory_gb:.1f} GB"
            )
            sources = [prepare(data, options.data, options.model, longest) for data in chosen]
            speeds = first_speeds(bench)
            reserve = 0.0 if options.no_growth else alone_seconds(bench, shape, sources[0], speeds)
            versus(
                bench,
                shape,
                sources,
                memory,
                speeds,
                lambda result: save(versus=[*results["versus"], result]),
                end=started + options.minutes * 60 - reserve,
                size=options.pairs or (16 if options.full else None),
                full=options.full,
            )
            if not options.no_growth:
                done = results["versus"][0]["pairs_per_step"] == 16
                save(alone=measure_alone(bench, shape, sources[0], rounds=0 if done else bench.rounds))
            if options.full:
                precisions = [Entry("ours"), Entry("ours", 0, "bf16"), Entry("peer", COMPARED, "bf16")]
                pairs = steps_from(sources[0].pairs, 16, bench.rounds)
                session = run_session(bench, shape, precisions, pairs, 16, rate=0.0)
                save(precision={"key": sources[0].data.key, "title": sources[0].data.title, **session})
        except (DisagreementError, StoppedError, TooFewError) as error:
            sys.exit(f"stopped: {error}")
    save(complete=True)
    write_page(results, options.output)
    _say(f"done in {(time.monotonic() - started) / 60:.1f} minutes: {options.output / 'benchmarks.md'}")


def _available_bytes() -> int:
    """Memory that can be had without anyone being put out; of the card, where there is one, all of it."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().available)


def _memory_gb() -> float:
    """Room for the largest process beside two that wait, each with its own copy of the model: at most 14 GB."""
    return min(14.0, 0.9 * _available_bytes() / 1e9 - 6)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
