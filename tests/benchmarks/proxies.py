"""Which number of a trial ranks settings as right answers would: `python -m tests.benchmarks.proxies --work FOLDER`.

Trials of builtin:guide with settings drawn at random: rates, betas, ratios, label smoothing, SFT weight. Two sets of
training pairs: the shipped ones, and own answers graded by the world's rule (best against worst, no bar), on which a
first look saw held-out accuracy rise while right answers fell. Beside what is measured on one half of the held-out
pairs stands what the rule says of greedy answers to the prompts of the other half.

Rows go to FOLDER/rows-SET-SHARD.jsonl as they come; --json FILE sums them up, and --page prints the table of such a
file. docs/tuning.md says what is compared.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from simpo_cli import statistics
from simpo_cli.data.prepare import prepare_data
from simpo_cli.evaluate.checked import check
from simpo_cli.evaluate.generate.folder import write_json, write_lines
from simpo_cli.evaluate.generate.measures import repeated_share
from simpo_cli.objective import Objective
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import LossRecipe, Recipe
from simpo_cli.run.events import LOOPING, Unwatched
from simpo_cli.run.stop import StopRequest
from simpo_cli.tune.bench import Bench
from simpo_cli.tune.judging import likeness
from tests.benchmarks.on_policy import lines_of
from tests.benchmarks.page import table

STEPS = 150
COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
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


@contextmanager
def bench_of(work: Path, which: str, number: int) -> Iterator[tuple[Bench, list[str], Any]]:
    """A bench for one set of training pairs, its overrides, and which of the held-out pairs are own ones."""
    train = "builtin:guide" if which == "shipped" else str(work / "own-train.jsonl")
    held_out = [{"path": "builtin:guide"}, {"path": str(work / "own-eval.jsonl"), "columns": COLUMNS}]
    overrides = [f"data.train={train}", f"data.eval={json.dumps(held_out)}"]
    scratch = work / f"scratch-{which}-{number}"
    scratch.mkdir(exist_ok=True)
    with StopRequest() as stop:
        bench = Bench(recipe_of(overrides, {}), scratch, 10_000, Unwatched(), stop)
        yield bench, overrides, np.array(["own-eval" in pair.where for pair in bench.pairs("choosing")])


def recipe_of(overrides: list[str], values: dict[str, float]) -> Recipe:
    return compose("demo", [*overrides, *(f"{key}={value!r}" for key, value in values.items())]).recipe


def trials(work: Path, which: str, numbers: range) -> None:
    """Train and measure; a row each, the start model's first."""
    file = work / f"rows-{which}-{numbers.start}.jsonl"
    done = {json.loads(line)["number"] for line in file.read_text().splitlines()} if file.is_file() else set()
    with file.open("a") as rows, bench_of(work, which, numbers.start) as (bench, overrides, is_own):
        for number in [-1, *numbers]:
            if number in done:
                continue
            values = settings(number) if number >= 0 else {}
            recipe = recipe_of(overrides, values)
            trained = bench.train(recipe, STEPS, "choosing") if number >= 0 else bench.start("choosing")
            rows.write(json.dumps(row(bench, number, values, trained, is_own)) + "\n")
            rows.flush()
            print(which, number, values, flush=True)


REMEDIES: dict[str, tuple[dict[str, float], ...]] = {  # a factor of the rate, or a value
    "apart": ({"train.learning_rate": 1 / 3}, {"loss.sft_weight": 1}),
    "falls": ({"train.learning_rate": 1 / 3}, {"loss.sft_weight": 1}),
    "still": ({"train.learning_rate": 3},),
}
TRIGGERS = {
    "apart": "answers fell apart: HEA002, HEA007 or HEA008",
    "falls": "chosen responses fell by 0.2 nats/token or more, and the answers held: HEA001",
    "still": "the gap moved by less than 0.02 nats/token, and nothing else is wrong",
}


