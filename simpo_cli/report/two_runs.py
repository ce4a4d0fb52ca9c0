"""Two runs side by side: what differs between them, and what the held-out pairs that they share say of that."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simpo_cli.errors import UserError
from simpo_cli.evaluate.metrics import Matched, match, match_in_order
from simpo_cli.evaluate.tables import NOTHING, OTHER_TOKENS, evidence, is_clear, swapped_in_words
from simpo_cli.formatting import Measured, border_in_words, excludes_zero, percent, points_cell, thousands
from simpo_cli.recipe.tree import differences
from simpo_cli.report.figures import Floats
from simpo_cli.report.run_files import Row, RunFiles
from simpo_cli.report.run_tables import shown_value
from simpo_cli.statistics import (
    balanced_difference,
    compare_accuracy,
    length_strata,
    mean,
    proportion,
    smallest_effect,
)

_NAMES = ("name", "output_dir")  # of any two runs they differ
_NOT_SET = "not set"


@dataclass(frozen=True)
class SharedPairs:
    """What the P held-out pairs say that both runs scored after training.

    Attributes:
        pairs, prompts: how many.
        accuracies: of each run.
        difference: the second run less the first, with the keys of `simpo eval`; rewards are left out, since the two
            may have other objectives, and log-probs where tokens differ.
        balanced: accuracies freed of length; None where too few chosen responses are longer, or shorter.
        margins: mean of chosen less rejected of each run, nats per token; None where tokens differ.
        gained: (P,) how much further apart the second run holds chosen and rejected; None where tokens differ.
    """

    pairs: int
    prompts: int
    accuracies: tuple[Measured, Measured]
    difference: Mapping[str, Any]
    balanced: tuple[Measured, Measured] | None
    margins: tuple[Measured, Measured] | None
    gained: Floats | None


@dataclass(frozen=True)
class TwoRuns:
    """Two runs and what they share.

    Attributes:
        first, second: the runs; the second is held against the first.
        shared: None where no held-out pair was scored by both.
        swapped: held-out pairs that the two have with chosen and rejected the other way round.
        by_place: pairs had to be matched by the place of their records, because a run does not tell what they say.
    """

    first: RunFiles
    second: RunFiles
    shared: SharedPairs | None
    swapped: int
    by_place: bool


def compare_runs(first: RunFiles, second: RunFiles) -> TwoRuns:
    """Find the held-out pairs that both runs scored, and compare the runs on them.

    A pair is the same where its texts are; in runs that do not tell (before 0.2), where its prompt and the place of its
    record are, of which the folder is left aside.

    Raises:
        UserError: both are one run.
    """
    if first.path.resolve() == second.path.resolve():
        raise UserError(f"{first.path} and {second.path} are one run.", "Name two runs.")
    by_place = not all("pair" in row for run in (first, second) for row in run.pairs)
    if by_place:
        matched = Matched(match_in_order(_places(first.pairs), _places(second.pairs)), 0)
    else:
        matched = match([row["pair"] for row in first.pairs], [row["pair"] for row in second.pairs])
    shared = None
    if matched.positions:
        ours, theirs = zip(*((first.pairs[i], second.pairs[j]) for i, j in matched.positions), strict=True)
        same_tokens = first.receipt.get("tokenizer_sha256") == second.receipt.get("tokenizer_sha256")
        shared = _compare(ours, theirs, same_tokens=same_tokens)
    return TwoRuns(first, second, shared, matched.swapped, by_place)


def _compare(first: Sequence[Row], second: Sequence[Row], *, same_tokens: bool) -> SharedPairs:
    prompts = [row["prompt"] for row in first]
    chosen, rejected = ([row[f"{side}_tokens"] for row in first] for side in ("chosen", "rejected"))
    gaps = [_column(rows, "chosen_after") - _column(rows, "rejected_after") for rows in (first, second)]
    right = [(np.sign(gap) + 1) / 2 for gap in gaps]  # (P,) 1 where chosen is the likelier one, 0.5 where equal, else 0
    test = compare_accuracy(right[0], right[1], prompts)
    balanced = balanced_difference(right[0], right[1], chosen, rejected, prompts) if same_tokens else None
    strata = [length_strata(one, chosen, rejected, prompts)["balanced"] for one in right] if same_tokens else [None]
    difference = {
        "accuracy": test.difference.as_json(),
        "p_value": test.p_value,
        "test": test.test,
        "wins": test.wins,
        "losses": test.losses,
        "ties": test.ties,
        "smallest_effect": smallest_effect(right[0], right[1], prompts),
        "length_balanced": None if balanced is None else balanced.as_json(),
        "margin_p_value": None,
        "same_tokens": same_tokens,
    }
    if same_tokens:
        difference["margin_per_token"] = mean(gaps[1] - gaps[0], prompts).as_json()
        for side in ("chosen", "rejected"):
            change = _column(second, f"{side}_after") - _column(first, f"{side}_after")
            difference[f"logps/{side}_delta"] = mean(change, prompts).as_json()
    return SharedPairs(
        pairs=len(prompts),
        prompts=len(set(prompts)),
        accuracies=_both(proportion(one, prompts).as_json() for one in right),
        difference=difference,
        balanced=None if None in strata else _both(one.as_json() for one in strata if one is not None),
        margins=_both(mean(gap, prompts).as_json() for gap in gaps) if same_tokens else None,
        gained=gaps[1] - gaps[0] if same_tokens else None,
    )


def comparison_verdict(runs: TwoRuns) -> str:
    """What the shared pairs say, in a sentence or two."""
    shared = runs.shared
    if shared is None:
        without = [name for name, run in (("A", runs.first), ("B", runs.second)) if not run.pairs]
        why = "The runs share no held-out pairs."
        if without:
            why = f"{' and '.join(without)} scored no held-out pairs at the end."
        return f"{why} So no test compares them: what follows are their recipes and their curves."
    difference, (first, second) = shared.difference, (percent(measured["value"]) for measured in shared.accuracies)
    gain, balanced = difference["accuracy"], difference["length_balanced"]
    sentences = [
        f"On the same held-out pairs B is right in {second} and A in {first}: {points_cell(gain).text} points "
        f"(95 % CI {evidence(difference, shared.pairs, shared.prompts)})"
        + ("." if is_clear(difference) else f", {NOTHING}.")
    ]
    if balanced is not None:
        end = "" if excludes_zero(balanced) else f", {NOTHING}"
        sentences.append(f"Length-balanced: {points_cell(balanced)}{end}.")
    sentences += [border_in_words(gain, difference["p_value"]), "One run of each: another seed may say otherwise."]
    return " ".join(filter(None, sentences))


def caveats(runs: TwoRuns) -> list[str]:
    """What a reader of the comparison should know beside it."""
    found = list(filter(None, [swapped_in_words(runs.swapped)]))
    if runs.shared is None:
        return found
    for name, run in (("A", runs.first), ("B", runs.second)):
        if len(run.pairs) > runs.shared.pairs:
            found.append(
                f"{thousands(runs.shared.pairs)} of the {thousands(len(run.pairs))} held-out pairs of {name} are "
                "shared; the others are left out here."
            )
    if runs.by_place:
        same_files = _held_out_files(runs.first) == _held_out_files(runs.second)
        found.append(
            "A run does not tell what its held-out pairs say, so they were matched by prompt and place of the record: "
            "where a response was changed, or chosen and rejected swapped, the runs were not asked the same"
            + ("." if same_files else ", and the files are not the same.")
        )
    if not runs.shared.difference["same_tokens"]:
        found.append(OTHER_TOKENS)
    return found


def recipe_differences(runs: TwoRuns) -> list[tuple[str, str, str]]:
    """(key, value of the first, value of the second) wherever the recipes say something else, names aside.

    What they say counts, not how: a path by what lies there, gamma in either way, a default like the same value.
    """
    first, second, same = runs.first.recipe, runs.second.recipe, _same_content(runs)
    if first is None or second is None:  # one is of another version: as the files have it
        rows = _differences(runs.first.values, runs.second.values, leave=_NAMES)
    else:
        found = differences(first, second, items=True)
        found.pop("loss.gamma_beta_ratio", None)  # gamma says it
        rows = [(key, _shown(first_value), _shown(second_value)) for key, (first_value, second_value) in found.items()]
    return [row for row in rows if re.sub(r"\.\d+\.path$", "", row[0]) not in same]


def other_differences(runs: TwoRuns) -> list[tuple[str, str, str]]:
    """The same of what is not in a recipe: data and model that were read, machine, versions."""
    return _differences(_facts(runs.first), _facts(runs.second))


def _places(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Of each pair its prompt and its place without the folder."""
    return [(row["prompt"], row["where"].rsplit("/", 1)[-1]) for row in rows]


