"""`PreferenceDataset`, as people use it who know the method, and its columns against plain Python."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.audit.columns import NUM_BINS, Column, PlaceColumn, describe, histogram, whole_mean
from simpo_cli.audit.dataset import PreferenceDataset
from simpo_cli.errors import UserError
from tests.data.pair_files import load_pairs

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


VALUES = st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=60)


@given(VALUES)
def test_a_column_says_what_plain_python_says(values: list[int]) -> None:
    column = describe(np.array(values, dtype=np.int64))
    assert (column["min"], column["max"]) == (min(values), max(values))
    assert column["mean"] == pytest.approx(statistics.fmean(values))
    assert column["median"] == statistics.median(values)
    assert column["std"] == pytest.approx(statistics.pstdev(values), abs=1e-9)
    if len(values) > 1:
        cut = statistics.quantiles(values, n=20, method="inclusive")
        assert column["p5"] == pytest.approx(cut[0], abs=1e-9)
        assert column["p95"] == pytest.approx(cut[-1], abs=1e-9)
    hist, edges = column["histogram"]["hist"], column["histogram"]["bin_edges"]
    assert sum(hist) == len(values)
    assert len(edges) == len(hist) + 1
    assert (edges[0], edges[-1]) == (min(values), max(values))


@given(VALUES, st.integers(-50, 50), st.integers(1, 100))
def test_a_histogram_counts_each_value_once(values: list[int], low: int, width: int) -> None:
    shape = histogram(np.array(values, dtype=np.int64), low=low, high=low + width)
    assert sum(shape["hist"]) == len(values)
    assert len(shape["hist"]) == NUM_BINS
    for i in range(1, NUM_BINS - 1):  # the outermost bins also hold what lies beyond
        low, high = shape["bin_edges"][i : i + 2]
        assert shape["hist"][i] == sum(low <= value < high for value in values)


def test_equal_lengths_are_one_bin() -> None:
    assert histogram(np.array([3, 3, 3]))["hist"] == [3]
    assert describe(np.array([3]))["std"] == 0


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_the_whole_mean_is_integer_division(values: list[int]) -> None:
    assert whole_mean(np.array(values, dtype=np.int64)) == sum(values) // len(values)


@given(st.lists(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=4), max_size=4))
def test_rows_come_back_in_their_order(batches: list[list[tuple[int, int]]]) -> None:
    column = Column(np.uint8, (2,))
    for batch in batches:
        column.add(batch)
    assert column.rows.tolist() == [list(row) for batch in batches for row in batch]
    assert (column.rows.dtype, column.rows.shape[1:]) == (np.uint8, (2,))


@given(
    st.lists(
        st.sampled_from(["a.jsonl:", "b, record ", "x9y:", ""]).flatmap(
            lambda start: st.integers(0, 10**20).map(lambda n: f"{start}{n}")
        )
        | st.text(max_size=6),
        max_size=8,
    )
)
def test_places_come_back_as_they_were(places: list[str]) -> None:
    kept = PlaceColumn()
    kept.add(places[:3])
    kept.add(places[3:])
    assert kept.at(range(len(places))) == places
