"""What `simpo tune` makes of bad recipes: `python -m tests.benchmarks.tuning --work FOLDER --json docs/tuning.json`.

Three bad recipes of builtin:guide, five seeds each, a search of so many steps as six minutes buy on two cores. Beside
each winner, trained with three seeds that no search used, stand the shipped recipe and the winner of a random search of
as many steps, trained and measured alike. Nothing that the search tries is the shipped recipe's value of rate and beta.

Studies that are in the JSON file are not made again, so it can be broken off; --page prints the tables, of these seeds
and of those that were seen while the rules of the search were made.
"""

import argparse
import json
import math
import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from simpo_cli import statistics
from simpo_cli.builtin.corpus import check_answer
from simpo_cli.data.messages import turns_of
from simpo_cli.evaluate.generate.folder import write_json
from simpo_cli.evaluate.generate.prompts import key_of
from simpo_cli.recipe.composition import compose
from simpo_cli.tune.folder import Spec
from simpo_cli.tune.session import claim, tune
from simpo_cli.tune.space import BETA, BETAS, RATE, RATIO, RATIOS, sweep_rates
from simpo_cli.tune.study import Study, Tuning
from tests.benchmarks.on_policy import lines_of
from tests.benchmarks.page import table
from tests.benchmarks.proxies import rounded

RECIPES = {
    "rate ten times too high": ("train.learning_rate=7e-3",),
    "rate ten times too low": ("train.learning_rate=7e-5",),
    "beta 2, gamma/beta 1": ("loss.beta=2", "loss.gamma_beta_ratio=1"),
}
SEEDS = (400, 410, 420, 430, 440)
SEEN = ((200, 210, 220, 230), (300, 310, 320, 330, 340))  # by other rules; what came of them changed the rules
STEPS = 2_210  # what six minutes bought on two cores, by the speed that the range test showed


def tuning_of(work: Path, name: str, seed: int, overrides: Sequence[str]) -> Tuning:
    """The study of a recipe in a folder of its own."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in name)
    given = [*overrides, f"seed={seed}", f"tune.budget.steps={STEPS}", f"output_dir={work / f'{plain}-{seed}'}"]
    return Tuning(compose("demo", given), given, None)


def arm_of(study: Study, values: Mapping[str, Any], steps: int, seed: int) -> list[dict[str, Any]]:
    """Settings trained with the three seeds of a confirmation."""
    seeds = range(seed + 1, seed + 4)
    return study.outcomes([Spec("confirming", dict(values), steps, one, "confirming") for one in seeds])


@cache
def questions() -> dict[str, str]:
    """The question of each held-out prompt, by its key."""
    prompts = [row["prompt"] for row in lines_of("eval")]
    return {key_of(tuple(turns_of(prompt, "prompt"))): prompt[-1]["content"] for prompt in prompts}


def kept(arm: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each seed what became of every pair and of every prompt, in the order of the confirming half.

    A digit each: `right` has 2 for a pair that is ranked rightly, 1 for a tie; `exact` has 1 for a wholly right answer.
    """
    found: dict[str, Any] = {"right": [], "utility": [], "exact": [], "reasons": []}
    for one in arm:
        gaps = np.subtract(one["scores"]["chosen"], one["scores"]["rejected"])
        answers = one["answers"]
        said = zip(answers["key"], answers["text"], answers["ended"], strict=True)
        checked = [(check_answer(questions()[key], text), ended) for key, text, ended in said]
        found["right"].append(_digits(np.sign(gaps) + 1))
        found["utility"].append(answers["utility"])
        found["exact"].append(_digits([check is not None and check.exact and ended > 0 for check, ended in checked]))
        found["reasons"].append(one["measures"]["reasons"])
    return found


def _digits(values: Any) -> str:
    return "".join(str(int(value)) for value in values)


def searched(work: Path, name: str, seed: int) -> dict[str, Any]:
    """A study of a bad recipe."""
    tuning = tuning_of(work, name, seed, RECIPES[name])
    claim(tuning, resume=True)
    document = tune(tuning, say=print)
    study = Study(tuning)
    winner = document["winner"]
    return {
        "values": winner["values"],
        "steps": winner["steps"],
        "trials": len(document["trials"]),
        "seconds": sum(trial["seconds"] for trial in document["trials"]),
        "verdict": document["verdict"]["found"],
        "confirmed": {key: (document["confirmed"] or {}).get(key) for key in ("difference", "on_pairs")},
        "arm": kept(arm_of(study, winner["values"], winner["steps"], seed)),
    }


