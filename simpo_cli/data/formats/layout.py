"""Which field plays which part in a file: as the person says it, and as the decision that can be read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simpo_cli.data.formats.labels import Labels

Rewrite = Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Stated:
    """A mapping, by the person or by a known layout: `columns`, `labels` and `direction` of a source.

    Attributes:
        columns: which field plays which part.
        labels: what the values of the label mean.
        direction: `first` if the first response is the better one.
        by_person: the parts that the person named; None if all of them are.
    """

    columns: Mapping[str, str | Sequence[str]]
    labels: Mapping[str, Any]
    direction: str | None = None
    by_person: frozenset[str] | None = None

    def is_own(self, part: str) -> bool:
        """Whether the person named a part."""
        return self.by_person is None or part in self.by_person

    @property
    def own(self) -> list[str]:
        """The parts of `columns` that the person named."""
        return list(filter(self.is_own, self.columns))

    def field(self, part: str) -> str | None:
        """The one field that plays a part, or None."""
        return next(iter(self.fields(part)), None)

    def fields(self, part: str) -> tuple[str, ...]:
        """All fields that play a part."""
        fields = self.columns.get(part, ())
        return (fields,) if isinstance(fields, str) else tuple(fields)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which field plays which part in a file. A name with dots reaches into objects and lists.

    Attributes:
        chosen, rejected: the fields of the two responses; unless `order` is `names` they are the first and the second.
        prompt: the prompt's field, or None where it is the beginning that the two sides share.
        order: what says which response is preferred: the fields' names (or the person), a label, or scores.
        answers: the fields of all responses where they are more than two; one field where it holds a list of them.
        several: more than two responses stand in some record: then the best one and the worst one make its pair.
        text: where the text stands in each object of a list of responses; empty where it is the entry itself.
        refers: pairs (value, field) where chosen and rejected hold names of other fields.
        label: the label's field, or several 0/1 fields of which one is set: the label is then that field's name.
        labels: what the values of the label mean.
        named_by: fields beside the responses, such as model_a and model_b, whose values the label repeats: it then
            stands for the field's name.
        scores: the fields of the scores, one for each response, or one that is a list or stands in each object. With
            another `order` they are only compared with it.
        lowest: whether the lowest score is the best one, as of ranks.
        prompt_more: a field whose text belongs behind the prompt (`input` beside `instruction`).
        system, history, tools: fields of the system text, of the turns before the prompt, and of the tools.
        rewrite: turns a record into those that the other attributes are about, where the layout asks for it.
        name: the known layout that this is, for people to read.
        said: what a known layout says of the order, in words.
        remarks: what else is worth saying of the decision.
        unused: fields that are neither used nor plain metadata.
        conversational: the records have turns; otherwise plain text. This is for people to read and decides nothing.
    """

    chosen: str
    rejected: str
    prompt: str | None
    order: Literal["names", "label", "scores"] = "names"
    answers: tuple[str, ...] = ()
    several: bool = False
    text: str = ""
    refers: tuple[tuple[str, str], ...] = ()
    label: tuple[str, ...] = ()
    labels: Labels | None = None
    named_by: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    lowest: bool = False
    prompt_more: str | None = None
    system: str = "system"
    history: str = "history"
    tools: str = "tools"
    rewrite: Rewrite | None = None
    name: str = ""
    said: str = ""
    remarks: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    conversational: bool = dataclasses.field(default=False, compare=False)

    def rewritten(self, record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        """The records that the layout is about: the record itself, or what the layout makes of it.

        Raises:
            RecordError: the record is malformed.
        """
        return (record,) if self.rewrite is None else self.rewrite(record)

    @property
    def is_list(self) -> bool:
        """Whether the responses are the entries of one list."""
        return len(self.answers) == 1

    @property
    def responses(self) -> tuple[str, ...]:
        """The fields that hold the responses."""
        return self.answers or (self.chosen, self.rejected)

    def described(self) -> str:
        """The decision in words, such as `conversational, implicit prompt`."""
        known = f"{self.name}: " if self.name else ""
        return f"{known}{self.form}" + (f", {self.direction}" if self.direction else "")

    @property
    def form(self) -> str:
        """The form of the records and the place of the prompt, in words."""
        form = "conversational" if self.conversational else "plain text"
        if self.prompt is None:
            return f"{form}, implicit prompt"
        fields = [self.prompt] if self.prompt != "prompt" else []
        fields += [self.prompt_more] if self.prompt_more else []
        return f"{form}, explicit prompt" + (f" ({' + '.join(fields)})" if fields else "")

    @property
    def direction(self) -> str:
        """What says which response is preferred, in words; empty where the usual names do."""
        if self.said:
            return self.said
        scores = " / ".join(self.scores)
        if self.order == "label":
            two = f"two {self.chosen}" if self.is_list else f"{self.chosen} and {self.rejected}"
            return f"{' / '.join(self.label)} says which of {two} is preferred"
        if self.order == "scores" and self.several:
            best, worst = ("lowest", "highest") if self.lowest else ("highest", "lowest")
            return f"of {', '.join(self.responses)} the one with the {best} {scores} over the one with the {worst}"
        if self.order == "scores":
            better = f"lower {scores}" if self.lowest else "higher score"
            return f"the {better} of {'two ' if self.is_list else ''}{' and '.join(self.responses)} is preferred"
        if self.refers:
            return f"{self.chosen} and {self.rejected} name the fields of the responses"
        if self.is_list:
            return f"the first of {self.chosen} over the last"
        return "" if (self.chosen, self.rejected) == ("chosen", "rejected") else f"{self.chosen} over {self.rejected}"

    @property
    def response(self) -> str:
        """What the response is, in words."""
        return "last assistant turn" if self.conversational and self.prompt is None else "the whole answer"
