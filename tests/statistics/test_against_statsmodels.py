"""The same numbers from statsmodels, which shares no code with ours."""

import numpy as np
import pytest
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from simpo_cli.statistics import compare_accuracy, holm, mean, over_seeds, proportion


@pytest.mark.parametrize(("right", "n"), [(31, 60), (54, 60), (120, 150)])
def test_wilsons_interval(right: int, n: int) -> None:
    measured = proportion([1] * right + [0] * (n - right))
    assert (measured.low, measured.high) == pytest.approx(proportion_confint(right, n, method="wilson"))


@pytest.mark.parametrize(("wins", "losses"), [(12, 3), (40, 41)])
def test_mcnemars_exact_test(wins: int, losses: int) -> None:
    base, tuned = [0] * wins + [1] * losses + [1] * 30, [1] * wins + [0] * losses + [1] * 30
    table = [[30, losses], [wins, 0]]
    assert compare_accuracy(base, tuned).p_value == pytest.approx(mcnemar(table, exact=True).pvalue)


def test_the_mean_over_prompts_of_equal_size_is_that_of_cluster_robust_regression() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), 3)
    values = rng.normal(size=40)[groups] + rng.normal(size=120)
    measured = mean(values, groups)
    # the jackknife over equal groups is the sandwich with the factor J / (J - 1) and no other
    fitted = OLS(values, np.ones(120)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False, "df_correction": True}, use_t=True
    )
    error = float(fitted.bse[0]) * np.sqrt(40 / 39)
    half = (measured.high - measured.low) / 2
    low, high = fitted.conf_int(0.05)[0]
    assert half == pytest.approx((high - low) / 2 * error / float(fitted.bse[0]))
    assert measured.value == pytest.approx(float(fitted.params[0]))


@pytest.mark.parametrize("p_values", [[0.03], [0.01, 0.04, 0.03, 0.9], [0.2, 0.2, 0.001], []])
def test_holms_method(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(expected)


def test_the_interval_over_seeds() -> None:
    accuracies = [0.61, 0.64, 0.59, 0.63]
    measured = over_seeds(accuracies)
    assert (measured.low, measured.high) == pytest.approx(DescrStatsW(accuracies).tconfint_mean())
    assert measured.n == 4
    with pytest.raises(AssertionError):
        over_seeds([0.6])