def random_search(work: Path, seed: int, steps: int) -> dict[str, Any]:
    """The best of trials drawn at random, of as many steps together, by the same judge."""
    tuning = tuning_of(work, "random", seed, ())
    claim(tuning, resume=True)
    study = Study(tuning, say=print)
    draw = random.Random(seed)
    rates = sweep_rates(study.recipe, study.bench(study.recipe).num_parameters)
    tried = []
    for _ in range(STEPS // steps):
        rate = math.exp(draw.uniform(math.log(rates[0]), math.log(rates[-1])))
        values = {RATE: float(f"{rate:.2g}"), RATIO: draw.choice(RATIOS), BETA: draw.choice(BETAS)}
        tried.append(Spec("random", values, steps, seed, "choosing"))
    best = study.judge.best(study.outcomes(tried))
    arm = kept(arm_of(study, best["values"], steps, seed))
    return {"values": best["values"], "steps": steps, "trials": len(tried), "arm": arm}


def shipped(work: Path, seed: int, steps: int) -> dict[str, Any]:
    """The shipped recipe with the same seeds."""
    tuning = tuning_of(work, "shipped", seed, ())
    claim(tuning, resume=True)
    study = Study(tuning, say=print)
    return {"steps": steps, "arm": kept(arm_of(study, study.space.current, steps, seed))}


def compared(document: Mapping[str, Any], name: str, among: Sequence[int]) -> dict[str, Any]:
    """The winners of a search less the shipped recipe: accuracy and right answers, over prompts and searches.

    The trainings of one winner say nothing of other searches, so their mean is one number for each prompt and search.
    """
    found: dict[str, Any] = {}
    seeds = [seed for seed in map(str, among) if name in document.get(seed, {}) and "shipped" in document[seed]]
    for key, scale in (("right", 0.5), ("exact", 1.0)):
        ours, theirs = (
            scale * np.array([_mean_of_arm(document[seed][arm]["arm"][key]) for seed in seeds])
            for arm in (name, "shipped")
        )
        if len(ours) >= 2:
            both = statistics.crossed_difference(theirs, ours)
            found[key] = {"winner": float(ours.mean()), "shipped": float(theirs.mean()), **both.difference.as_json()}
    found["seeds"] = len(seeds)
    return found


def _mean_of_arm(rows: Sequence[str]) -> Any:
    """Over the trainings of an arm, of each pair or prompt."""
    return np.mean([list(map(float, row)) for row in rows], axis=0)


def nulls(document: Mapping[str, Any], count: int = 1000) -> dict[str, Any]:
    """Studies in which both arms are the shipped recipe: how often "better" is said.

    Each draws six of the recipe's trainings, three an arm, and prompts with replacement, from what was stored.
    """
    rows = [row for one in document.values() if "shipped" in one for row in one["shipped"]["arm"].get("utility", ())]
    values, draw, said = np.array(rows), np.random.default_rng(0), 0
    for _ in range(count):
        six = draw.permutation(len(values))[:6]
        prompts = draw.integers(0, values.shape[1], values.shape[1])
        arms = values[six][:, prompts]
        said += statistics.crossed_difference(arms[:3], arms[3:]).difference.low > 0
    return {"trainings": len(values), **statistics.proportion(np.arange(count) < said).as_json()}


def page(document: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """The table of some seeds, as Markdown."""
    heads = ["begins with", "seeds", "better than it", "accuracy, %", "less the shipped recipe's, points"]
    rows = [[*heads, "wholly right answers, %", "less the shipped recipe's, points"]]
    for name in (*RECIPES, "random search"):
        one = compared(document, name, seeds)
        if "right" not in one:
            continue
        of_seeds = [document.get(str(seed), {}).get(name) for seed in seeds]
        said = [study.get("verdict") for study in of_seeds if study is not None]
        cells = [name, str(one["seeds"]), f"{said.count('better')} of {len(said)}" if name in RECIPES else ""]
        for key in ("right", "exact"):
            measured = one[key]
            low, high = measured["ci"]
            cells.append(f"{100 * measured['winner']:.1f} and {100 * measured['shipped']:.1f}")
            cells.append(f"{100 * measured['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        rows.append(cells)
    return table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    document = json.loads(options.json.read_text()) if options.json.is_file() else {}
    if options.page:
        print(page(document["studies"], SEEDS))
        for seeds in SEEN:
            print(page(document["studies"], seeds))
        print(nulls(document["studies"]))
        return
    for seed in options.seeds:
        of_seed = document.setdefault("studies", {}).setdefault(str(seed), {})
        for name in (*RECIPES, "shipped", "random search"):
            if name in of_seed:
                continue
            if name in RECIPES:
                of_seed[name] = rounded(searched(options.work, name, seed))
            else:
                steps = of_seed[next(iter(RECIPES))]["steps"]
                make = shipped if name == "shipped" else random_search
                of_seed[name] = rounded(make(options.work, seed, steps))
            write_json(options.json, document)


if __name__ == "__main__":
    main()
