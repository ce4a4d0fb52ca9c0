"""Intervals and tests for numbers measured on preference pairs: numpy and scipy only, no torch.

Pairs that share a prompt are not independent, and an interval that takes them for independent is too narrow. So every
function takes `groups`, (n,) the prompt of each pair, or None where no prompt repeats, and treats the prompt as the
thing that was sampled. Of `correct`, (n,), 1 is right, 0 wrong and 0.5 a tie; `longer_by`, (n,), is the scored tokens
of the chosen response less those of the rejected one; two models are compared on the same pairs in the same order. All
intervals are two-sided and hold 95 %.
docs/evaluation.md says what each number means and when not to believe it.
"""

from simpo_cli.statistics.accuracy import (
    MIN_STRATUM_PAIRS,
    Calibration,
    balanced_difference,
    calibration,
    length_buckets,
    length_strata,
    longer_wins,
    spearman,
)
from simpo_cli.statistics.crossed import CrossedDifference, crossed_difference
from simpo_cli.statistics.measured import CONFIDENCE, Measured, as_json, effective_prompts, mean, median, proportion
from simpo_cli.statistics.paired_tests import (
    Comparison,
    compare_accuracy,
    holm,
    over_seeds,
    signed_rank_test,
    smallest_effect,
)

__all__ = [
    "CONFIDENCE",
    "MIN_STRATUM_PAIRS",
    "Calibration",
    "Comparison",
    "CrossedDifference",
    "Measured",
    "as_json",
    "balanced_difference",
    "calibration",
    "compare_accuracy",
    "crossed_difference",
    "effective_prompts",
    "holm",
    "length_buckets",
    "length_strata",
    "longer_wins",
    "mean",
    "median",
    "over_seeds",
    "proportion",
    "signed_rank_test",
    "smallest_effect",
    "spearman",
]