def trigger_of(kept: dict[str, Any], start: dict[str, Any], held_out: str) -> str:
    """What a run that ended like this trial would have said; empty for nothing."""
    (chosen, rejected), (chosen_before, rejected_before) = (
        [float(np.mean(one["pairs"][held_out][side])) for side in ("chosen", "rejected")] for one in (kept, start)
    )
    fall, fall_rejected = chosen_before - chosen, rejected_before - rejected
    answers = kept["answers"]["choosing"][:64]
    looping = np.mean([repeated_share(one["ids"]) >= LOOPING for one in answers])
    if max(looping, np.mean([not one["ended"] for one in answers])) >= 0.3 or min(fall, fall_rejected) >= 1:
        return "apart"
    if fall >= 0.2:
        return "falls"
    return "still" if abs(fall_rejected - fall) < 0.02 else ""


def follow_ups(work: Path, most: int) -> None:
    """Train trials again with what a run would have suggested, at most so many of each trigger and set of pairs."""
    file = work / "rows-advice.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    known = {(one["set"], one["number"], json.dumps(one["remedy"])) for one in done}
    for name in ("shipped", "own"):
        lines = [json.loads(line) for line in (work / f"rows-{name}-0.jsonl").read_text().splitlines()]
        start = next(one for one in lines if one["number"] < 0)
        rows = sorted(
            (one for one in lines if one["number"] >= 0 and "problem" not in one), key=lambda one: one["number"]
        )
        with bench_of(work, name, 0) as (bench, overrides, is_own):
            for trigger, remedies in REMEDIES.items():
                found = [one for one in rows if trigger_of(one, start, name) == trigger][:most]
                for before in found:
                    for remedy in remedies:
                        if (name, before["number"], json.dumps(remedy)) in known:
                            continue
                        values = dict(before["values"])
                        for key, value in remedy.items():
                            values[key] = values[key] * value if key == "train.learning_rate" else value
                        trained = bench.train(recipe_of(overrides, values), STEPS, "choosing")
                        after = row(bench, before["number"], values, trained, is_own)
                        kept = {"set": name, "trigger": trigger, "remedy": remedy, **worth_of(before, after)}
                        with file.open("a") as out:
                            out.write(json.dumps({"number": before["number"], **kept}) + "\n")
                        print(name, before["number"], trigger, remedy, kept["exact"], flush=True)


