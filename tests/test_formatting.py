"""Numbers as people read them."""

import math

import pytest

from simpo_cli.formatting import (
    border_in_words,
    compact,
    duration,
    fixed,
    p_in_words,
    percent,
    percent_range,
    points_cell,
    prompts_in_words,
    share_cell,
    thousands,
)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (38.2, "0:38"),
        (59.6, "1:00"),
        (950, "15:50"),
        (7390, "2:03:10"),
        (86400 * 3 + 245 * 60, "3 d 04:05"),
        (-1, "0:00"),
        (math.nan, "?"),
        (math.inf, "?"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "0"), (950, "950"), (999.6, "1.0k"), (41_210, "41.2k"), (999_950, "1.0M"), (2.5e9, "2.5G"), (math.nan, "nan")],
)
def test_speeds(amount: float, shown: str) -> None:
    assert compact(amount) == shown


def test_numbers() -> None:
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(math.nan, 2) == "nan"
    assert percent(0.5123) == "51.2 %"
    assert percent_range(0.468, 0.5561) == "46.8 to 55.6"
    assert thousands(11902) == "11,902"


@pytest.mark.parametrize(
    ("p_value", "said"),
    [
        (0.5, "p = 0.5"),
        (0.0321, "p = 0.032"),
        (0.0001, "p = 0.0001"),
        (9e-5, "p < 0.0001"),
        (0.0479, "p = 0.0479"),
        (0.04998, "p = 0.0499"),  # and not 0.05, which is not below it
        (0.05, "p = 0.05"),
        (0.0513, "p = 0.0513"),
    ],
)
def test_p_values(p_value: float, said: str) -> None:
    assert p_in_words(p_value) == said


@pytest.mark.parametrize(
    ("low", "p_value", "said"),
    [
        (0.001, 0.0513, "the interval leaves out zero, p is not below 0.05"),
        (-0.001, 0.0479, "the interval holds zero, p is below 0.05"),
        (0.001, 0.0479, ""),
        (-0.001, 0.0513, ""),
        (None, 0.0513, ""),
    ],
)
def test_where_interval_and_test_disagree_it_is_said(low: float | None, p_value: float, said: str) -> None:
    border = border_in_words({"value": 0.05, "ci": [low, 0.1], "n": 90}, p_value)
    assert said in border
    assert bool(border) == bool(said)


@pytest.mark.parametrize(
    ("prompts", "effective", "said"),
    [
        (1200, 700.5, "1,200 prompts"),
        (12, 9.5, "12 prompts"),
        (100, 24.6, "100 prompts (they count as 25: a few of them hold most of the pairs)"),
    ],
)
def test_prompts_that_count_for_fewer(prompts: int, effective: float, said: str) -> None:
    assert prompts_in_words({"prompts": prompts, "effective_prompts": effective}) == said


def test_an_interval_ends_where_shares_do_and_may_be_missing() -> None:
    assert str(share_cell({"value": 1.0, "ci": [0.98, 1.02], "n": 9})) == "100.0 % (98.0 to 100.0)"
    assert str(share_cell({"value": 1.0, "ci": [0.9, None], "n": 1})) == "100.0 % (no interval)"
    assert str(points_cell({"value": -0.0001, "ci": [-0.02, 0.031], "n": 9})) == "+0.0 (-2.0 to +3.1)"
