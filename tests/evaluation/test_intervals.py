import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import (
    bootstrap_mean,
    bootstrap_ratio,
    paired_bootstrap,
    sign_flip,
)


@pytest.mark.parametrize("values", [np.random.default_rng(0).normal(3, 2, 80), np.arange(100) % 3 == 0])
def test_bootstrap_agrees_with_scipy(values):
    ours = bootstrap_mean(values, seed=1, samples=20_000)
    theirs = stats.bootstrap(
        (np.asarray(values, float),), np.mean, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    assert ours.value == pytest.approx(np.mean(values))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * np.std(values))


def test_drawing_counts_and_drawing_indices_give_the_same_distribution():
    few = np.arange(200) % 4  # four distinct values: counts are drawn
    many = few + np.arange(200) * 1e-9  # two hundred: indices are drawn
    a, b = bootstrap_mean(few, seed=3, samples=40_000), bootstrap_mean(many, seed=4, samples=40_000)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=5e-3)


def test_groups_widen_the_interval_of_values_that_repeat():
    values = np.repeat(np.random.default_rng(5).integers(2, size=50), 8)
    alone = bootstrap_mean(values, seed=6)
    grouped = bootstrap_mean(values, seed=6, groups=np.repeat(np.arange(50), 8))
    assert grouped.count == 50
    ratio = (grouped.high - grouped.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(8), rel=0.15)


def test_groups_of_unequal_size_weigh_by_their_size():
    interval = bootstrap_mean([1, 1, 1, 0], seed=0, groups=["a", "a", "a", "b"])
    assert (interval.value, interval.low, interval.high) == (0.75, 0, 1)


def test_the_seed_decides():
    values = np.random.default_rng(7).normal(size=30)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_paired_interval_is_narrower_than_the_difference_of_two():
    rng = np.random.default_rng(8)
    a = rng.normal(size=200)
    b = a + 0.1 + rng.normal(size=200) / 20
    interval = paired_bootstrap(a, b, seed=0)
    assert 0 < interval.low < interval.value < interval.high
    assert interval.high - interval.low < 0.05


def test_one_value_and_equal_values_have_no_width():
    assert bootstrap_mean([0.5], seed=0).low == 0.5 == bootstrap_mean([0.5], seed=0).high
    assert paired_bootstrap([1, 0], [1, 0], seed=0).high == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_mean([], seed=0),
        lambda: bootstrap_mean([1, np.nan], seed=0),
        lambda: bootstrap_mean([np.inf], seed=0),
        lambda: bootstrap_mean([1, 2], seed=0, groups=["a"]),
        lambda: bootstrap_ratio([], [], seed=0),
        lambda: paired_bootstrap([1], [1, 2], seed=0),
        lambda: sign_flip([True], [True, False], ["a"]),
        lambda: sign_flip([True, False], [True, True], ["a"]),
    ],
)
def test_what_has_no_mean_and_unequal_lengths_are_errors(call):
    with pytest.raises(DataError):
        call()


def test_a_mean_of_groups_is_that_of_groups_drawn_whole():
    rng = np.random.default_rng(11)
    groups = np.repeat(np.arange(40), rng.integers(1, 9, size=40))
    order = rng.permutation(len(groups))
    groups, values = groups[order], rng.normal(size=40)[groups[order]]
    members = [np.flatnonzero(groups == group) for group in range(40)]
    drawn = [
        values[np.concatenate([members[n] for n in rng.integers(40, size=40)])].mean() for _ in range(5_000)
    ]
    mean = bootstrap_mean(values, seed=2, groups=groups)
    alone = bootstrap_mean(values, seed=2)
    assert mean.count == 40
    assert (mean.low, mean.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    assert mean.high - mean.low > 1.5 * (alone.high - alone.low)


def test_a_ratio_resamples_both_sides_together():
    rng = np.random.default_rng(10)
    sizes = rng.integers(5, 50, size=80).astype(float)
    nats = sizes * rng.normal(2, 0.3, size=80)
    ours = bootstrap_ratio(nats, sizes, seed=1)
    index = rng.integers(80, size=(5_000, 80))
    slow = np.quantile(nats[index].sum(1) / sizes[index].sum(1), [0.025, 0.975])
    assert ours.value == pytest.approx(nats.sum() / sizes.sum())
    assert (ours.low, ours.high) == pytest.approx(slow, abs=0.01)
    assert bootstrap_ratio(nats, np.ones(80), seed=3) == bootstrap_mean(nats, seed=3)
    with pytest.raises(DataError, match="denominator above zero"):
        bootstrap_ratio([1, 2], [1, 0], seed=0)


def mcnemar(a, b) -> float:
    """scipy's exact binomial test of the pairs that differ."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    return stats.binomtest(int((a & ~b).sum()), int((a != b).sum())).pvalue if (a != b).any() else 1.0


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 5))
def test_signs_of_single_examples_are_mcnemars_test(only_a, only_b, both):
    a = [True] * only_a + [False] * only_b + [True] * both
    b = [False] * only_a + [True] * only_b + [True] * both
    assert sign_flip(a, b, range(len(a))) == pytest.approx(mcnemar(a, b))


def test_signs_of_many_disagreements():
    a = np.arange(9_000) < 4_700
    assert sign_flip(a, ~a, range(9_000)) == pytest.approx(mcnemar(a, ~a))


def translated(rng: np.random.Generator, sentences: int = 60, languages: int = 8, gain: float = 0.0):
    """Right answers of two models and the sentence of each: a sentence that one gets right, it gets right in most
    languages, so that its translations are no independent trials."""
    lead = rng.choice([-1, 0, 1], sentences, p=[0.3 - gain, 0.4, 0.3 + gain])
    better = np.repeat(lead, languages) * (rng.random(sentences * languages) < 0.8)
    return better < 0, better > 0, np.repeat(np.arange(sentences), languages)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_signs_are_scipys_permutation_test(seed):
    a, b, groups = translated(np.random.default_rng(seed), sentences=11, languages=3, gain=0.25)
    own = np.delete(np.arange(33), [4, 9, 10])  # and groups of unequal size
    a, b, groups = a[own], b[own], groups[own]
    totals = [np.bincount(groups, weights=side) for side in (a, b)]
    theirs = stats.permutation_test(
        totals,
        lambda x, y, axis: (y - x).sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert sign_flip(a, b, groups) == pytest.approx(theirs.pvalue)
    assert sign_flip(a, b, groups) != pytest.approx(mcnemar(a, b))


def test_without_a_gain_translations_reject_as_often_as_the_level_says():
    rng = np.random.default_rng(0)
    drawn = [translated(rng) for _ in range(600)]
    grouped = np.mean([sign_flip(a, b, groups) < 0.05 for a, b, groups in drawn])
    alone = np.mean([mcnemar(a, b) < 0.05 for a, b, _ in drawn])
    low, high = stats.binom.ppf([0.001, 0.999], 600, 0.05) / 600
    assert low <= grouped <= high
    assert alone > 0.3  # what trials that are not independent would have claimed


def test_a_true_gain_is_seen_through_groups():
    rng = np.random.default_rng(1)
    drawn = [translated(rng, gain=0.2) for _ in range(100)]
    assert np.mean([sign_flip(a, b, groups) < 0.05 for a, b, groups in drawn]) > 0.9
