"""What rounds on own answers are worth on builtin:guide: `python -m tests.benchmarks.on_policy --work FOLDER`.

Six arms ask the same prompts in a round, train on equally many pairs for as many steps at the same rate, and differ in
the pairs; `sft` is the control without a preference:

    own      chosen: an own answer that is wholly right; rejected: the worst own answer; both ended
    sft      pairs made as those of `own`, trained on the likelihood of the chosen answers alone (beta 0.01)
    gold     chosen: the right answer of the tables; rejected: the arm's own worst answer, of the prompts of `own`
    shipped  the shipped pairs of the prompts of `own`, whose chosen answer is the longer one in four of five
    graded   the best against the worst own answer by the share of right parts, with no bar for the best one
    naive    pairs made as those of `graded`, with the loss of `demo`: an SFT weight of 0.1

The prompts are those of the shipped training pairs, others in each round. After each round the model answers all
held-out prompts greedily, and the run has scored the held-out pairs. docs/on-policy.md says what is compared, and was
written before the first run. Results go to on-policy.json and on-policy.svg in --docs; --page prints the tables of a
file that is there. Work that is there is not done again.
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from simpo_cli import statistics
from simpo_cli.builtin import corpus, guide_pairs
from simpo_cli.data.messages import turns_of
from simpo_cli.evaluate.generate.folder import read_rows, write_json, write_lines
from simpo_cli.evaluate.generate.prompts import Prompted, key_of
from simpo_cli.pairs.held_out import answer_values
from simpo_cli.pairs.prompts import prompts_of, prompts_of_round, write_prompts
from simpo_cli.recipe.composition import compose
from simpo_cli.run.documents import read_receipt
from tests.benchmarks.page import table

ARMS = ("own", "sft", "gold", "shipped", "graded", "naive")
LOSSES = {
    "sft": ("loss.beta=0.01",),
    "naive": ("loss.beta=10", "loss.gamma_beta_ratio=0.1", "loss.label_smoothing=0.1", "loss.sft_weight=0.1"),
}
RULE = ("--rule", "builtin:guide")


def simpo(*words: str) -> None:
    """A command of ours; what it says is shown where it fails."""
    done = subprocess.run([sys.executable, "-m", "simpo_cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"simpo {' '.join(words)}\n{done.stdout}\n{done.stderr}")


def lines_of(which: Any) -> list[dict[str, Any]]:
    with gzip.open(guide_pairs(which), "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def answered(prompts: Path, model: str, folder: Path, *drawn: str) -> None:
    """Sample and score, where that is not done."""
    simpo("pairs", "sample", str(prompts), "--model", model, "-o", str(folder), "--max-new-tokens", "64", *drawn)
    simpo("pairs", "score", str(folder), *RULE)


def worst_of(folder: Path) -> dict[str, str]:
    """The worst answer to each prompt that ended and is not wholly right, by the key of the prompt."""
    scores = {(row["key"], row["number"]): row["score"] for row in read_rows(folder / "scores.rule.jsonl")[1:]}
    worst: dict[str, tuple[float, str]] = {}
    for row in read_rows(folder / "answers.jsonl"):
        score = scores[row["key"], row["number"]]
        if row["ended"] and row["output"] and score < 1 and score < worst.get(row["key"], (2.0, ""))[0]:
            worst[row["key"]] = (score, row["output"])
    return {key: text for key, (_, text) in worst.items()}


def gold_answer(question: str) -> str:
    """The right answer of the tables, in one of its two forms by hash of the question."""
    form: corpus.Form = "long" if hashlib.sha256(question.encode()).digest()[0] % 2 else "short"
    topic = corpus.topic_of(question)
    assert topic is not None, question
    return corpus.right_answer(topic, form)


class Study:
    """The runs of one seed."""

    def __init__(self, work: Path, seed: int, options: argparse.Namespace) -> None:
        self.work, self.seed, self.options = work / f"seed-{seed}", seed, options
        self.shipped = {key_of(_prompt(row)): row for row in lines_of("train")}
        asked = list(prompts_of("builtin:guide", of_pairs=True))
        self.asked = sorted(asked, key=lambda one: hashlib.sha256(f"{seed} {key_of(one.prompt)}".encode()).digest())
        self.held_out = work / "held-out.jsonl"
        write_prompts(self.held_out, [Prompted(_prompt(row), "", {}) for row in lines_of("eval")])

    def arm(self, name: str) -> None:
        """All rounds of an arm."""
        model = "builtin:guide"
        for number in range(1, self.options.rounds + 1):
            folder = self.work / name / f"round-{number}"
            if not (folder / "held-out" / "scores.rule.jsonl").is_file():
                self._round(name, folder, number, model)
            model = str(folder / "run" / "model")
            print(f"seed {self.seed} {name} round {number}: {self.exact(name, number).mean():.3f}", flush=True)

    def _round(self, name: str, folder: Path, number: int, model: str) -> None:
        pairs, recipe = folder / "pairs.jsonl", self.options.recipe
        drawn = compose(recipe, ["data.train=-"]).recipe.pairs
        if name != "shipped":
            write_prompts(folder / "prompts.jsonl", prompts_of_round(self.asked, number, drawn.prompts_per_round))
            sampling = ["-n", str(drawn.answers_per_prompt), "--temperature", str(drawn.temperature)]
            seed = ["--seed", str(1000 * self.seed + number)]
            answered(folder / "prompts.jsonl", model, folder / "answers", *sampling, *seed)
        own = self.work / "own" / f"round-{number}" / "pairs.jsonl"
        match name:
            case "own" | "sft":
                simpo("pairs", "make", str(folder / "answers"), "-o", str(pairs), "--min-score", "1")
            case "graded" | "naive":
                simpo("pairs", "make", str(folder / "answers"), "-o", str(folder / "all.jsonl"))
                write_lines(pairs, read_rows(folder / "all.jsonl")[: len(read_rows(own))])
            case _:
                worst = {} if name == "shipped" else worst_of(folder / "answers")
                rows = []
                for row in read_rows(own):
                    key = row["prompt_key"]
                    if name == "shipped":
                        rows.append(self.shipped[key])
                    elif key in worst:
                        sides = (gold_answer(row["prompt"][-1]["content"]), worst[key])
                        turns = [[{"role": "assistant", "content": text}] for text in sides]
                        rows.append({"prompt": row["prompt"], "chosen": turns[0], "rejected": turns[1]})
                write_lines(pairs, rows)
        values = compose(recipe, ["data.train=-"]).recipe
        rate = values.train.learning_rate * values.pairs.rate_factor ** (number - 1)
        steps = []
        if name != "own":  # as many as the pairs of `own` gave
            taken = read_receipt(self.work / "own" / f"round-{number}" / "run")["plan"]["steps"]
            steps = ["train.num_epochs=1000", f"train.max_steps={taken}"]
        simpo(
            *("train", recipe, "--resume", f"name={name}-{number}", f"output_dir={folder / 'run'}"),
            *(f"seed={self.seed}", f"model.path={model}", f"data.train={pairs}", f"train.learning_rate={rate!r}"),
            *LOSSES.get(name, ()),
            *steps,
        )
        answered(self.held_out, str(folder / "run"), folder / "held-out", "-n", "1", "--temperature", "0")

    def values(self, name: str, number: int) -> dict[str, Any]:
        """Of each held-out prompt whether the answer is wholly right, the share of right parts, and the rest."""
        folder = self.work.parent / "start" if number == 0 else self.work / name / f"round-{number}" / "held-out"
        return answer_values(folder, "rule", 1.0)

    def exact(self, name: str, number: int) -> Any:
        return self.values(name, number)["passed"]


def _prompt(row: Mapping[str, Any]) -> Any:
    return tuple(turns_of(row["prompt"], "prompt"))


def measured(studies: Sequence[Study], rounds: int) -> dict[str, Any]:
    """Every arm and round: means over seeds and prompts, with intervals by prompt."""
    document: dict[str, Any] = {}
    start = {key: studies[0].values("", 0)[key] for key in ("passed", "score", "ended")}
    document["start"] = {key: statistics.mean(one).as_json() for key, one in start.items()}
    run = studies[0].work / "own" / "round-1" / "run"
    document["start"]["on_pairs"] = _on_pairs([read_receipt(run)["outcome"]["before"]])
    by_prompt = np.tile(np.arange(len(start["passed"])), len(studies))
    for name in ARMS:
        document[name] = []
        for number in range(1, rounds + 1):
            found = [study.values(name, number) for study in studies]
            row: dict[str, Any] = {"round": number}
            for key, ours in (("exact", "passed"), ("parts", "score"), ("ended", "ended"), ("repeated", "repeated")):
                row[key] = statistics.mean(np.concatenate([one[ours] for one in found]), by_prompt).as_json()
            row["exact_of_seeds"] = [float(one["passed"].mean()) for one in found]
            changes = np.concatenate([one["passed"] - start["passed"] for one in found])
            row["change"] = statistics.mean(changes, by_prompt).as_json()
            folders = [study.work / name / f"round-{number}" for study in studies]
            row["pairs"] = [len(read_rows(folder / "pairs.jsonl")) for folder in folders]
            row["chosen_longer"] = [_longer(folder / "pairs.jsonl") for folder in folders]
            receipts = [read_receipt(folder / "run") for folder in folders]
            row["steps"] = [one["plan"]["steps"] for one in receipts]
            row["alerts"] = [sorted({alert["code"] for alert in one.get("health", [])}) for one in receipts]
            row["on_pairs"] = _on_pairs([one["outcome"]["after"] for one in receipts])
            document[name].append(row)
        if name != "own":
            last = rounds
            gaps = np.concatenate([study.exact("own", last) - study.exact(name, last) for study in studies])
            document[name][-1]["own_less_this"] = statistics.mean(gaps, by_prompt).as_json()
    return document


def _longer(file: Path) -> float:
    """Share of pairs whose chosen answer has more words than the rejected one, ties one half."""
    signs = [
        np.sign(len(row["chosen"][0]["content"].split()) - len(row["rejected"][0]["content"].split()))
        for row in read_rows(file)
    ]
    return float((np.mean(signs) + 1) / 2)


def _on_pairs(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the runs measured on the 500 held-out pairs, a number a seed."""
    return {
        "accuracy": [one["accuracy"]["value"] for one in scored],
        "balanced": [one["length"]["balanced"]["value"] for one in scored],
        "margin": [one["margin"]["value"] for one in scored],
        "gap": [one["logps/chosen"]["value"] - one["logps/rejected"]["value"] for one in scored],
    }


