"""What was counted in two models' answers, and what judges and people said of them, as the screen and pages show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simpo_cli.formatting import (
    FEW_PROMPTS,
    Cell,
    Measured,
    fixed,
    number_cell,
    percent,
    points_cell,
    share_cell,
    thousands,
)

_SHARES = (("repeated_4_grams", "repeated-4"), ("no_end", "no end token"), ("empty", "empty"), ("refusals", "refusals"))
_MODES = {"greedy": "greedy", "sampled": "sampled at temperature {temperature:g}"}


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One measure of both models' answers and how they differ."""

    label: str
    base: Cell
    trained: Cell
    difference: Cell


def measure_rows(measures: Mapping[str, Any]) -> list[AnswerRow]:
    """The lines of one mode's table."""
    tokens = measures["tokens"]
    ratio = Cell("") if tokens["ratio"] is None else number_cell(tokens["ratio"], 2)
    rows = [
        AnswerRow(
            "tokens",
            number_cell(tokens["base"], 1),
            number_cell(tokens["trained"], 1),
            Cell(f"× {ratio.text}", ratio.below) if ratio.text else ratio,
        )
    ]
    for key, label in _SHARES:
        one = measures[key]
        rows.append(
            AnswerRow(label, share_cell(one["base"]), share_cell(one["trained"]), points_cell(one["difference"]))
        )
    for size in (1, 2):
        distinct = measures[f"distinct_{size}"]
        rows.append(AnswerRow(f"distinct-{size}", _plain(distinct["base"]), _plain(distinct["trained"]), Cell("")))
    return rows


def _plain(value: float | None) -> Cell:
    return Cell("" if value is None else fixed(value, 3))


def mode_in_words(mode: str, decoding: Mapping[str, Any]) -> str:
    """How the answers of one mode are drawn."""
    return _MODES[mode].format_map(decoding)


def how_answered(manifest: Mapping[str, Any]) -> str:
    """How many prompts of what were answered, and by what."""
    prompts, decoding = manifest["prompts"], manifest["decoding"]
    return (
        f"{thousands(prompts['count'])} prompts of {prompts['from']}, at most {thousands(decoding['max_new_tokens'])} "
        f"new tokens, by {manifest['engine']} {manifest['engine_version']}"
    )


def judge_rows(judge: Mapping[str, Any]) -> list[tuple[str, Cell]]:
    """How often one judge preferred the trained model, each share with its n."""
    return [
        ("trained wins", _with_n(judge["win_rate"])),
        ("at equal lengths", _with_n(judge["length_controlled"])),
        ("same verdict in both orders", _with_n(judge["position_consistency"])),
    ]


def _with_n(measured: Measured | None) -> Cell:
    if measured is None:
        return Cell("too few to say")
    cell = share_cell(measured)
    return Cell(cell.text, f"{cell.below}, n {thousands(measured['n'])}")


def judge_remarks(judge: Mapping[str, Any]) -> list[str]:
    """How many verdicts there are, which replies hold none, and whether the judge likes a place."""
    prompts, replies = judge["prompts"], judge["replies"]
    lost = ", ".join(
        f"{thousands(count)} {name.replace('_', ' ')}" for name, count in replies.items() if name != "verdict" and count
    )
    said = f"{thousands(prompts['judged'])} of {thousands(prompts['all'])} prompts have a verdict in both orders"
    if prompts["equal_answers"]:
        said += f", {thousands(prompts['equal_answers'])} of them because both answers are the same"
    if lost:
        said += f"; replies without one: {lost}"
    remarks = [f"{said}."]
    if judge["first_shown_wins"] is not None:
        first = percent(judge["first_shown_wins"])
        remarks.append(f"The answer shown first won {first} of the decided verdicts.")
    return remarks


def people_row(people: Mapping[str, Any]) -> tuple[str, Cell]:
    """How often people preferred the trained model."""
    return "trained wins", _with_n(people["win_rate"])


def people_remark(people: Mapping[str, Any]) -> str:
    """What people have filled in."""
    said = ", ".join(f"{thousands(people[name])} {name}" for name in ("wins", "ties", "losses", "open"))
    return f"{said}; a tie counts one half."


def answer_remarks(document: Mapping[str, Any]) -> list[str]:
    """What to know beside the numbers."""
    prompts = document["manifest"]["prompts"]
    remarks = []
    left_out = ", ".join(f"{thousands(count)} {reason}" for reason, count in prompts["left_out"].items())
    if left_out:
        remarks.append(f"Left out: {left_out}.")
    same = document["measures"]["greedy"]["same_answers"]
    if same:
        remarks.append(f"Both models gave the same greedy answer to {thousands(same)} prompts.")
    if prompts["count"] < FEW_PROMPTS:
        remarks.append(f"Only {prompts['count']} prompts: too few to conclude much. Ask at least {FEW_PROMPTS}.")
    return remarks
