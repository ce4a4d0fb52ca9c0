"""What the audit has to say: findings with stable codes, each with what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Severity = Literal["error", "warning"]

SHOWN_ROWS = 20
"""Places that a finding names in the document; its count says how many there are."""

TITLES = {
    "CHR001": "NUL characters in texts",
    "DUP001": "exact duplicate pairs",
    "DUP003": "identical responses (training drops such pairs)",
    "EMP001": "an empty response (training drops such pairs)",
    "EMP002": "a response without enough tokens (training drops such pairs)",
    "FMT001": "malformed records, left out",
    "LBL002": "contradictory labels (A over B and B over A)",
    "LBL005": "labels look swapped",
    "LEN001": "length predicts the label",
    "MOD001": "most pairs are past the target before any training",
    "SCR001": "scores order the pair against its label",
    "SCR002": "tied scores",
    "SCR003": "scores written as text",
    "SCR004": "scores or labels that prefer neither answer (not read as pairs)",
    "TRU001": "both responses cut by the length limit",
    "TRU002": "only one response cut by the length limit",
    "TRU003": "prompts cut by the length limit",
}
"""A code never changes its meaning."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of trouble.

    Attributes:
        code: its stable code, a key of TITLES.
        severity: `error` for what makes training wrong, `warning` for what a person should look at.
        count: pairs or records that it concerns.
        hint: what to do.
        rows: places of the first of them.
        pairs: positions of all of them among the pairs that were measured; empty where it is about none of these.
    """

    code: str
    severity: Severity
    count: int
    hint: str
    rows: Sequence[str] = field(default=())
    pairs: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64), compare=False)

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return TITLES[self.code]

    def as_json(self) -> dict[str, Any]:
        """The finding as the document holds it."""
        return {
            "code": self.code,
            "severity": self.severity,
            "count": self.count,
            "rows": list(self.rows[:SHOWN_ROWS]),
            "hint": self.hint,
        }
