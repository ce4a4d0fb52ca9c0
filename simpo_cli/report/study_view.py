"""What a study found, for a person: trials, the comparison on new seeds, and the sentence; the page draws them too."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from simpo_cli.formatting import Cell, percent, thousands
from simpo_cli.report.console import Console, print_table, print_wrapped
from simpo_cli.table import Remark, Row, Table
from simpo_cli.tune.folder import LIKENESS, OBJECTIVES, UTILITY

Document = Mapping[str, Any]
_ON_PAIRS = ("accuracy", "balanced")
_DROPPED = ("length-balanced", "steps", LIKENESS, "accuracy")  # where the terminal is narrow


def print_study(console: Console, document: Document) -> None:
    """The whole of it."""
    console.print()
    print_table(console, trials_table(document), styles=("bold", "dim"), right=True, drop=_DROPPED)
    if document["confirmed"] is not None:
        console.print()
        print_table(console, confirmed_table(document), styles=("bold", "dim"), right=True)
    console.print()
    for line in conclusions(document):
        print_wrapped(console, Text(""), line)


def conclusions(document: Document) -> list[str]:
    """What was found, how often the confirming half was looked at, and how long trials were."""
    verdict, found = document["verdict"], document["range"]
    if verdict is None:
        return ["The search is not finished yet."]
    lines = [verdict["sentence"]]
    confirmed = document["confirmed"]
    if confirmed is not None and confirmed.get("from_start") is not None:
        before = confirmed["from_start"]
        lines.append(
            f"From before training to the winner: {document['objective']} {before['start']:.3f} to "
            f"{before['winner']:.3f}, {before['value']:+.3f} ({before['ci'][0]:+.3f} to {before['ci'][1]:+.3f})."
        )
    if confirmed is not None and confirmed.get("on_pairs") is not None:
        pairs = confirmed["on_pairs"]
        lines.append(
            f"Accuracy on the same half: {percent(pairs['winner'])} against {percent(pairs['untuned'])}, "
            f"{100 * pairs['value']:+.1f} points ({100 * pairs['ci'][0]:+.1f} to {100 * pairs['ci'][1]:+.1f}), "
            f"n = {thousands(pairs['n'])} pairs."
        )
    if confirmed is not None and (looks := confirmed.get("looks")) is not None:
        times = "the first time" if looks == 1 else f"the {_ordinal(looks)} time"
        lines.append(f"These held-out pairs were looked at for a confirmation for {times}.")
    best, before = (one["measures"]["objective"] for one in (document["winner"], document["start"]["choosing"]))
    if best is not None and best < before:
        lines.append(
            f"On the choosing half no trial reached the model before training, which has {before:.3f}: more steps, or "
            "lower learning rates, may."
        )
    steps, of_run = found["trial_steps"], found["recipe_steps"]
    if steps < of_run:
        few = 4 * steps < of_run
        advice = " So few say little of it: give tune.budget at least a quarter of them a trial." if few else ""
        lines.append(
            f"Trials took {steps:,} of the {of_run:,} steps of a run: the best learning rate of a longer one may be "
            f"lower.{advice}"
        )
    return lines


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def short_key(key: str) -> str:
    """A key without its section."""
    return key.rpartition(".")[2]


def shown_value(value: Any) -> str:
    """A value of a key that is searched."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def trials_table(document: Document) -> Table:
    """The trials on the choosing half."""
    objective, keys = document["objective"], list(document["current"])
    columns = (*(short_key(key) for key in keys), "steps", *_of_answers(objective), "accuracy", "length-balanced")
    winner, start = document["winner"], document["start"]["choosing"]
    rows = []
    if start is not None:
        rows.append(Row("   before training", (*(Cell("") for _ in range(len(keys) + 1)), *_worth(start, objective))))
    for trial in document["trials"]:
        if trial["part"] != "choosing":
            continue
        measures = trial["measures"]
        cells = [Cell(shown_value(trial["values"][key])) for key in keys] + [Cell(thousands(trial["steps"]))]
        cells += _worth(trial, objective)
        is_winner = winner is not None and trial["id"] == winner["id"] and not measures["reasons"]
        remark = "the winner of the search" if is_winner else ""
        if measures["reasons"]:
            remark = f"ruled out: {'; '.join(measures['reasons'])}"
        rows.append(Row(f"{trial['number']:>2} {stage_name(trial['stage'])}", tuple(cells), remark))
    below = []
    if start is not None:
        low, middle, high = (start["gap_quantiles"][q] for q in ("0.05", "0.5", "0.95"))
        half = f"choosing half: {start['pairs']:,} pairs of {start['prompts']:,} prompts, one seed"
        gap = f"start model's gap, nats/token: median {middle:.2f}, 90 % of the pairs between {low:.2f} and {high:.2f}"
        below = [Remark("half", half), Remark("gap", gap)]
        if objective == UTILITY:
            utility = "utility: likeness plus half of length-balanced accuracy, of the prompts that were answered"
            below.insert(0, Remark("utility", utility))
    return Table(columns, rows, remarks=below)


def _worth(measured: Document, objective: str) -> list[Cell]:
    """What the start model or a trial came to."""
    of = measured["measures"]
    answers = [Cell(_three_digits(of.get(key))) for key in _of_answers(objective)]
    return [*answers, *(Cell(_percent(of.get(key))) for key in _ON_PAIRS)]


def _of_answers(objective: str) -> tuple[str, ...]:
    """What is shown of the answers: what chooses, and what it is made of."""
    return (objective, LIKENESS) if objective == UTILITY else (objective,)


def _three_digits(measured: Document | None) -> str:
    return "" if measured is None else f"{measured['value']:.3f}"


def _percent(measured: Document | None) -> str:
    return "" if measured is None else percent(measured["value"])


def stage_name(stage: str) -> str:
    """A stage as a row begins with it."""
    return {"untuned": "your recipe"}.get(stage, short_key(stage))


def confirmed_table(document: Document) -> Table:
    """The start model, and recipe and winner with new seeds, on the confirming half."""
    confirmed, objective = document["confirmed"], document["objective"]
    before = document["start"]["confirming"]["measures"]
    rows = []
    names = {objective: OBJECTIVES[objective], LIKENESS: "likeness to the chosen responses"}
    names |= {"accuracy": "accuracy", "balanced": "length-balanced accuracy"}
    names |= {"ended": "answers that end", "repeating": "answers that repeat themselves"}
    for key, name in names.items():
        arms = [confirmed["arms"][arm][key] for arm in ("untuned", "winner")]
        if any(value is None for arm in arms for value in arm):
            continue
        show = (lambda value: f"{value:.3f}") if key in (objective, LIKENESS) else percent
        cells = [[before[key]["value"]], *arms]
        rows.append(Row(name, tuple(Cell(" ".join(show(value) for value in values)) for values in cells)))
    columns = ("before training", "your recipe", "the winner")
    return Table(columns, rows, remarks=[Remark("seeds", _seeds(confirmed, document))])


def _seeds(confirmed: Document, document: Document) -> str:
    start = document["start"]["confirming"]
    seeds = ", ".join(map(str, confirmed["seeds"]))
    return f"confirming half: {start['pairs']:,} pairs of {start['prompts']:,} prompts, seeds {seeds}, a number each"
