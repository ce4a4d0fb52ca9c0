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
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import AutoConfig

from tests.benchmarks.flops import Shape, batches, needed, needed_flops, padded_flops, shape_of
from tests.benchmarks.machine import available_bytes
from tests.benchmarks.page import Row, write_page
from tests.benchmarks.predict import SIZES, MemoryModel, choose_sizes, fit_memory
from tests.benchmarks.sample import (
    DATA_SETS,
    MAX_LENGTH,
    MAX_PROMPT_LENGTH,
    SEED,
    WARM_UP_CHOICE,
    Source,
    TooFewError,
    made_up_pair,
    steps_from,
)
from tests.benchmarks.turns import ChildSide, StoppedError, take_turns
from tests.benchmarks.work import OURS, Entry, Work, WorkPair

MOST_DIFFERENCE = 1e-4  # relative, of loss and mean log-probs in the first step
MICROBATCHES = (1, 4, 16)  # of the peer
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


@dataclass(slots=True, kw_only=True)
class Bench:
    """What a call was asked for, and what is known of model, machine and peer.

    Attributes:
        model: folder.
        shape: of the model, for the counts.
        peer: the Python of the peer's environment.
        threads: of both sides.
        rounds: measured steps of each side on each data set.
        limit: most bytes that a process of the peer may be predicted to take.
        scratch: folder for the files that the sides read.
        memory: how the peer's memory grows with a batch.
        speeds: operations a second, of the counted kind, that each side is thought to reach; brought up to date as it
            runs.
    """

    model: str
    shape: Shape
    peer: str
    threads: int
    rounds: int
    limit: float
    scratch: Path
    memory: MemoryModel = field(init=False)
    speeds: dict[str, float] = field(default_factory=dict)

    def start(self, entry: Entry, pairs: list[WorkPair], pairs_per_step: int, rate: float = 1e-6) -> ChildSide:
        """A fresh process of one side; it has loaded the model and waits."""
        work = Work(
            model=self.model,
            pairs=pairs,
            pairs_per_step=pairs_per_step,
            microbatch=entry.microbatch or 1,
            precision=entry.precision,
            learning_rate=rate,
            max_length=MAX_LENGTH,
            threads=self.threads,
        )
        file = work.save(self.scratch / f"{entry.name}.json")
        python, program = (sys.executable, "our_side") if entry.who == "ours" else (self.peer, "peer_side")
        environment = {
            "OMP_NUM_THREADS": str(self.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        return ChildSide(entry.name, [python, "-m", f"tests.benchmarks.{program}", str(file)], environment)

    def probe(self) -> None:
        """Find how the peer's memory grows, from three small batches, and guess at speeds from those of products.

        As in real steps, the wide micro-batch comes when there are gradients already, and its rows differ in length: a
        batch without padding needs no mask, and takes attention's leaner path.
        """
        pairs = []
        for width in (64, *PROBED):
            wide = made_up_pair(width // 3, width - width // 3, self.shape.vocabulary)
            pairs += [made_up_pair(8, 8, self.shape.vocabulary), replace(wide, rejected=wide.rejected[: width // 3])]
        with self.start(Entry("peer", 1), pairs, 2) as peer:
            peer.ask(do="step")  # makes the optimizer's state
            peaks = {width: int(peer.ask(do="step")["peak_bytes"]) for width in PROBED}
        self.memory = fit_memory(peaks, rows=2)
        with self.start(OURS, [], 1) as ours:
            speed = float(ours.ask(do="products", precision="fp32")["flops_per_second"])
        peers = {Entry("peer", microbatch).name: 0.5 * speed for microbatch in MICROBATCHES}
        self.speeds = {OURS.name: 0.6 * speed, **peers}

    def counted(self, entry: Entry, pairs: Sequence[WorkPair]) -> int:
        """Operations of a step: what the method needs for our side, what padding makes of it for the peer."""
        if entry.who == "ours":
            return needed(self.shape, pairs)
        return sum(padded_flops(self.shape, rows, width) for rows, width in batches(pairs, entry.microbatch))

    def seconds(self, entries: Sequence[Entry], pairs: Sequence[WorkPair]) -> float:
        """Predicted time of all entries on some pairs."""
        return sum(self.counted(entry, pairs) / self.speeds[entry.name] for entry in entries)

    def peak(self, pairs: Sequence[WorkPair], microbatch: int) -> float:
        """Predicted peak bytes of the peer in the worst micro-batch of consecutive pairs."""
        return max(self.memory.peak(rows, width) for rows, width in batches(pairs, microbatch))


def require_same_tokens(pairs: Sequence[WorkPair], scored: Sequence[dict[str, list[int]]], name: str) -> None:
    """Stop unless a side scores exactly the tokens of the pairs, behind the same prompts.

    Raises:
        DisagreementError: names the first pair.
    """
    if len(scored) != len(pairs):
        raise DisagreementError(f"{name} has {len(scored)} pairs instead of {len(pairs)}")
    for number, (pair, ids) in enumerate(zip(pairs, scored, strict=True)):
        if ids != pair.scored:
            raise DisagreementError(f"{name} scores other tokens in pair {number}: no comparison is made")


def largest_difference(answers: dict[str, list[Row]], step: int) -> float:
    """The largest relative difference of loss and mean log-probs between the first side and the others, in one step."""
    first, *others = (rows[step] for rows in answers.values())
    keys = ("loss", "logps_chosen", "logps_rejected")
    return max((abs(row[key] / first[key] - 1) for row in others for key in keys), default=0.0)


def run_session(
    bench: Bench, entries: Sequence[Entry], pairs: list[WorkPair], pairs_per_step: int, rate: float = 1e-6
) -> Row:
    """Some sides on the steps of one data set, in turn.

    Args:
        entries: who takes part; the first is ours, which the others are compared with.
        pairs: of the warm-up step and of all measured steps.
        pairs_per_step: pairs of one step.
        rate: learning rate.

    Raises:
        DisagreementError: tokens, or in float32 losses of the first step, differ.
    """
    _, *steps = (pairs[start : start + pairs_per_step] for start in range(0, len(pairs), pairs_per_step))
    with ExitStack() as stack:
        sides = []
        for entry in entries:
            sides.append(stack.enter_context(bench.start(entry, pairs, pairs_per_step, rate)))
            if "scored" in sides[-1].ready:
                require_same_tokens(pairs, sides[-1].ready["scored"], entry.name)
        warm_up = take_turns(sides, 1, do="step")
        difference = largest_difference(warm_up, 0)
        if difference > MOST_DIFFERENCE and all(entry.precision == "fp32" for entry in entries):
            found = {name: {key: rows[0][key] for key in ("loss", "logps_chosen")} for name, rows in warm_up.items()}
            raise DisagreementError(f"the sides differ by {difference:.1e} in the first step: {found}")
        speeds: dict[str, list[float]] = {entry.precision: [] for entry in entries}
        answers: dict[str, list[Row]] = {side.name: [] for side in sides}
        for number in range(1, len(steps) + 1):
            for name, rows in take_turns(sides, 1, do="step").items():
                answers[name] += rows
            for precision, seen in speeds.items():
                seen.append(sides[0].ask(do="products", precision=precision)["flops_per_second"])
            _say(
                f"  round {number}: "
                + ", ".join(f"{name} {rows[-1]['seconds']:.1f} s" for name, rows in answers.items())
            )
    measured = pairs[pairs_per_step:]
    return {
        "pairs_per_step": pairs_per_step,
        "rounds": len(steps),
        "mean_tokens": {
            part: fmean(len(getattr(pair, part)) for pair in measured) for part in ("prompt", "chosen", "rejected")
        },
        "same_tokens": len(pairs),
        "first_step_difference": difference,
        "later_differences": [largest_difference(answers, step) for step in range(len(steps))],
        "product_speeds": speeds,
        "needed_flops": [needed(bench.shape, step) for step in steps],
        "machine": sides[0].ready["machine"],
        "sides": [
            {
                "name": entry.name,
                **asdict(entry),
                **{name: side.ready[name] for name in ("num_parameters", "libraries_bytes", "versions")},
                "peak_bytes": answers[entry.name][-1]["peak_bytes"],
                "state_bytes": 16 * side.ready["num_parameters"],
                "given_as_ids": side.ready.get("given_as_ids", 0),
                "counted_flops": [bench.counted(entry, step) for step in steps],
                "warm_up": warm_up[entry.name][0],
                "steps": answers[entry.name],
            }
            for entry, side in zip(entries, sides, strict=True)
        ],
    }


def compare(bench: Bench, source: Source, entries: Sequence[Entry], pairs_per_step: int, *, every: bool = False) -> Row:
    """Sides on one data set, with the account of its pairs and of the micro-batches that are left out.

    Args:
        every: also take the longest pairs, for which the peer has room at micro-batch 1 alone.
    """
    title = source.data.title + (", all lengths" if every else "")
    pairs = steps_from(source.every if every else source.pairs, pairs_per_step, bench.rounds)
    minutes = "" if every else f", about {bench.seconds(entries, pairs) / 60:.1f} minutes"
    _say(f"{title}: {bench.rounds} rounds of {pairs_per_step} pairs{minutes}")
    session = run_session(bench, entries, pairs, pairs_per_step)
    if not every:
        for entry, side in zip(entries, session["sides"], strict=True):
            seconds = sum(row["seconds"] for row in side["steps"])
            bench.speeds[entry.name] = bench.counted(entry, pairs[pairs_per_step:]) / seconds
    peaks = {microbatch: bench.peak(pairs, microbatch) for microbatch in MICROBATCHES}
    taking_part = {entry.microbatch: entry.name for entry in entries if entry.who == "peer"}
    return {
        "key": source.data.key,
        "title": title,
        "pairs_in_file": len(source.every),
        "too_long": 0 if every else len(source.every) - len(source.pairs),
        **session,
        "not_run": [
            {"microbatch": microbatch, "predicted_bytes": need, "fits": need <= bench.limit and not every}
            for microbatch, need in peaks.items()
            if microbatch not in taking_part
        ],
        "predicted_peaks": {name: peaks[microbatch] for microbatch, name in taking_part.items()},
    }


def versus(
    bench: Bench, sources: Sequence[Source], save: Callable[[Row], None], *, end: float, size: int | None, full: bool
) -> None:
    """All data sets, one after the other, within the time if there is a limit (`make bench`).

    Args:
        save: called with each data set's result.
        end: the moment of the monotonic clock at which all of it shall be done.
        size: pairs of a step, if it is not left to the time there is.
        full: micro-batches of 16 where they fit, and pairs of all lengths.
    """
    usual = [OURS, Entry("peer", 1), Entry("peer", COMPARED)]
    for number, source in enumerate(sources):
        costs = {left.data.key: [_predicted(bench, usual, left, size) for size in SIZES] for left in sources[number:]}
        pairs_per_step = size or choose_sizes(costs, end - time.monotonic())[source.data.key]
        entries, pairs = list(usual), steps_from(source.pairs, pairs_per_step, bench.rounds)
        if full and pairs_per_step % 16 == 0 and bench.peak(pairs, 16) <= bench.limit:
            entries.append(Entry("peer", 16))
        save(compare(bench, source, entries, pairs_per_step))
        if full and len(source.pairs) < len(source.every):
            save(compare(bench, source, usual[:2], pairs_per_step, every=True))


def _predicted(bench: Bench, entries: Sequence[Entry], source: Source, pairs_per_step: int) -> float:
    """Seconds of a whole data set at so many pairs a step; without end when it has too few pairs for them."""
    try:
        pairs = steps_from(source.pairs, pairs_per_step, bench.rounds)
    except TooFewError:
        return float("inf")
    loading = 10 * len(entries)
    return loading + bench.seconds(entries, pairs)


def alone_seconds(bench: Bench, source: Source) -> float:
    """Predicted time of `measure_alone`."""
    points = [point for points in GROWTH.values() for point in points]
    flops = needed(bench.shape, steps_from(source.pairs, 16, bench.rounds))
    flops += GROWTH_REPEATS * sum(
        count * needed_flops(bench.shape, prompt, each, each) for count, prompt, each in points
    )
    return 20 + flops / bench.speeds[OURS.name]


def measure_alone(bench: Bench, source: Source, *, rounds: int) -> Row:
    """Our side by itself: steps of 16 real pairs, and how time grows with made-up ones.

    Args:
        rounds: measured steps of real pairs; 0 where such steps have been measured already.
    """
    pairs = steps_from(source.pairs, 16, rounds)
    growth: dict[str, list[Row]] = {
        what: [{"pairs": n, "prompt": prompt, "response": response, "steps": []} for n, prompt, response in points]
        for what, points in GROWTH.items()
    }
    with bench.start(OURS, pairs, 16) as ours:
        speeds, steps = [], []
        for _ in range(rounds + 1):
            steps.append(ours.ask(do="step"))
            speeds.append(ours.ask(do="products", precision="fp32")["flops_per_second"])
        for repeat in range(GROWTH_REPEATS):
            for point in (point for points in growth.values() for point in points):
                made_up = [
                    made_up_pair(point["prompt"], point["response"], bench.shape.vocabulary, seed=repeat * 100 + i)
                    for i in range(point["pairs"])
                ]
                point["needed_flops"] = needed(bench.shape, made_up)
                point["steps"].append(ours.ask(do="pairs", pairs=[asdict(pair) for pair in made_up]))
    return {
        "key": source.data.key,
        "title": source.data.title,
        "pairs_per_step": 16,
        "steps": steps[1:],
        "product_speeds": speeds,
        "needed_flops": [needed(bench.shape, pairs[start : start + 16]) for start in range(16, len(pairs), 16)],
        "growth": growth,
    }


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
    # room for the largest process beside two that wait, each with its own copy of the model
    room = min(14.0, 0.9 * available_bytes() / 1e9 - 6)
    parser.add_argument("--memory-gb", type=float, default=room, help="most that the peer may be predicted to need")
    parser.add_argument("--longest", type=int, default=MAX_LENGTH, help="leave out pairs with longer rows")
    parser.add_argument("--full", action="store_true", help="16 pairs a step, all lengths, bf16; no limit of time")
    parser.add_argument("--no-growth", action="store_true", help="leave out how time grows")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the results")
    options = parser.parse_args()
    started = time.monotonic()
    chosen = [data for data in DATA_SETS if data.key in options.sets.split(",")]
    missing = [str(path) for path in (Path(options.model) / "config.json", Path(options.peer)) if not path.exists()]
    missing += [data.file for data in chosen if not (options.data / data.file).is_file()]
    if missing or not chosen:
        parser.error(f"not there: {', '.join(missing) or options.sets}")

    loss = Work(model="", pairs=[], pairs_per_step=1)
    results: Row = {
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
            "beta": loss.beta,
            "gamma": loss.gamma,
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

    if options.memory_gb * 1e9 > available_bytes():
        parser.error(f"--memory-gb {options.memory_gb:g} is more than the {available_bytes() / 1e9:.1f} GB free")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            model=options.model,
            shape=shape_of(AutoConfig.from_pretrained(options.model).get_text_config()),
            peer=options.peer,
            threads=options.threads,
            rounds=options.rounds,
            limit=options.memory_gb * 1e9,
            scratch=Path(scratch),
        )
        try:
            bench.probe()
            longest = min(options.longest, bench.memory.widest(2 * COMPARED, bench.limit))
            results["peer_memory"] = {**asdict(bench.memory), "longest_row": longest}
            _say(
                f"peer: {bench.memory.per_token / 1e6:.2f} MB a padded token; at micro-batch {COMPARED} rows of up to "
                f"{longest} tokens stay within {options.memory_gb:.1f} GB"
            )
            sources = [Source.read(data, options.data, options.model, longest) for data in chosen]
            reserve = 0.0 if options.no_growth else alone_seconds(bench, sources[0])
            versus(
                bench,
                sources,
                lambda result: save(versus=[*results["versus"], result]),
                end=started + options.minutes * 60 - reserve,
                size=options.pairs or (16 if options.full else None),
                full=options.full,
            )
            if not options.no_growth:
                done = results["versus"][0]["pairs_per_step"] == 16
                save(alone=measure_alone(bench, sources[0], rounds=0 if done else bench.rounds))
            if options.full:
                entries = [OURS, Entry("ours", 0, "bf16"), Entry("peer", COMPARED, "bf16")]
                pairs = steps_from(sources[0].pairs, 16, bench.rounds)
                session = run_session(bench, entries, pairs, 16, rate=0.0)
                save(precision={"key": sources[0].data.key, "title": sources[0].data.title, **session})
        except (DisagreementError, StoppedError, TooFewError) as error:
            sys.exit(f"stopped: {error}")
    save(complete=True)
    write_page(results, options.output)
    _say(f"done in {(time.monotonic() - started) / 60:.1f} minutes: {options.output / 'benchmarks.md'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