def _same_content(runs: TwoRuns) -> tuple[str, ...]:
    """Keys whose files are the same in both runs, whatever they are called."""
    looked_at: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "model.path": lambda receipt: sorted(receipt["model"]["files"].values()),
        "data.train": lambda receipt: _identities_of(receipt["data"]["train"]),
        "data.eval": lambda receipt: _identities_of(receipt["data"].get("eval") or {}),
        "data.chat_template": lambda receipt: receipt.get("template_sha256"),
    }
    both = runs.first.receipt, runs.second.receipt
    seen = {key: [look(receipt) for receipt in both] for key, look in looked_at.items()}
    return tuple(key for key, (one, other) in seen.items() if one and one == other)


def _identities_of(source: Mapping[str, Any]) -> list[str]:
    return [file["identity"] for file in source.get("files", [])]


def _column(rows: Sequence[Row], name: str) -> Floats:
    """(P,) one number of every pair."""
    return np.array([row[name] for row in rows], dtype=np.float64)


def _both(found: Iterable[Measured]) -> tuple[Measured, Measured]:
    first, second = found
    return first, second


def _held_out_files(run: RunFiles) -> list[str]:
    data = run.receipt["data"]
    return sorted(file["identity"] for file in (data.get("eval") or data["train"])["files"])


def _facts(run: RunFiles) -> dict[str, Any]:
    receipt, data = run.receipt, run.receipt["data"]
    facts: dict[str, Any] = {
        "model files": _short(receipt["model"]["files"].values()) or receipt["model"].get("revision"),
        "tokenizer": _short([receipt.get("tokenizer_sha256", "")]),
        "template": _short([receipt.get("template_sha256", "")]),
        "training files": _short(file["identity"] for file in data["train"]["files"]),
        "pairs trained on": data["train"]["records"]["trained"],
        "steps": receipt["plan"]["steps"],
        "packing": (receipt.get("self_check") or {}).get("packing"),
    }
    facts |= {key: receipt["hardware"].get(key) for key in ("device", "threads", "cpu_capability", "compute")}
    return {**facts, **receipt["versions"]}


def _short(digests: Any) -> str:
    return ", ".join(digest[:12] for digest in digests)


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], leave: Sequence[str] = ()
) -> list[tuple[str, str, str]]:
    keys = [*first, *(key for key in second if key not in first)]
    rows = [(key, first.get(key, _NOT_SET), second.get(key, _NOT_SET)) for key in keys if key not in leave]
    return [(key, _shown(one), _shown(other)) for key, one, other in rows if one != other]


def _shown(value: Any) -> str:
    return _NOT_SET if value is None else shown_value(value)
