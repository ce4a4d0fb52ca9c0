"""Layouts of files that are known by their own fields: a table in the vocabulary of `columns` and `labels`.

To add one, write a `Known` with the fields that only such files have together, and say the rest as a person would say
it in a recipe:

    Known(
        name="PKU-SafeRLHF",
        needs=("response_0", "response_1", "better_response_id"),
        columns={"answers": ["response_0", "response_1"], "label": "better_response_id"},
        labels={"first": [0], "second": [1]},
        said="better_response_id is the number of the better response",
    )

`columns` may leave out what the usual names say (`prompt`, `system`, `tools`). `answers` is two fields, or one field
with a list of texts or objects, `completions.response` where the text stands in each object; `scores` and `rank` are
fields in the same order, or one field with a list, or `completions.overall_score` in each object; `rank` and scores
whose lowest is best say `best: lowest`. `label` is a field, or the list of 0/1 fields of which one is set (the values
are then their names). `labels` gives `first`, `second` and `tie` as lists of values, or `{below: 0}`, `{above: 0}`.
`direction="first"` is for layouts in which the first of `answers` is the better one. Names reach inside with dots, also
into lists (`annotations.0.result.0.value.selected`). What a pattern of fields cannot say gets a `rewrite`: a function
from a record to the records that the columns are about (several for a tree); it raises RecordError for a bad one.
The first entry whose `needs` most records have is taken, and `lacks` names fields that tell a near relative.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from simpo_cli.data.formats.fields import MISSING, SKIP, get, required
from simpo_cli.data.formats.layout import Rewrite
from simpo_cli.data.json_records import parse_value
from simpo_cli.data.raw import RecordError


@dataclass(frozen=True, kw_only=True)
class Known:
    """A layout that is recognised by the fields of its records.

    Attributes:
        name: as people call it.
        needs: fields that each of its records has; names with dots reach inside.
        lacks: fields that none of its records has.
        columns, labels, direction: as in a recipe.
        said: what says which response is preferred, as the end of the sentence that is printed.
        rewrite: from a record to the records that `columns` is about.
        uses: fields that `rewrite` reads.
    """

    name: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    direction: Literal["first"] | None = None
    said: str = ""
    rewrite: Rewrite | None = None
    uses: tuple[str, ...] = ()

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Whether a record has the fields of this layout."""
        return all(get(record, name) is not MISSING for name in self.needs) and all(
            get(record, name) is MISSING for name in self.lacks
        )


def _from_lists_as_text(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Arena's table: the turns of the user and of either model are JSON lists in cells of text."""
    asked = _texts(record, "prompt")
    sides = {}
    for side in ("response_a", "response_b"):
        answers = _texts(record, side)
        if len(answers) != len(asked):
            raise RecordError(f"{side}: {len(answers)} answers to {len(asked)} turns of prompt", SKIP)
        turns = zip(asked, answers, strict=True)
        sides[side] = [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    return [{name: value for name, value in record.items() if name != "prompt"} | sides]


def _texts(record: Mapping[str, Any], name: str) -> list[str]:
    """The texts of a cell that holds a JSON list of them; any other text is the only one."""
    cell = required(record, name)
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with suppress(json.JSONDecodeError):
            cell, _ = parse_value(cell.strip())
    texts = [cell] if isinstance(cell, str) else cell
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RecordError(f"{name}: expected a list of texts", SKIP)
    return texts


KNOWN: tuple[Known, ...] = (
    Known(
        name="PKU-SafeRLHF",
        needs=("response_0", "response_1", "better_response_id"),
        columns={"answers": ["response_0", "response_1"], "label": "better_response_id"},
        labels={"first": [0], "second": [1]},
        said="better_response_id is the number of the better response",
    ),
    Known(
        name="HelpSteer2 preference",
        needs=("prompt", "response_1", "response_2", "preference_strength"),
        columns={"answers": ["response_1", "response_2"], "label": "preference_strength"},
        labels={"first": {"below": 0}, "second": {"above": 0}, "tie": [0]},
        said="a negative preference_strength prefers response_1",
    ),
    Known(
        name="HelpSteer3 preference",
        needs=("context", "response1", "response2", "overall_preference"),
        columns={"prompt": "context", "answers": ["response1", "response2"], "label": "overall_preference"},
        labels={"first": {"below": 0}, "second": {"above": 0}, "tie": [0]},
        said="a negative overall_preference prefers response1",
    ),
    Known(
        name="Stanford SHP",
        needs=("history", "human_ref_A", "human_ref_B", "labels"),
        columns={"prompt": "history", "answers": ["human_ref_A", "human_ref_B"], "label": "labels"},
        labels={"first": [1], "second": [0]},
        said="labels = 1 prefers human_ref_A",
    ),
    Known(
        name="Label Studio JSON-MIN",
        needs=("prompt", "answer1", "answer2", "cmp"),
        columns={"answers": ["answer1", "answer2"], "label": "cmp"},
        labels={"first": ["left"], "second": ["right"]},
        said="cmp says which of answer1 and answer2 is preferred",
    ),
    Known(
        name="StackExchange pairs",
        needs=("question", "response_j", "response_k"),
        columns={"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
        said="response_j over response_k",
    ),
    Known(
        name="WebGPT comparisons",
        needs=("question.full_text", "answer_0", "answer_1", "score_0", "score_1"),
        columns={
            "prompt": "question.full_text",
            "answers": ["answer_0", "answer_1"],
            "scores": ["score_0", "score_1"],
        },
    ),
    Known(
        name="Chatbot Arena (Kaggle)",
        needs=("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        columns={
            "answers": ["response_a", "response_b"],
            "label": ["winner_model_a", "winner_model_b", "winner_tie"],
        },
        labels={"first": ["winner_model_a"], "second": ["winner_model_b"], "tie": ["winner_tie"]},
        rewrite=_from_lists_as_text,
    ),
)


def known_layout(records: Sequence[Mapping[str, Any]]) -> Known | None:
    """The layout whose fields most of the records have, or None."""
    return next((one for one in KNOWN if sum(one.fits(record) for record in records) * 2 > len(records)), None)
