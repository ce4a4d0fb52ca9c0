"""What was measured of models on pairs, as tables and sentences: for `simpo eval`, a run's end, its page and its card.

All read JSON documents (docs/evaluation.md), so that a run of long ago and a model just scored look the same.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from simpo_cli.formatting import (
    FEW_PROMPTS,
    LEVEL,
    LOG_PROB_DIGITS,
    LOSS_DIGITS,
    MARGIN_DIGITS,
    Cell,
    Measured,
    border_in_words,
    change_cell,
    effective_prompts,
    excludes_zero,
    few_prompts,
    fixed,
    number_cell,
    p_in_words,
    percent,
    points_cell,
    prompts_in_words,
    share_cell,
    thousands,
)
from simpo_cli.table import MEASURED, Remark, Row, Table, measured_row

TESTS = {
    "mcnemar-exact": "exact McNemar test",
    "sign-flip-by-prompt": "sign-flip test by prompt",
    "wilcoxon": "Wilcoxon's signed-rank test",
    "datta-satten": "Datta and Satten's signed-rank test by prompt",
}
NOTHING = "not distinguishable from zero"
RULES = {"longer_wins": "the longer response wins", "surface": "surface features only"}
OTHER_TOKENS = (
    "The two score other tokens (another tokenizer or template): a log-prob per token of one says nothing beside one "
    "of the other, so margins, loss and drift are left out. Which response each prefers can be compared, and is."
)
OTHER_REWARDS = "The two have other objectives, so their margins and losses are in other units and are left out."

Show = Callable[[Measured], Cell]

_margin = partial(number_cell, digits=MARGIN_DIGITS)
_loss = partial(number_cell, digits=LOSS_DIGITS)
_log_prob = partial(number_cell, digits=LOG_PROB_DIGITS)
_log_prob_change = partial(change_cell, digits=LOG_PROB_DIGITS)

MEASURES: dict[str, tuple[str, Show]] = {
    "accuracy": ("accuracy", share_cell),
    "length.chosen_longer": ("  chosen is longer", share_cell),
    "length.chosen_shorter": ("  chosen is shorter", share_cell),
    "length.balanced": ("  length-balanced", share_cell),
    "margin": ("mean margin", _margin),
    "margin_median": ("  median", _margin),
    "target_reached": ("  past gamma", share_cell),
    "loss": ("loss", _loss),
    "logps/chosen": ("chosen log-prob, nats/token", _log_prob),
    "logps/rejected": ("rejected log-prob, nats/token", _log_prob),
    "length.spearman": ("Spearman with length", partial(number_cell, digits=2)),
    "length.spearman_within": ("  within pairs", partial(number_cell, digits=2)),
    "calibration.ece": ("calibration error", partial(number_cell, digits=3)),
    "calibration.brier": ("  Brier score", partial(number_cell, digits=3)),
}
"""What is measured of one model on pairs: the key in its document, the label, and how the number looks."""
BRIEFLY = ("accuracy", "length.balanced", "margin", "loss", "logps/chosen")
"""Those of them that the last screen of a run has."""
OUTCOME = (*BRIEFLY, "target_reached", "logps/rejected", "length.spearman")
"""And those that are shown before and after training."""
DIFFERENCES: dict[str, tuple[str, Show]] = {
    "accuracy": ("difference, points", points_cell),
    "length_balanced": ("  length-balanced", points_cell),
    "margin": ("mean margin", partial(change_cell, digits=MARGIN_DIGITS)),
    "margin_per_token": ("margin, nats/token", _log_prob_change),
    "loss": ("loss", partial(change_cell, digits=LOSS_DIGITS)),
    "logps/chosen_delta": ("chosen log-prob, nats/token", _log_prob_change),
    "logps/rejected_delta": ("rejected log-prob, nats/token", _log_prob_change),
    "chosen_fell": ("chosen became less likely", share_cell),
}
"""What is measured of one model less another."""
CHECKED = {
    "exact": ("wholly right answers", TESTS["mcnemar-exact"]),
    "parts": ("right parts of answers", "signed-rank test"),
}
"""What is measured of answers that a rule can check, with the test of the difference."""


def find(document: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; None where there is none."""
    found: Any = document
    for part in key.split("."):
        found = None if found is None else found.get(part)
    return found