def worth_of(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the answers of both trials are worth; nothing where training ended on numbers."""
    found = {}
    for key in ("exact", "parts"):
        both = [one.get("answers", {}).get("confirming", []) for one in (before, after)]
        found[key] = [float(np.mean([answer[key] for answer in answers])) if answers else 0.0 for answers in both]
    return found


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
            {**asdict(one), "exact": found.exact, "parts": found.parts}
            for one, found in zip(answers, checked, strict=True)
        ]
    return kept


# What the rows say

PROXIES = {
    "likeness": "likeness of 128 greedy answers to the chosen responses",
    "likeness_64": "the same of 64 answers",
    "lean": "the same less their likeness to the rejected ones",
    "chosen": "log-prob of the chosen responses, nats/token",
    "chosen_plus_gap": "log-prob of the chosen responses plus the gap",
    "accuracy": "held-out accuracy",
    "balanced": "length-balanced accuracy",
    "gap": "gap, nats/token",
    "loss": "loss of all trials by one objective (beta 2, gamma 1), negated",
    "own_loss": "loss by the trial's own objective, negated",
    "ended": "share of 64 answers that end",
    "repeating": "share of 64 answers that repeat themselves, negated",
}
_DRAWS = 2000


def references(work: Path) -> dict[str, dict[str, list[int]]]:
    """The chosen and the rejected response of each held-out prompt as tokens, of the shipped and the own pairs."""
    found: dict[str, dict[str, Any]] = {}
    for name, path in (("shipped", "builtin:guide"), ("own", str(work / "own-eval.jsonl"))):
        columns = [] if name == "shipped" else [f"data.columns={json.dumps(COLUMNS)}"]
        data = prepare_data(compose("demo", [f"data.train={path}", f"data.eval={path}", *columns]).recipe)
        found[name] = {one.prompt_key: (one.chosen.tolist()[:-1], one.rejected.tolist()[:-1]) for one in data.held_out}
    return found


def proxies_of(kept: dict[str, Any], responses: dict[str, Any], held_out: str) -> dict[str, float]:
    """Every proxy of a trial; the higher, the better it should be."""
    scores = kept["pairs"][held_out]
    chosen, rejected, longer_by = (np.array(scores[key]) for key in ("chosen", "rejected", "longer_by"))
    right, gaps = (np.sign(chosen - rejected) + 1) / 2, chosen - rejected
    answers = [one for one in kept["answers"]["choosing"] if one["key"] in responses]
    like = np.array([[likeness(one["ids"], [side]) for side in responses[one["key"]]] for one in answers])
    own = LossRecipe(**{key.removeprefix("loss."): value for key, value in kept["values"].items() if "loss" in key})
    losses = [-float(Objective(loss).losses(chosen, rejected).mean()) for loss in (LossRecipe(beta=2, gamma=1), own)]
    return {
        "likeness": float(like[:128, 0].mean()),
        "likeness_64": float(like[:64, 0].mean()),
        "lean": float((like[:128, 0] - like[:128, 1]).mean()),
        "chosen": float(chosen.mean()),
        "chosen_plus_gap": float((chosen + gaps).mean()),
        "accuracy": float(right.mean()),
        "balanced": float(np.mean([right[longer_by > 0].mean(), right[longer_by < 0].mean()])),
        "gap": float(gaps.mean()),
        "loss": losses[0],
        "own_loss": losses[1],
        "ended": float(np.mean([one["ended"] for one in answers[:64]])),
        "repeating": -float(np.mean([repeated_share(one["ids"]) >= LOOPING for one in answers[:64]])),
    }


def summed_up(work: Path) -> dict[str, Any]:
    """Rank correlations of each proxy with what the answers are worth, and what each would have chosen."""
    document: dict[str, Any] = {"steps": STEPS, "sets": {}, "advice": advice_of(work)}
    responses = references(work)
    for name in ("shipped", "own"):
        files = sorted(work.glob(f"rows-{name}-*"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        rows = sorted((one for one in lines if one["number"] >= 0), key=lambda one: one["number"])
        start = next(one for one in lines if one["number"] < 0)
        ended = [one for one in rows if "problem" in one]
        rows = [one for one in rows if "problem" not in one]
        worth = {
            key: np.array([np.mean([answer[key] for answer in one["answers"]["confirming"]]) for one in rows])
            for key in ("exact", "parts")
        }
        kept: dict[str, Any] = {
            "trials": [
                {"number": one["number"], "values": one["values"], **{key: float(worth[key][at]) for key in worth}}
                for at, one in enumerate(rows)
            ],
            "not_finite": [one["number"] for one in ended],
            "start": {key: float(np.mean([answer[key] for answer in start["answers"]["confirming"]])) for key in worth},
            "proxies": {},
        }
        for held_out in ("shipped", "own"):
            found = [proxies_of(one, responses[held_out], held_out) for one in rows]
            for at, one in enumerate(found):
                kept["trials"][at][held_out] = one
            for proxy in PROXIES:
                values = np.array([one[proxy] for one in found])
                kept["proxies"].setdefault(proxy, {})[held_out] = {
                    **{key: _rank_correlation(values, worth[key]) for key in worth},
                    "chosen_exact": float(worth["exact"][int(values.argmax())]),
                }
        kept["best_exact"] = float(worth["exact"].max())
        document["sets"][name] = kept
    return document


def advice_of(work: Path) -> list[dict[str, Any]]:
    """What became of the trials that were trained again, by trigger and remedy; those that had the remedy's value."""
    file, found = work / "rows-advice.jsonl", []
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    for trigger, remedies in REMEDIES.items():
        for remedy in remedies:
            kept = [one for one in lines if one["trigger"] == trigger and one["remedy"] == remedy]
            kept = [
                one for one in kept if "loss.sft_weight" not in remedy or settings(one["number"])["loss.sft_weight"] < 1
            ]
            if len(kept) < 2:
                continue
            before, after = np.array([one["exact"] for one in kept]).T
            found.append(
                {
                    "trigger": trigger,
                    "remedy": remedy,
                    "better": int((after > before).sum()),
                    "worse": int((after < before).sum()),
                    "before": float(before.mean()),
                    "after": float(after.mean()),
                    "change": statistics.mean(after - before).as_json(),
                }
            )
    return found


def advice_page(document: dict[str, Any]) -> str:
    """The table of what a run suggests, as Markdown."""
    rows = [
        [
            "a run that ends like this",
            "trained again with",
            "trials",
            "better",
            "worse",
            "wholly right, %",
            "change, points",
        ]
    ]
    for one in document["advice"]:
        [(key, value)] = one["remedy"].items()
        words = f"{key} times {value:.2g}" if key == "train.learning_rate" else f"{key}={value:g}"
        low, high = one["change"]["ci"]
        change = f"{100 * one['change']['value']:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"
        shares = f"{100 * one['before']:.0f} to {100 * one['after']:.0f}"
        counts = [str(one["change"]["n"]), str(one["better"]), str(one["worse"])]
        rows.append([TRIGGERS[one["trigger"]], words, *counts, shares, change])
    return table(rows)


def rounded(value: Any) -> Any:
    """Numbers with five digits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(rounded, value))
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _rank_correlation(values: Any, worth: Any) -> dict[str, Any]:
    """Spearman's, with the interval of a bootstrap over trials."""
    draw = np.random.default_rng(0)
    drawn = [draw.integers(0, len(values), len(values)) for _ in range(_DRAWS)]
    found = [spearmanr(values[at], worth[at])[0] for at in drawn if np.ptp(values[at]) > 0]
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return {"value": float(spearmanr(values, worth)[0]), "ci": [low, high], "n": len(values)}


def page(document: dict[str, Any]) -> str:
    """The table, as Markdown."""
    sets = document["sets"]
    rows = []
    for proxy, words in PROXIES.items():
        cells = []
        for name, held_out in (("shipped", "shipped"), ("own", "shipped"), ("own", "own")):
            one = sets[name]["proxies"][proxy][held_out]
            low, high = one["exact"]["ci"]
            cells.append(f"{one['exact']['value']:+.2f} ({low:+.2f} to {high:+.2f}), {100 * one['chosen_exact']:.0f} %")
        rows.append([words, *cells])
    n = {name: len(one["trials"]) for name, one in sets.items()}
    heads = [f"shipped pairs (n = {n['shipped']})", f"own pairs (n = {n['own']})", "own pairs, own held out"]
    return table([["what would choose", *heads], *rows])


def weights_page(document: dict[str, Any], draws: int = 4000, size: int = 16) -> str:
    """What it costs to choose by likeness and length-balanced accuracy both, as Markdown; each time so many trials as a
    study has are drawn.
    """
    rows = [["weight of length-balanced accuracy beside likeness"]]
    for weight in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0):
        cells = []
        for name, held_out in (("shipped", "shipped"), ("own", "shipped"), ("own", "own")):
            trials = document["sets"][name]["trials"]
            exact = np.array([one["exact"] for one in trials])
            likest, told, right = (
                np.array([one[held_out][key] for one in trials]) for key in ("likeness", "balanced", "accuracy")
            )
            draw, chosen = np.random.default_rng(0), []
            for _ in range(draws):
                some = draw.choice(len(trials), size, replace=False)
                chosen.append(some[np.argmax((likest + weight * told)[some])])
            cells.append(f"{100 * exact[chosen].mean():.1f}, {100 * right[chosen].mean():.1f}")
        rows.append([f"{weight:g}", *cells])
    rows[0] += ["shipped pairs", "own pairs", "own pairs, own held out"]
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", choices=("shipped", "own"))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--advice", type=int, help="trials of each kind that are trained again as a run would suggest")
    parser.add_argument("--json", type=Path, help="sum up what is there")
    parser.add_argument("--page", type=Path, help="print the table of such a file")
    options = parser.parse_args()
    if options.page:
        document = json.loads(options.page.read_text())["proxies"]
        print(page(document), weights_page(document), advice_page(document), sep="\n")
        return
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.is_file() else {}
        write_json(options.json, {**known, "proxies": rounded(summed_up(options.work))})
        return
    options.work.mkdir(parents=True, exist_ok=True)
    own_pairs(options.work)
    if options.advice:
        follow_ups(options.work, options.advice)
    if options.set:
        trials(options.work, options.set, range(options.first, options.first + options.count))


if __name__ == "__main__":
    main()
