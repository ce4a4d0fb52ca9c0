"""Which of two responses was preferred: by their names, by a label or by their scores."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from simpo_cli.data.formats.fields import MISSING, SCORE_NAMES, SKIP, get, required
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import RecordError, kind_of

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("metadata.score_chosen", "metadata.score_rejected"),
)
_SCORE_ROOTS = frozenset(fields[0].partition(".")[0] for fields in _SCORES)  # one of them is there, or no scores are


class NoSignalError(Exception):
    """A well-formed record that cannot teach: `reason` is counted; `pair` is its pair, if it has an order at all."""

    def __init__(self, reason: str, pair: PreferencePair | None = None) -> None:
        self.reason, self.pair = reason, pair
        super().__init__(reason)


def sides_of(record: Mapping[str, Any], layout: Layout, warnings: Counter[str]) -> tuple[Any, Any]:
    """What the record holds as the preferred and the other response."""
    if layout.order == "list":
        return _sides_of_list(record, layout, warnings)
    first, second = required(record, layout.chosen), required(record, layout.rejected)
    if layout.label is not None:
        return (first, second) if _label(record, layout) else (second, first)
    fields = layout.scores or _known_scores(record)
    if fields is not None:
        scores = [_score(get(record, field), field, warnings) for field in fields]
        if layout.order == "scores":
            _require_scores(scores, fields)
            _require_order(scores)
            return (first, second) if scores[0] > scores[1] else (second, first)  # type: ignore[operator]
        if None not in scores:
            if scores[0] == scores[1]:
                warnings["tied scores"] += 1
            elif scores[0] < scores[1]:  # type: ignore[operator]
                warnings["scores order the pair against its label"] += 1
    return first, second


def _known_scores(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The fields of scores that stand beside a pair."""
    if _SCORE_ROOTS.isdisjoint(record):
        return None
    for fields in _SCORES:
        if get(record, fields[0]) is not MISSING and get(record, fields[1]) is not MISSING:
            return fields
    return None


def _require_scores(scores: Sequence[float | None], fields: Sequence[str]) -> None:
    for score, field in zip(scores, fields, strict=True):
        if score is None:
            raise RecordError(f"{field} is missing", "The scores say which response is preferred. " + SKIP)


def _require_order(scores: Sequence[float | None]) -> None:
    if scores[0] == scores[1]:
        raise NoSignalError("tied scores")


def _sides_of_list(record: Mapping[str, Any], layout: Layout, warnings: Counter[str]) -> tuple[Any, Any]:
    """The two entries of a list of responses, the better one first."""
    responses = required(record, layout.chosen)
    if not isinstance(responses, list) or len(responses) != 2:
        count = f"a list of {len(responses)}" if isinstance(responses, list) else kind_of(responses)
        raise RecordError(f"{layout.chosen}: expected a list of two responses, got {count}", SKIP)
    fields = [f"{layout.chosen}[{i}]" for i in range(2)]
    if layout.scores is None:
        if not all(isinstance(r, dict) for r in responses):
            raise RecordError(f"{layout.chosen}: expected two objects with a score", SKIP)
        raw = [next((r[w] for w in ("overall_score", *SCORE_NAMES) if w in r), None) for r in responses]
        texts = [next((r[k] for k in ("response", "text", "content", "output") if k in r), None) for r in responses]
    else:
        raw, texts = required(record, layout.scores[0]), responses
        if not isinstance(raw, list) or len(raw) != 2:
            raise RecordError(f"{layout.scores[0]}: expected a list of two scores", SKIP)
    scores = [_score(value, field, warnings) for value, field in zip(raw, fields, strict=True)]
    _require_scores(scores, [f"the score of {field}" for field in fields])
    for text, field in zip(texts, fields, strict=True):
        if text is None:
            raise RecordError(f"{field}: no response text", SKIP)
    _require_order(scores)
    return (texts[0], texts[1]) if scores[0] > scores[1] else (texts[1], texts[0])  # type: ignore[operator]


def _label(record: Mapping[str, Any], layout: Layout) -> bool:
    """Whether the label prefers the field under `chosen`."""
    assert layout.label is not None
    label = required(record, layout.label)
    if label in ("tie", "equal", "both"):
        raise NoSignalError("tied label")
    if label == layout.chosen or label == layout.rejected:
        return bool(label == layout.chosen)
    if not isinstance(label, bool) and label in (1, 2, "1", "2"):
        return label in (1, "1")
    shown = repr(label) if isinstance(label, str | int | float) else kind_of(label)
    raise RecordError(
        f"{layout.label}: expected 1 or 2, got {shown[:40]}",
        f"1 prefers {layout.chosen}, 2 prefers {layout.rejected}; the fields' names are understood too.",
    )


def _score(value: Any, field: str, warnings: Counter[str]) -> float | None:
    if value is MISSING or value is None:
        return None
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            raise RecordError(f"{field}: expected a number, got text {value[:40]!r}", SKIP) from None
        warnings["scores written as text"] += 1
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"{field}: expected a number, got {kind_of(value)}", SKIP)
    else:
        number = value
    if isinstance(number, float) and not math.isfinite(number):
        raise RecordError(f"{field}: {number} is no score", SKIP)
    return number
