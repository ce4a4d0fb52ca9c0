"""What the model of a round is worth: its greedy answers to held-out prompts, scored, and when a round is the last.

A model may tell better answers from worse ones ever more surely while the answers that it writes get worse: its loss
looks at the pairs alone. So rounds are judged by answers, and what is measured on pairs stands beside.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpo_cli import statistics
from simpo_cli.evaluate.generate.measures import repeated_share
from simpo_cli.files import object_in
from simpo_cli.formatting import change_cell, interval_in_words, percent, points_cell
from simpo_cli.pairs.make import account_of
from simpo_cli.pairs.samples import SampleFolder
from simpo_cli.pairs.scorer import ScorerKind
from simpo_cli.recipe.schema import Recipe
from simpo_cli.run.documents import read_receipt

TOLERATED = 0.02
"""So much fewer answers may end, or so much more of them be repetition, before a round is stopped for it."""

Floats = NDArray[np.float64]
Row = dict[str, Any]


class _Guard(NamedTuple):
    """What stops the rounds when it gets worse by more than chance."""

    name: str  # of a number in `held_out`
    words: str
    is_better_low: bool = False
    tolerated: float = 0.0


_GUARDS = (
    _Guard("passed", "share of answers that reach the bar"),
    _Guard("score", "mean score of the answers"),
    _Guard("ended", "share of answers that end", tolerated=TOLERATED),
    _Guard("repeated", "share of 4-grams that are repetition", is_better_low=True, tolerated=TOLERATED),
)


def round_folder(path: Path, number: int) -> Path:
    """The folder of a round; 0 is that of the start model."""
    return path / f"round-{number}"


def measured_round(path: Path, number: int, kind: ScorerKind, recipe: Recipe) -> Row:
    """What rounds.json says of a round.

    `held_out` holds the means over the greedy answers, `change` the difference to the start model and to the round
    before, by prompt, and `on_pairs` what the run measured on held-out pairs, or null where it measured nothing.
    """
    folder, bar = round_folder(path, number), recipe.pairs.min_score
    values = answer_values(folder / "held-out", kind, bar)
    row: Row = {
        "round": number,
        "model": str(folder / "run" / "model") if number else recipe.model.path,
        "pairs": None,
        "held_out": {name: _mean(numbers) for name, numbers in values.items()},
        "change": {},
        "on_pairs": None,
    }
    if number:
        made = object_in(account_of(folder / "pairs.jsonl").read_bytes())
        row["pairs"] = {key: made[key] for key in ("prompts", "pairs", "without_pair", "chosen_longer")}
        row["on_pairs"] = on_pairs(path, number, "after")
        for name, other in (("start", 0), ("before", number - 1)):
            earlier = answer_values(round_folder(path, other) / "held-out", kind, bar)
            row["change"][name] = {key: _change(earlier[key], values[key]) for key in values}
    return row


def answer_values(folder: Path, kind: ScorerKind, bar: float | None) -> dict[str, Floats]:
    """Of the one answer to each prompt, in the order of the prompts: what each is counted for.

    Returns:
        (prompts,) numbers by name. `score` is NaN where there is none; `passed`, only with a bar, says that an answer
        reaches it and has ended; `ended`; `repeated`, the share of its 4-grams that are repetition; `tokens`.
    """
    opened = SampleFolder.open(folder)
    _, scores = opened.scores(kind)
    answers = [one.answer for _, one in opened.answers()]
    found = [scores[one.key, 0].value for one in answers]
    score = np.array([np.nan if value is None else value for value in found])
    ended = np.array([one.ended for one in answers], dtype=np.float64)
    values = {} if bar is None else {"passed": ended * (score >= bar)}
    return values | {
        "score": score,
        "ended": ended,
        "repeated": np.array([repeated_share(one.ids) for one in answers]),
        "tokens": np.array([len(one.ids) for one in answers], dtype=np.float64),
    }


def _mean(numbers: Floats) -> Row | None:
    """The mean with its interval, of those that are numbers; shares of yes and no as proportions."""
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return None
    measure = statistics.proportion if _are_shares(known) else statistics.mean
    return measure(known).as_json()


def _change(earlier: Floats, later: Floats) -> Row | None:
    """Later less earlier, prompt by prompt, of the prompts that have both numbers."""
    both = np.isfinite(earlier) & np.isfinite(later)
    if not both.any():
        return None
    one, other = earlier[both], later[both]
    if _are_shares(one) and _are_shares(other):
        return statistics.compare_accuracy(one, other).difference.as_json()
    return statistics.mean(other - one).as_json()


def _are_shares(numbers: Floats) -> bool:
    return bool(np.isin(numbers, (0.0, 1.0)).all())


def on_pairs(path: Path, number: int, when: str) -> Row | None:
    """What a round's run measured on held-out pairs before or after; None where it measured nothing.

    `gap` is m(y_w|x) - m(y_l|x), nats per token: a margin counts beta with it.
    """
    scored = read_receipt(round_folder(path, number) / "run")["outcome"].get(when)
    if scored is None:
        return None
    gap = scored["logps/chosen"]["value"] - scored["logps/rejected"]["value"]
    return {"accuracy": scored["accuracy"], "balanced": scored["length"]["balanced"], "gap": gap}


def best_of(rounds: Sequence[Mapping[str, Any]]) -> int:
    """The first round with the most answers that reach the bar, or where there is none the highest mean score."""
    return int(max(rounds, key=worth_of)["round"])


def worth_of(row: Mapping[str, Any]) -> float:
    """The number that rounds are compared by; a round none of whose answers has a score is the worst."""
    held_out = row["held_out"]
    worth = held_out.get("passed") or held_out["score"]
    return -np.inf if worth is None else float(worth["value"])


def fallen(rounds: Sequence[Mapping[str, Any]]) -> Row | None:
    """Why the last round is the last: what got worse, since the start or the round before; None where nothing did.

    Worse is what the whole 95 % interval of the change, by prompt, says, and more than is tolerated.
    """
    last = rounds[-1]
    for since, changes in last["change"].items():
        for guard in _GUARDS:
            change = changes.get(guard.name)
            if change is None or None in change["ci"]:
                continue
            sign = -1 if guard.is_better_low else 1
            worst_case = max(sign * bound for bound in change["ci"])
            if worst_case < 0 and sign * change["value"] <= -guard.tolerated:
                earlier = rounds[0] if since == "start" else rounds[-2]
                return {"round": last["round"], "guard": guard.name, "reason": _reason(guard, earlier, last, change)}
    return None


def _reason(guard: _Guard, earlier: Mapping[str, Any], last: Mapping[str, Any], change: Mapping[str, Any]) -> str:
    show = "{:.3f}".format if guard.name == "score" else percent
    before, after = (show(one["held_out"][guard.name]["value"]) for one in (earlier, last))
    cell = change_cell(change, 3) if guard.name == "score" else points_cell(change)
    points = "" if guard.name == "score" else " points"
    since = "the start model" if earlier["round"] == 0 else f"round {earlier['round']}"
    return (
        f"the {guard.words} went from {before} ({since}) to {after}, a change of {cell.text}{points} "
        f"({interval_in_words(cell)}, n = {change['n']:,} prompts)"
    )