def eval_table(one: Mapping[str, Any]) -> Table:
    """Everything that was measured of one model: the document of `simpo eval --json` for it."""
    rows = []
    for key, (label, show) in MEASURES.items():
        found = find(one, key)
        if found is not None or not key.startswith("length.spearman"):
            rows.append(measured_row(label, show, found))
        if key == "length.balanced":
            rows += [Row("to beat"), Row("  random baseline", (Cell(percent(0.5)),))]
            rows += [measured_row(f"  {name}", share_cell, rule) for name, rule in _rules(one["baselines"])]
        if key == "length.spearman_within" and len(buckets := one["length"]["buckets"]) > 1:
            rows.append(Row("accuracy by chosen - rejected, tokens"))
            rows += [measured_row(f"  {span_of(of)}", share_cell, of["accuracy"], of["pairs"]) for of in buckets]
    if one["baseline"] is not None:
        rows.append(Row(f"against {one['baseline']['model']}"))
        rows.append(measured_row("  its accuracy", share_cell, one["baseline"]["accuracy"]))
        rows += _difference_rows(one["difference"], indent="  ")
    if one["save"] is not None:
        rows.append(Row("what the save cost, against float32"))
        cost = one["save"]["difference"]
        rows += _difference_rows(cost, ("accuracy",), indent="  ")
        rows.append(measured_row("  mean margin", partial(change_cell, digits=3), cost["margin"]))
    return Table(MEASURED, [*rows, *_slice_rows(one["slices"])], remarks=list(_remarks(one)))


def difference_table(difference: Mapping[str, Any], keys: Container[str] = DIFFERENCES) -> Table:
    """One model less another; rewards only where they can be compared."""
    return Table(MEASURED, _difference_rows(difference, keys), remarks=list(_difference_remarks(difference)))


def seeds_table(group: Mapping[str, Any]) -> Table:
    """Means over runs of one recipe with several seeds."""
    of_keys = {
        "accuracy": MEASURES["accuracy"],
        "length_balanced": MEASURES["length.balanced"],
        "margin": MEASURES["margin"],
        "difference": DIFFERENCES["accuracy"],
        "length_balanced_difference": DIFFERENCES["length_balanced"],
    }
    rows = [measured_row(*shown, group[key]) for key, shown in of_keys.items() if group[key] is not None]
    remark = "n counts runs; the intervals are for other seeds on these same pairs."
    return Table(MEASURED, rows, remarks=[Remark("counted", remark)])


def outcome_table(outcome: Mapping[str, Any], keys: Container[str] = OUTCOME) -> Table:
    """The start model beside the saved one: the `outcome` of run.json, of any version; no rows without both."""
    if "before" not in outcome:
        return Table(("before", "after"), [])
    before, after, gain = outcome["before"], outcome["after"], outcome["difference"]
    few = f"; under {FEW_PROMPTS}, intervals are rough" if effective_prompts(after) < FEW_PROMPTS else ""
    longer = after["baselines"].get("longer_wins")
    remarks = {
        "accuracy": f"{prompts_in_words(after)}, one seed{few}",
        "length.balanced": f"{RULES['longer_wins']} in {share_cell(longer)}" if longer is not None else "",
        "margin": "in units of the reward",
    }
    rows = []
    for key, (label, show) in MEASURES.items():
        both = find(before, key), find(after, key)
        if key in keys and (None not in both or not key.startswith("length.spearman")):
            rows.append(Row(label, tuple(_outcome_cell(one, show) for one in both), remarks.get(key, "")))
        if key == "accuracy":
            remark = f"{p_in_words(gain['p_value'])}, {TESTS[gain['test']]}"
            rows.append(Row("  gain, points", (Cell(""), points_cell(gain["accuracy"])), remark))
    if before["ties"] or after["ties"]:
        rows.append(Row("ties", (Cell(thousands(before["ties"])), Cell(thousands(after["ties"])))))
    rows += _checked_rows(outcome["checked"]) if "checked" in outcome else []
    return Table(("before", "after"), rows, title=f"{thousands(after['pairs'])} held-out pairs")


def _checked_rows(checked: Mapping[str, Any]) -> Iterator[Row]:
    """Wholly right answers and right parts, before and after; intervals are by prompt."""
    remark = f"greedy, to {thousands(checked['prompts'])} held-out prompts"
    for key, (label, test) in CHECKED.items():
        one = checked[key]
        yield Row(label, (share_cell(one["before"]), share_cell(one["after"])), remark)
        tested = f"{p_in_words(one['p_value'])}, {test}"
        yield Row("  gain, points", (Cell(""), points_cell(one["difference"])), tested)
        remark = ""


