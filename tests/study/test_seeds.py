"""Means over seeds against scipy, and against what they promise: coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from mlx_hybrid.errors import DataError
from mlx_hybrid.study.seeds import difference_over_seeds, example_error, holm, mean_over_seeds


def bounds(mean: dict) -> tuple[float, float]:
    return mean["low"], mean["high"]


def test_a_mean_without_example_errors_is_the_t_interval():
    values = [0.70, 0.74, 0.69]
    mean = mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert mean["value"] == pytest.approx(np.mean(values))
    assert bounds(mean) == pytest.approx((low, high))
    assert mean["seeds"] == 3


def test_a_difference_without_example_errors_is_the_paired_t_test():
    before, after = [0.70, 0.74, 0.69], [0.75, 0.76, 0.75]
    change = difference_over_seeds(before, after)
    assert change["p"] == pytest.approx(stats.ttest_rel(after, before).pvalue)
    assert change["value"] == pytest.approx(np.mean(after) - np.mean(before))


def test_one_seed_has_the_interval_of_its_examples():
    mean = mean_over_seeds([0.6], [example_error(0.5, 0.7)])
    assert bounds(mean) == pytest.approx((0.5, 0.7), abs=1e-4)


def test_seeds_that_agree_leave_the_examples():
    reach = 1.959964 * 0.02
    mean = mean_over_seeds([0.6, 0.6], [0.02, 0.02])
    assert bounds(mean) == pytest.approx((0.6 - reach, 0.6 + reach), rel=1e-4)
    mean = mean_over_seeds([0.6, 0.6])
    assert mean["low"] == mean["high"]


def test_no_difference_is_not_significant_and_a_sure_one_is():
    assert difference_over_seeds([0.5, 0.5], [0.5, 0.5])["p"] == 1
    assert difference_over_seeds([0.5, 0.5], [0.6, 0.6])["p"] == 0
    assert difference_over_seeds([0.5], [0.6])["p"] == 1  # nothing is known of chance


def test_the_interval_covers_the_truth():
    """Seeds and examples both vary; at least 95 % of the intervals hold the mean over all seeds and examples."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        examples = rng.normal(0, 1, 100)
        seeds = [0.3 + shift + examples.mean() for shift in rng.normal(0, 0.05, 3)]
        error = examples.std(ddof=1) / 10
        mean = mean_over_seeds(seeds, [error] * 3)
        held += mean["low"] <= 0.3 <= mean["high"]
    assert held >= 0.92 * 200


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="at least one value"):
        mean_over_seeds([])
    with pytest.raises(DataError, match="finite"):
        mean_over_seeds([math.nan])
    with pytest.raises(DataError, match="as many on both sides"):
        difference_over_seeds([1.0], [1.0, 2.0])