def page(document: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    rows = []
    for name in ARMS:
        for one in document["results"][name]:
            low, high = (100 * bound for bound in one["change"]["ci"])
            pairs = one["on_pairs"]
            rows.append(
                [
                    f"{name}, round {one['round']}",
                    f"{100 * one['exact']['value']:.1f} %",
                    " ".join(f"{100 * share:.1f}" for share in one["exact_of_seeds"]),
                    f"{100 * one['change']['value']:+.1f} ({low:+.1f} to {high:+.1f})",
                    f"{one['parts']['value']:.3f}",
                    f"{100 * one['ended']['value']:.1f} %",
                    f"{100 * np.mean(pairs['accuracy']):.1f} %",
                    f"{100 * np.mean(pairs['balanced']):.1f} %",
                    f"{np.mean(pairs['gap']):.3f}",
                    " ".join(map(str, one["pairs"])),
                    ", ".join(sorted({code for codes in one["alerts"] for code in codes})) or "none",
                ]
            )
    heads = ["arm", "exact", "by seed", "change, points", "parts", "ended"]
    return table([[*heads, "accuracy", "length-balanced", "gap, nats/token", "pairs", "alerts"], *rows])


def plot(document: Mapping[str, Any], file: Path) -> None:
    """Wholly right answers by round, and beside them accuracy on held-out pairs."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "simpo"
    results = document["results"]
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    answers, pairs, balanced = figure.subplots(1, 3, sharey=True)
    for name, colour in zip(ARMS, ("#1b7a4b", "#6d6d6d", "#8a5a00", "#2456a6", "#b3261e", "#7b1fa2"), strict=True):
        rounds = [0, *(one["round"] for one in results[name])]
        exact = [results["start"]["passed"], *(one["exact"] for one in results[name])]
        answers.plot(rounds, [one["value"] for one in exact], "o-", color=colour, label=name)
        low, high = ([one["ci"][end] for one in exact] for end in (0, 1))
        answers.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
        for axes, key in ((pairs, "accuracy"), (balanced, "balanced")):
            shares = [results["start"]["on_pairs"][key][0], *(np.mean(one["on_pairs"][key]) for one in results[name])]
            axes.plot(rounds, shares, "o-", color=colour, label=name)
    for axes, title in (
        (answers, "answers: wholly right"),
        (pairs, "pairs: accuracy"),
        (balanced, "pairs: length-balanced"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("round")
        axes.set_xticks(rounds)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    balanced.legend(fontsize=9, loc="lower right")  # where no line is
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the results go")
    parser.add_argument("--recipe", default="demo-round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", action="store_true", help="tables and figure of results that are there")
    options = parser.parse_args()
    file = options.docs / "on-policy.json"
    if not options.page:
        studies = [Study(options.work, seed, options) for seed in options.seeds]
        if not (options.work / "start" / "scores.rule.jsonl").is_file():
            held_out = studies[0].held_out
            answered(held_out, "builtin:guide", options.work / "start", "-n", "1", "--temperature", "0")
        for study in studies:
            for name in ARMS:
                study.arm(name)
        document = {
            "schema_version": 1,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "cores": os.cpu_count(),
            "recipe": compose(options.recipe, ["data.train=-"]).as_yaml(),
            "seeds": options.seeds,
            "results": measured(studies, options.rounds),
        }
        write_json(file, document)
    document = json.loads(file.read_text("utf-8"))
    plot(document, file.with_suffix(".svg"))
    print(page(document))


if __name__ == "__main__":
    main()
