"""Memory and sizes predicted."""

import pytest

from tests.benchmarks.predict import MemoryModel, choose_sizes, fit_memory


def test_memory_is_found_again_from_three_peaks() -> None:
    true = MemoryModel(fixed=2.7e9, per_token=0.95e6, per_score=950.0)
    found = fit_memory({width: round(true.peak(2, width)) for width in (192, 384, 576)}, rows=2)
    assert found.peak(8, 1024) == pytest.approx(true.peak(8, 1024), rel=1e-5)
    widest = found.widest(8, 14e9)
    assert found.peak(8, widest) <= 14e9 < found.peak(8, widest + 1)


def test_no_part_of_the_memory_is_negative() -> None:
    found = fit_memory({100: 1_000_000, 200: 1_900_000, 300: 2_700_000}, rows=2)  # bends downwards
    assert found.per_score == 0.0
    assert found.peak(2, 400) == pytest.approx(3.6e6, rel=0.02)


def test_no_row_fits_where_the_state_alone_is_too_much() -> None:
    assert MemoryModel(10.0, 1.0, 0.0).widest(2, 9.0) == 0


def test_sizes_are_halved_where_most_time_goes() -> None:
    costs = {"short": [100.0, 50.0, 25.0], "long": [400.0, 200.0, 100.0]}
    assert choose_sizes(costs, 500) == {"short": 16, "long": 16}
    assert choose_sizes(costs, 300) == {"short": 16, "long": 8}
    assert choose_sizes(costs, 1) == {"short": 4, "long": 4}
