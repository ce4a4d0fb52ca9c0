"""What a response's surface shows: counts that need no understanding, such as its length, lists, bold and code."""

import math
import operator
import re
from array import array

import numpy as np
from numpy.typing import NDArray

Differences = NDArray[np.float32]

_LIST_ITEM = re.compile(r"\n[ \t]*(?:[-*•+]|\d{1,2}[.)])[ \t]")
_HEADING = re.compile(r"\n#{1,6} ")
_REFUSAL = re.compile(
    r"\s*(?:(?:i[’']?m|i am) (?:so |very |really )?sorry|sorry|i apologi[sz]e|i (?:can|won)[’']t|i cannot|i will not"
    r"|(?:i[’']?m|i am) (?:not able|unable)|unfortunately|as an ai\b)",
    re.IGNORECASE,
)
_EAGER = re.compile(
    r"\s*(?:sure|certainly|of course|absolutely|definitely|great|yes|here[’']s|here (?:is|are))\b", re.IGNORECASE
)
_ENDS = (".", "!", "?", "…", "。", "！", "？", ")", '"', "”", "'", "`", "*")

FEATURES = (
    "characters",
    "lines",
    "paragraphs",
    "list items",
    "headings",
    "bold phrases",
    "code marks",
    "links",
    "commas",
    "questions",
    "exclamations",
    "refusal openers",
    "eager openers",
    "sentence ends",
)
"""What is counted, in the order of the columns."""


def surface_features(response: str) -> list[float]:
    """log(1 + count) of each of FEATURES: twice as many list items weigh the same among few as among many."""
    count = response.count  # whether a letter is there at all is known much faster than how often anything is
    num_lines, lines = count("\n"), "\n" + response  # with a newline in front, where a line's beginning can be found
    return list(
        map(
            math.log1p,
            (
                len(response),
                num_lines,
                count("\n\n") if num_lines else 0,
                len(_LIST_ITEM.findall(lines)) if num_lines else 0,
                len(_HEADING.findall(lines)) if "\n#" in lines else 0,
                count("**") // 2 if "*" in response else 0,
                count("`") if "`" in response else 0,
                count("://") if "/" in response else 0,
                count(","),
                count("?") if "?" in response else 0,
                count("!") if "!" in response else 0,
                _REFUSAL.match(response) is not None,
                _EAGER.match(response) is not None,
                response.rstrip().endswith(_ENDS),
            ),
        )
    )


class SurfaceDifferences:
    """Collects what the sides of pairs differ in, 4 bytes a feature; the texts are not kept."""

    def __init__(self) -> None:
        self._rows = array("f")

    def add(self, chosen: str, rejected: str) -> None:
        """Take in one more pair."""
        self._rows.extend(map(operator.sub, surface_features(chosen), surface_features(rejected)))

    @property
    def rows(self) -> Differences:
        """(pairs, features) chosen minus rejected."""
        return np.frombuffer(self._rows, dtype=np.float32).reshape(-1, len(FEATURES))
