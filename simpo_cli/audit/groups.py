"""Pairs told apart by a field of their records, such as the data set that each came from."""

from typing import Any

from simpo_cli.data.formats.fields import MISSING, get, nearest
from simpo_cli.data.raw import RawRecord, kind_of
from simpo_cli.errors import UserError

MOST_GROUPS = 200
"""Values that are told apart; what comes behind them is one group."""
OTHERS, NONE = "(other values)", "(none)"
_LONGEST_NAME = 80  # characters
_LOOKED_AT = 100  # pairs in which a field has to turn up


class Groups:
    """The values of a field, numbered as they turn up.

    Args:
        field: its name; one with dots reaches into objects.

    Attributes:
        names: each value as text, by its number.
    """

    def __init__(self, field: str) -> None:
        self.field = field
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._seen, self._is_found = 0, False

    def number_of(self, record: RawRecord) -> int:
        """The number of a record's group.

        Raises:
            UserError: none of the first records has the field, or its value is a list or an object.
        """
        value: Any = get(record.fields, self.field)
        if isinstance(value, list | dict):
            raise UserError(
                f"--by {self.field}: expected text or a number, got {kind_of(value)}.",
                "Name a field inside it (FIELD.NAME), or another one.",
                where=record.where,
            )
        self._seen += 1
        self._is_found = self._is_found or value is not MISSING
        if self._seen == _LOOKED_AT:
            self.require_found(record)
        name = NONE if value is MISSING or value is None else str(value)[:_LONGEST_NAME]
        if name not in self._numbers:
            if len(self.names) >= MOST_GROUPS:
                name = OTHERS
            if name not in self._numbers:
                self._numbers[name] = len(self.names)
                self.names.append(name)
        return self._numbers[name]

    def require_found(self, record: RawRecord) -> None:
        """Refuse a field that no record has had.

        Args:
            record: the last one, whose fields are named.
        """
        if not self._is_found:
            near = nearest(self.field, record.fields)
            raise UserError(
                f"--by {self.field}: no record has that field.",
                (f"Did you mean {near}? " if near else "") + f"Its fields are {', '.join(list(record.fields)[:20])}.",
                where=record.where,
            )
