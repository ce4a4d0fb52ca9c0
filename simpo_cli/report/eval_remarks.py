"""What to know beside the numbers of `simpo eval`, in sentences."""

from collections.abc import Mapping
from typing import Any

from simpo_cli.formatting import (
    FEW_PROMPTS,
    border_in_words,
    fixed,
    p_in_words,
    prompts_in_words,
    share_cell,
    thousands,
)
from simpo_cli.report.console import printable
from simpo_cli.report.verdict import TESTS

_TESTS = {
    **TESTS,
    "wilcoxon": "Wilcoxon's signed-rank test",
    "datta-satten": "Datta and Satten's signed-rank test by prompt",
}
OTHER_TOKENS = (
    "The two score other tokens (another tokenizer or template): a log-prob per token of one says nothing beside one "
    "of the other, so margins, loss and drift are left out. Which response each prefers can be compared, and is."
)
OTHER_REWARDS = "The two have other objectives, so their margins and losses are in other units and are left out."


def remarks(result: Mapping[str, Any]) -> list[str]:
    """The sentences below the table of one model."""
    pairs = result["pairs"]
    prompts = result.get("prompts", pairs)
    said = [f"{thousands(pairs)} pairs of {thousands(prompts)} prompts; intervals are by prompt."]
    if result.get("ties"):
        said.append(f"Equal rewards: {thousands(result['ties'])} pairs, counted one half.")
    length = result.get("length") or {}
    if any(name in length and length[name] is None for name in ("chosen_longer", "chosen_shorter", "balanced")):
        said.append("Too few: under 10 pairs in which the chosen response is longer (or shorter).")
    difference = result.get("difference")
    if result.get("baseline") and difference:
        said += difference_remarks(difference)
    said += _not_beaten(result)
    calibration = result.get("calibration")
    if calibration:
        by_chance = fixed(calibration["ece_by_chance"], 3)
        said.append(f"Calibration error: a model whose confidence is right shows about {by_chance} on so many pairs.")
    if result.get("noise"):
        said += _noise(result)
    effective = result.get("effective_prompts", prompts)
    if effective < FEW_PROMPTS:
        few = prompts_in_words(prompts, effective)
        said.append(f"Only {few}: too few to conclude much. Evaluate on at least {FEW_PROMPTS}.")
    return said


def failure_in_words(failure: Mapping[str, Any]) -> str:
    """Which model could not be scored, and why."""
    where = f"{failure['where']}: " if failure["where"] else ""
    return f"{failure['model']}: {where}{failure['problem']}"


def difference_remarks(difference: Mapping[str, Any]) -> list[str]:
    """How sure a difference is, and what it could not have shown."""
    counts = ", ".join(
        f"{thousands(difference[name])} pair{'' if difference[name] == 1 else 's'} {said}"
        for name, said in (("wins", "won"), ("losses", "lost"), ("ties", "the same"))
        if name in difference
    )
    test = _TESTS.get(difference["test"], printable(str(difference["test"])))
    said = [f"Difference: {p_in_words(difference['p_value'])} ({test})" + (f"; {counts}." if counts else ".")]
    holm = difference.get("p_value_holm")
    if holm is not None and holm != difference["p_value"]:
        said[0] = said[0].replace(f" ({test})", f", with all tests here in mind {p_in_words(holm)} ({test})", 1)
    if border := border_in_words(difference["accuracy"], difference["p_value"]):
        said.append(border)
    if difference.get("margin_p_value") is not None:
        said.append(f"Margin: {p_in_words(difference['margin_p_value'])} ({_TESTS[difference['margin_test']]}).")
    if difference.get("smallest_effect") is not None:
        points = f"{100 * difference['smallest_effect']:.1f}"
        said.append(f"A true difference under {points} points would often be missed with so many pairs.")
    if difference.get("same_tokens") is False:
        said.append(OTHER_TOKENS)
    elif difference.get("same_rewards") is False:
        said.append(OTHER_REWARDS)
    return said


def _not_beaten(result: Mapping[str, Any]) -> list[str]:
    """Rules without a model that the model does not surely beat."""
    low = result["accuracy"]["ci"][0]
    names = {"longer_wins": "Picking the longer response", "surface": "A classifier of surface features"}
    return [
        f"{names[key]} gets {share_cell(rule).text} ({share_cell(rule).below}, n {thousands(rule['n'])}): the model "
        "does not clearly beat that."
        for key, rule in (result.get("baselines") or {}).items()
        if rule is not None and key in names and low <= rule["ci"][1]
    ]


def _noise(result: Mapping[str, Any]) -> list[str]:
    noise, difference = result["noise"], result.get("difference")
    whose = "the baseline" if difference else "the model"
    flips = round(noise["accuracy"] * noise["pairs"])
    said = [
        f"Arithmetic: scored again as {noise['packing']}, {whose} moves the margins of {thousands(noise['pairs'])} "
        f"pairs by {noise['margin']:.1g} (root mean square), and {thousands(flips)} of them change sides."
    ]
    is_noise = (difference or {}).get("is_noise") or {}
    within = [name for name in ("accuracy", "margin") if is_noise.get(name)]
    if within:
        said.append(f"The difference in {' and in '.join(within)} is no more than that: noise.")
    return said