def rules_table(known: Mapping[str, Any]) -> Table:
    """Accuracy on the same pairs without any model."""
    rows = [Row("random baseline", (Cell(percent(0.5)),))]
    rows += [Row(name, (share_cell(rule),)) for name, rule in _rules(known) if rule is not None]
    return Table(("same pairs",), rows, title="accuracy to beat")


def unbeaten(one: Mapping[str, Any]) -> list[Remark]:
    """Rules without a model that the model does not surely beat."""
    low = one["accuracy"]["ci"][0]
    return [
        Remark("rule", f"The model does not clearly beat this rule: {name}, {share_cell(rule)} of {rule['n']:,} pairs.")
        for name, rule in _rules(one["baselines"])
        if rule is not None and None not in rule["ci"] and low is not None and low <= rule["ci"][1]
    ]


def is_clear(difference: Mapping[str, Any]) -> bool:
    """Whether a difference in accuracy is more than chance, by its interval and by its test."""
    return excludes_zero(difference["accuracy"]) and difference["p_value"] < LEVEL


def gain_in_words(outcome: Mapping[str, Any]) -> str:
    """`before`, `after` and `difference` as one sentence."""
    before, after, difference = outcome["before"], outcome["after"], outcome["difference"]
    gain, verb, end = difference["accuracy"]["value"], "went", f": {NOTHING}"
    if is_clear(difference):
        verb, end = f"{'rose' if gain > 0 else 'fell'} {100 * abs(gain):.1f} points,", ""
    shares = [percent(one["accuracy"]["value"]) for one in (before, after)]
    sentence = (
        f"Held-out accuracy {verb} from {shares[0]} to {shares[1]} (95 % CI of the difference "
        f"{evidence(difference, after['pairs'], after['prompts'])}){end}"
    )
    balanced = difference.get("length_balanced")
    if balanced is None:
        return f"{sentence}; length-balanced: too few pairs on one side to say."
    return f"{sentence}; length-balanced {points_cell(balanced)}{'' if excludes_zero(balanced) else f': {NOTHING}'}."


def checked_in_words(outcome: Mapping[str, Any]) -> str:
    """What became of wholly right answers and right parts, as one sentence; nothing where no rule checked any."""
    if (checked := outcome.get("checked")) is None:
        return ""
    exact, parts, verb, end = checked["exact"], checked["parts"], "went", f": {NOTHING}"
    if change := checked_change(checked):
        verb, end = f"{'rose' if change > 0 else 'fell'} {100 * abs(change):.1f} points,", ""
    before, after = (percent(exact[when]["value"]) for when in ("before", "after"))
    return (
        f"Wholly right answers {verb} from {before} to {after} (95 % CI of the difference "
        f"{points_cell(exact['difference']).below}, n = {thousands(checked['prompts'])} prompts, "
        f"{p_in_words(exact['p_value'])}, {TESTS['mcnemar-exact']}){end}; right parts of answers "
        f"{points_cell(parts['difference'])}."
    )


def checked_change(checked: Mapping[str, Any]) -> float:
    """By how much the share of wholly right answers changed, 0 where that is no more than chance."""
    exact = checked["exact"]
    is_more = excludes_zero(exact["difference"]) and exact["p_value"] < LEVEL
    return float(exact["difference"]["value"]) if is_more else 0.0


def evidence(difference: Mapping[str, Any], pairs: int, prompts: int) -> str:
    """The interval of a difference in accuracy, its n and its test."""
    return (
        f"{points_cell(difference['accuracy']).below}, n = {thousands(pairs)} pairs of {thousands(prompts)} prompts, "
        f"{p_in_words(difference['p_value'])}, {TESTS[difference['test']]}"
    )


def failure_in_words(failure: Mapping[str, Any]) -> str:
    """Which model could not be scored, and why."""
    where = f"{failure['where']}: " if failure["where"] else ""
    return f"{failure['model']}: {where}{failure['problem']}"


def swapped_in_words(swapped: int) -> str:
    """What is to be said of pairs whose labels differ; nothing where there are none."""
    if not swapped:
        return ""
    pairs = "1 pair has" if swapped == 1 else f"{swapped:,} pairs have"
    return f"{pairs} chosen and rejected the other way round in the two: they are not the same pairs and are left out."


def span_of(bucket: Mapping[str, Any]) -> str:
    """The lengths of a bucket, such as -40 to -8."""
    low, high = (f"{bound:+,}" if bound else "0" for bound in (bucket["from"], bucket["to"]))
    return low if low == high else f"{low} to {high}"


