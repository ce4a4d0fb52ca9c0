"""`PreferenceDataset`, as people use it who know the method."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.audit.dataset import PreferenceDataset
from simpo_cli.errors import UserError
from tests.data.loading import load_pairs

RECORDS: list[dict[str, Any]] = [
    {"prompt": "How?", "chosen": "One two three four.", "rejected": "One."},
    {"prompt": "Why?", "chosen": "One two three.", "rejected": "One two."},
    {"prompt": [{"role": "user", "content": "When?"}], "chosen": "", "rejected": "Never."},
    {
        "prompt": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": "You."},
            {"role": "user", "content": "Who else?"},
        ],
        "chosen": "Nobody.",
        "rejected": "I.",
    },
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "prefs.json"
    file.write_text(json.dumps(RECORDS))
    return file


def test_the_snippet_that_users_have(path: Path) -> None:
    dataset = PreferenceDataset(str(path))
    assert len(dataset) == 4
    assert dataset[0]["prompt"] == "How?"
    assert dataset[0] == RECORDS[0]
    assert dataset[-1]["chosen"] == "Nobody."
    assert dataset.stats() == {"count": 4, "avg_chosen_len": 2, "avg_rejected_len": 1}
    assert all(type(value) is int for value in dataset.stats().values())
    assert list(dataset) == [dataset[i] for i in range(4)] == dataset[:]
    with pytest.raises(IndexError):
        dataset[4]


def test_every_well_formed_pair_keeps_its_place(path: Path) -> None:
    dataset = PreferenceDataset(path)
    assert dataset[2] == {"prompt": "When?", "chosen": "", "rejected": "Never."}
    assert dataset.no_signal == {"empty response": 1}


def test_a_conversation_is_text_that_reads_back(path: Path, tmp_path: Path) -> None:
    dataset = PreferenceDataset(path)
    wanted = "System: Be short.\n\nHuman: Who?\n\nAssistant: You.\n\nHuman: Who else?\n\nAssistant:"
    assert dataset[3]["prompt"] == wanted
    (tmp_path / "again.json").write_text(json.dumps([dataset[3]]))
    again = load_pairs(str(tmp_path / "again.json"), role="train").pairs[0]
    assert (again.prompt, again.chosen) == (dataset.pairs[3].prompt, dataset.pairs[3].chosen)


def test_a_bad_file_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        PreferenceDataset(tmp_path / "nothing.json")
