"""Which number of a trial ranks settings as right answers would: `python -m tests.benchmarks.proxies --work FOLDER`.

Trials of builtin:guide with settings drawn at random: rates, betas, ratios, label smoothing, SFT weight. Two sets of
training pairs: the shipped ones, and own answers graded by the world's rule (best against worst, no bar), on which a
first look saw held-out accuracy rise while right answers fell. Beside what is measured on one half of the held-out
pairs stands what the rule says of greedy answers to the prompts of the other half.

Rows go to FOLDER/rows-SET-SHARD.jsonl as they come, and --page makes tuning.json of them. docs/tuning.md says what is
compared.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from simpo_cli.evaluate.checked import check
from simpo_cli.evaluate.generate.folder import write_lines
from simpo_cli.pairs.prompts import prompts_of, write_prompts
from simpo_cli.recipe.composition import compose
from simpo_cli.run.events import Unwatched
from simpo_cli.run.stop import StopRequest
from simpo_cli.tune.bench import Bench
from tests.benchmarks.on_policy import lines_of

STEPS = 150
SPACE: dict[str, tuple[float, ...]] = {
    "loss.beta": (1, 2, 2.5, 5, 10, 20),
    "loss.gamma_beta_ratio": (0, 0.1, 0.25, 0.5, 1, 1.6),
    "loss.label_smoothing": (0, 0.1, 0.2),
    "loss.sft_weight": (0, 0.1, 0.5, 1, 3),
}


def settings(number: int) -> dict[str, float]:
    """The values of a trial, drawn by its number."""
    draw = random.Random(f"setting {number}")
    values = {"train.learning_rate": float(f"{5e-5 * 100 ** draw.random():.3g}")}
    return values | {key: float(draw.choice(choices)) for key, choices in SPACE.items()}


def simpo(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "simpo_cli", *words], check=True, stdin=subprocess.DEVNULL)


def own_pairs(work: Path) -> None:
    """Pairs of the start model's own answers to the prompts of training and held-out pairs, best against worst."""
    for side, count in (("train", 1000), ("eval", 500)):
        if (work / f"own-{side}.jsonl").is_file():
            continue
        prompts = work / f"prompts-{side}.jsonl"
        write_lines(prompts, [{"messages": row["prompt"]} for row in lines_of(side)[:count]])
        answers = work / f"answers-{side}"
        drawn = ("-n", "5", "--temperature", "0.8", "--max-new-tokens", "64", "--seed", "1")
        simpo("pairs", "sample", str(prompts), "--model", "builtin:guide", "-o", str(answers), *drawn)
        simpo("pairs", "score", str(answers), "--rule", "builtin:guide")
        simpo("pairs", "make", str(answers), "-o", str(work / f"own-{side}.jsonl"))


def trials(work: Path, which: str, numbers: range) -> None:
    """Train and measure; a row each."""
    train = "builtin:guide" if which == "shipped" else str(work / "own-train.jsonl")
    columns = {"columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}
    held_out = [{"path": "builtin:guide"}, {"path": str(work / "own-eval.jsonl"), **columns}]
    overrides = [f"data.train={train}", f"data.eval={json.dumps(held_out)}", "eval.part=all"]
    file = work / f"rows-{which}-{numbers.start}.jsonl"
    done = {json.loads(line)["number"] for line in file.read_text().splitlines()} if file.is_file() else set()
    with StopRequest() as stop:
        scratch = work / f"scratch-{which}-{numbers.start}"
        scratch.mkdir(exist_ok=True)
        bench = Bench(compose("demo", overrides).recipe, scratch, 10_000, Unwatched(), stop)
        pairs = bench.pairs("choosing")
        is_own = np.array(["own-eval" in pair.where for pair in pairs])
        with file.open("a") as rows:
            for number in [-1, *numbers]:
                if number in done:
                    continue
                values = settings(number) if number >= 0 else {}
                recipe = compose("demo", [*overrides, *(f"{key}={value!r}" for key, value in values.items())]).recipe
                trained = bench.train(recipe, STEPS, "choosing") if number >= 0 else bench.start("choosing")
                rows.write(json.dumps(row(bench, number, values, trained, is_own)) + "\n")
                rows.flush()
                print(which, number, values, flush=True)


def row(bench: Bench, number: int, values: dict[str, float], trained: Any, is_own: Any) -> dict[str, Any]:
    """What a trial is kept as."""
    if trained.scores is None:
        return {"number": number, "values": values, "problem": trained.problem}
    kept: dict[str, Any] = {"number": number, "values": values, "pairs": {}, "answers": {}}
    for name, at in (("shipped", ~is_own), ("own", is_own)):
        scores = trained.scores.select(np.flatnonzero(at).tolist())
        kept["pairs"][name] = {
            "chosen": scores.chosen.tolist(),
            "rejected": scores.rejected.tolist(),
            "longer_by": scores.longer_by.tolist(),
        }
    for part, answers in (("choosing", trained.answers), ("confirming", None)):
        prompts = bench.prompts(part)  # type: ignore[arg-type]
        answers = bench.answers(prompts) if answers is None else answers
        checked = check([prompt.turns[-1].content for prompt in prompts], answers)
        kept["answers"][part] = [
            {"key": one.key, "text": one.text, "ids": list(one.ids), "ended": one.ended, "exact": c.exact, "parts": c.parts}
            for one, c in zip(answers, checked, strict=True)
        ]
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", choices=("shipped", "own"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    own_pairs(options.work)
    if options.set:
        trials(options.work, options.set, range(options.first, options.first + options.count))


if __name__ == "__main__":
    main()