def _rules(known: Mapping[str, Any]) -> list[tuple[str, Measured | None]]:
    """By name; the classifier only where training pairs are known to fit it on."""
    return [(name, known.get(key)) for key, name in RULES.items() if known.get(key) is not None or key != "surface"]


def _outcome_cell(measured: Measured | float | None, show: Show) -> Cell:
    if measured is None:
        return Cell("too few pairs")
    return show(measured) if isinstance(measured, Mapping) else Cell(fixed(measured, 2))  # of 0.1: without interval


def _difference_rows(difference: Mapping[str, Any], keys: Container[str] = DIFFERENCES, indent: str = "") -> list[Row]:
    return [
        measured_row(indent + label, show, difference[key])
        for key, (label, show) in DIFFERENCES.items()
        if key in keys and difference.get(key) is not None
    ]


def _slice_rows(by_column: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Row]:
    for column, slices in by_column.items():
        yield Row(f"by {column}")
        for one in slices:
            name = "(none)" if one["value"] is None else one["value"]
            shown = name if len(name) <= 30 else name[:29] + "…"
            yield measured_row(f"  {shown}", share_cell, one["accuracy"], one["pairs"])
            if one["difference"] is not None:
                label = f"    difference, points, Holm {p_in_words(one['p_value_holm'])}"
                yield measured_row(label, points_cell, one["difference"])


def _remarks(one: Mapping[str, Any]) -> Iterator[Remark]:
    """What to know beside the numbers of one model."""
    prompts, difference, noise = one["prompts"], one["difference"], one["noise"]
    counted = f"{thousands(one['pairs'])} pairs of {thousands(prompts)} prompts"
    yield Remark("counted", f"{counted}; intervals are by prompt.")
    if one["ties"]:
        yield Remark("ties", f"Equal rewards: {thousands(one['ties'])} pairs, counted one half.")
    if any(one["length"][name] is None for name in ("chosen_longer", "chosen_shorter", "balanced")):
        yield Remark("strata", "Too few: under 10 pairs in which the chosen response is longer (or shorter).")
    if difference is not None:
        yield from _difference_remarks(difference)
    yield from unbeaten(one)
    by_chance = fixed(one["calibration"]["ece_by_chance"], 3)
    yield Remark(
        "calibration", f"Calibration error: a model whose confidence is right shows about {by_chance} on so many pairs."
    )
    whose = "the model" if difference is None else "the baseline"
    again, changed = thousands(noise["pairs"]), thousands(round(noise["accuracy"] * noise["pairs"]))
    yield Remark(
        "noise",
        f"Arithmetic: scored again as {noise['packing']}, {whose} moves the margins of {again} pairs by "
        f"{noise['margin']:.1g} (root mean square), and {changed} of them change sides.",
    )
    within = [name for name in ("accuracy", "margin") if difference is not None and difference["is_noise"][name]]
    if within:
        yield Remark("noise", f"The difference in {' and in '.join(within)} is no more than that: noise.")
    if few := few_prompts(one):
        yield Remark("few prompts", f"{few} Evaluate on at least {FEW_PROMPTS}.")


def _difference_remarks(difference: Mapping[str, Any]) -> Iterator[Remark]:
    """How sure a difference is, and what it could not have shown."""
    p_value, holm = difference["p_value"], difference.get("p_value_holm")
    adjusted = "" if holm is None or holm == p_value else f", with all tests here in mind {p_in_words(holm)}"
    counts = ", ".join(
        f"{thousands(difference[name])} pair{'' if difference[name] == 1 else 's'} {verb}"
        for name, verb in (("wins", "won"), ("losses", "lost"), ("ties", "the same"))
    )
    yield Remark("test", f"Difference: {p_in_words(p_value)}{adjusted} ({TESTS[difference['test']]}); {counts}.")
    if border := border_in_words(difference["accuracy"], p_value):
        yield Remark("border", border)
    if difference["margin_p_value"] is not None:
        test = TESTS[difference["margin_test"]]
        yield Remark("test", f"Margin: {p_in_words(difference['margin_p_value'])} ({test}).")
    if difference["smallest_effect"] is not None:
        points = f"{100 * difference['smallest_effect']:.1f}"
        yield Remark("power", f"A true difference under {points} points would often be missed with so many pairs.")
    if not difference["same_tokens"]:
        yield Remark("units", OTHER_TOKENS)
    elif not difference.get("same_rewards", True):
        yield Remark("units", OTHER_REWARDS)
