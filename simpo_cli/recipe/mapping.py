"""Which column of a record plays which part, and what a label means, as a recipe says it; checked without any data."""

from itertools import combinations
from typing import Any, Literal

from simpo_cli.recipe.values import FieldError

Part = Literal[
    "prompt", "input", "system", "history", "tools", "chosen", "rejected", "answers", "label", "scores", "rank", "best",
    "score_chosen", "score_rejected",
]  # fmt: skip
"""What a column mapping may name."""
Columns = dict[Part, str | list[str]]
Side = Literal["first", "second", "tie"]
Labels = dict[Side, list[Any] | dict[Literal["below", "above"], float]]

_SEVERAL = ("answers", "label", "scores", "rank")


def check_columns(columns: Columns) -> None:
    """Check what `columns` says, as far as that needs no data."""
    named = {part: [fields] if isinstance(fields, str) else fields for part, fields in columns.items()}
    for part, fields in named.items():
        several = part in _SEVERAL
        if not all(fields) or (isinstance(columns[part], list) and not (several and len(fields) > 1)):
            fix = f"Name one field: {part}: FIELD" + (f", or several: {part}: [FIELD, FIELD]." if several else ".")
            raise FieldError(f"columns.{part}", f"is {columns[part]!r}", fix)
    played: dict[str, str] = {}
    for part, fields in named.items():
        for name in () if part == "best" else fields:
            if name in played:
                problem = f"is {name!r}, which is columns.{played[name]} as well"
                raise FieldError(f"columns.{part}", problem, "Name another field: each plays one part.")
            played[name] = part
    best = columns.get("best", "highest")
    if best not in ("highest", "lowest"):
        raise FieldError("columns.best", f"is {best!r}", "Say which score is best: highest, lowest.")


def check_labels(labels: Labels) -> None:
    """Check that each value of a label has one meaning, and some value one that orders a pair."""
    if labels and not (labels.get("first") or labels.get("second")):
        fix = "Write first: [..] and second: [..]."
        raise FieldError("labels", "says of no value which response it prefers", fix)
    sides: dict[tuple[bool, Any], str] = {}  # YAML's true is Python's 1, and no 1 of JSON
    bounds: dict[str, tuple[str, float]] = {}
    for side, meant in labels.items():
        if isinstance(meant, dict):
            if len(meant) != 1:
                fix = f"Write {side}: {{below: 0}} or {side}: {{above: 0}}."
                raise FieldError(f"labels.{side}", f"is {meant!r}", fix)
            bounds[side] = next(iter(meant.items()))
            continue
        for value in meant:
            if isinstance(value, list | dict):
                raise FieldError(f"labels.{side}", f"has the value {value!r}", "List single values.")
            other = sides.setdefault((isinstance(value, bool), value), side)
            if other != side:
                problem = f"has the value {value!r}, which labels.{other} has as well"
                raise FieldError(f"labels.{side}", problem, "Give each value one meaning.")
    for (one, (word, number)), (_, (other_word, limit)) in combinations(bounds.items(), 2):
        apart = number <= limit if word == "below" else limit <= number
        if word == other_word or not apart:
            problem = f"is {word} {number:g}, and another side has some of these numbers as well"
            fix = "Write first: {below: 0} and second: {above: 0}, or the reverse."
            raise FieldError(f"labels.{one}", problem, fix)
