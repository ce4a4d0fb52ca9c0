"""What is said of a file's fields, by the person or by a known layout, in the vocabulary of the recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stated:
    """A mapping: `columns`, `labels` and `direction` of a source.

    Attributes:
        columns: which field plays which part.
        labels: what the values of the label mean.
        direction: `first` if the first response is the better one.
        by_person: the parts of `columns` that the person named; None if all of them are.
    """

    columns: Mapping[str, str | Sequence[str]]
    labels: Mapping[str, Any]
    direction: str | None = None
    by_person: frozenset[str] | None = None

    @property
    def own(self) -> list[str]:
        """The parts that the person named."""
        return [part for part in self.columns if self.by_person is None or part in self.by_person]

    def field(self, part: str) -> str | None:
        """The one field that plays a part, or None."""
        said = self.columns.get(part)
        return said if said is None or isinstance(said, str) else said[0]

    def fields(self, part: str) -> tuple[str, ...]:
        """All fields that play a part."""
        said = self.columns.get(part, ())
        return (said,) if isinstance(said, str) else tuple(said)
