"""The known layouts: each is read as it means, wherever the better answer stands; no direction is guessed."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.load import LoadedPairs, load_pairs, prompt_messages
from simpo_cli.errors import UserError
from tests.data.layouts import QUESTIONS, READ, REFUSED, Case, Record, Refusal


def load(records: list[Record], folder: Path) -> LoadedPairs:
    file = folder / "prefs.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return load_pairs(str(file), role="train")


def readings(loaded: LoadedPairs) -> list[tuple[Any, ...]]:
    return [
        (*((turn.role, turn.content) for turn in prompt_messages(pair.prompt)), pair.chosen, pair.rejected, pair.tools)
        for pair in loaded.pairs
    ]


@pytest.mark.parametrize("case", READ, ids=lambda case: case.name)
def test_a_layout_is_read_as_it_means(case: Case, tmp_path: Path) -> None:
    loaded = load(case.records, tmp_path)
    assert readings(loaded) == [
        (*case.before, ("user", case.asked.format(question)), good, bad, case.tools)
        for question, good, bad in QUESTIONS
    ]
    assert case.says in loaded.decision
    assert loaded.dropped == dict(case.dropped)


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal.name)
def test_what_tells_no_direction_is_refused_with_the_fix(refusal: Refusal, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(list(refusal.records), tmp_path)
    for words in refusal.says:
        assert words in str(error.value)
