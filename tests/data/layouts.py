"""Layouts of preference files, of layouts.yaml: three invented records of each, and their reading.

Every layout says the same three things. The better answer stands first, second and first, so that neither the place
nor a constant can give the right reading. As a program this prints the table of `make formats`: what the reader says of
the records of each layout.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simpo_cli.data.formats import detect
from simpo_cli.errors import UserError

QUESTIONS = (
    ("Where do swifts sleep?", "On the wing.", "In caves of ice."),
    ("What melts first, tin or iron?", "Tin.", "Iron does."),
    ("How many legs has a crab?", "Ten, claws included.", "Six."),
)
"""(question, better answer, worse answer)."""
Q, GOOD, BAD = QUESTIONS[0]
SYSTEM = "Answer in a few words."
TOOL = {"type": "function", "function": {"name": "count_legs", "parameters": {"type": "object", "properties": {}}}}
TOOLS = '[{"type": "function", "function": {"name": "count_legs", "parameters": {"type": "object", "properties": {}}}}]'

Record = dict[str, Any]


def said(*turns: tuple[str, Any]) -> list[Record]:
    """Messages with role and content."""
    return [{"role": role, "content": content} for role, content in turns]


def talk(question: str, answer: str) -> list[Record]:
    return said(("user", question), ("assistant", answer))


def filled(template: Any, words: Mapping[str, Any], better: int) -> Any:
    """What a template of layouts.yaml becomes: its words replaced, and of `either` the one for the better answer."""
    match template:
        case {"either": ways}:
            return filled(ways[better], words, better)
        case dict():
            return {key: filled(value, words, better) for key, value in template.items()}
        case list():
            return [filled(value, words, better) for value in template]
        case "TOOL":
            return TOOL
        case str():
            for word, text in words.items():
                template = template.replace(word, text)
    return template


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layout that is read; the attributes that are no templates are those of layouts.yaml."""

    name: str
    record: Record
    before: list[tuple[str, str]] = field(default_factory=list)
    asked: str = "QUESTION"
    tools: str | None = None
    more: list[Record] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """The three records, then those that give no pair."""
        made = []
        for (question, good, bad), better in zip(QUESTIONS, (0, 1, 0), strict=True):
            first, second = (bad, good) if better else (good, bad)
            words = {"QUESTION": question, "FIRST": first, "SECOND": second, "BETTER": good, "WORSE": bad}
            made.append(filled(self.record, words | {"SYSTEM": SYSTEM}, better))
        return [*made, *(made[0] | other for other in self.more)]

    @property
    def pairs(self) -> list[tuple[Any, ...]]:
        """The pairs of the records: the turns of the prompt, the chosen and the rejected answer, the tools."""
        before = [(role, text.replace("SYSTEM", SYSTEM)) for role, text in self.before]
        tools = self.tools and TOOLS
        return [(*before, ("user", self.asked.replace("QUESTION", q)), good, bad, tools) for q, good, bad in QUESTIONS]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Records that are no pairs, or whose direction no field tells: what is said, and each piece of the fix."""

    name: str
    record: Record
    says: list[str]

    @property
    def records(self) -> list[Record]:
        words = {"QUESTION": Q, "BETTER": GOOD, "WORSE": BAD}
        return [filled(self.record, words, index) for index in (0, 1)]


_LAYOUTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
READ = [Case(name=name, **case) for name, case in _LAYOUTS["read"].items()]
REFUSED = [Refusal(name=name, **case) for name, case in _LAYOUTS["refused"].items()]


def record_of(name: str) -> Record:
    """The first record of a layout that is read: an answer to Q, the better one in front."""
    return next(case.records[0] for case in READ if case.name == name)


def rows() -> Iterator[tuple[str, str, str]]:
    """(layout, read as, direction by) of every layout; of what is refused, the reason."""
    yield "LAYOUT", "READ AS", "DIRECTION BY"
    for case in READ:
        layout = detect(case.records, {}, case.name)
        yield case.name, layout.form, layout.direction or "the names of the fields"
    for refusal in REFUSED:
        try:
            detect(refusal.records, {}, refusal.name)
        except UserError as error:
            yield refusal.name, "refused", error.problem
        else:
            yield refusal.name, "refused record by record", refusal.says[0]


def main() -> None:
    table = list(rows())
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    for name, form, direction in table:
        print(f"{name:<{widths[0]}}  {form:<{widths[1]}}  {direction}")


if __name__ == "__main__":
    main()
