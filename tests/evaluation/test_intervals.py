import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import Interval, bootstrap_ratio, macro_f1, parity


def bootstrap_mean(values, **resampling) -> Interval:
    return bootstrap_ratio(values, np.ones(len(values)), **resampling)


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


def test_groups_of_unequal_size_weigh_by_their_size():
    interval = bootstrap_mean([1, 1, 1, 0], seed=0, groups=["a", "a", "a", "b"])
    assert (interval.value, interval.low, interval.high) == (0.75, 0, 1)


def test_the_seed_decides():
    values = np.random.default_rng(7).normal(size=30)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_one_value_and_equal_values_have_no_width():
    assert bootstrap_mean([0.5], seed=0).low == 0.5 == bootstrap_mean([0.5], seed=0).high
    assert bootstrap_mean([0, 0], seed=0).high == 0


def test_nothing_has_no_mean():
    with pytest.raises(DataError, match="at least one"):
        bootstrap_mean([], seed=0)


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


LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=80)


@given(LABELS)
def test_macro_f1_agrees_with_scikit_learn(pairs):
    chosen, answers = np.array(pairs).T
    expected = sk.f1_score(answers, chosen, average="macro", zero_division=0)
    assert macro_f1(chosen, answers, seed=0, samples=20).value == pytest.approx(expected)


def test_the_interval_of_macro_f1_is_that_of_resampled_examples():
    rng = np.random.default_rng(1)
    answers = rng.integers(3, size=200)
    chosen = np.where(rng.random(200) < 0.7, answers, rng.integers(3, size=200))
    interval = macro_f1(chosen, answers, seed=2)
    draws = []
    for _ in range(600):
        index = rng.integers(200, size=200)
        draws.append(sk.f1_score(answers[index], chosen[index], average="macro"))
    assert (interval.low, interval.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)


VALUES = {"eng_Latn": 0.9, "swh_Latn": 0.5, "hau_Latn": 0.6, "tha_Thai": 0.7}


def spread(values: dict[str, float], **more) -> dict[str, float]:
    """The measures of one value a language."""
    told = parity(list(values.values()), list(values), list(values), seed=0, samples=20, **more)
    return {name: own.value for name, own in told.items()}


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.booleans())
def test_measures_of_any_values_are_numpys(values, higher):
    names = [f"l{n}" for n in range(len(values))]
    told = spread(dict(zip(names, values)), pivot="l0", higher_is_better=higher)
    assert told["mean"] == pytest.approx(np.mean(values), abs=1e-9)
    assert told["worst"] == pytest.approx((min if higher else max)(values))
    assert told["range"] == pytest.approx(np.ptp(values))
    assert told["standard_deviation"] == pytest.approx(np.std(values), abs=1e-9)
    if len(values) > 1:
        gap = values[0] - np.mean(values[1:])
        assert told["gap_to_pivot"] == pytest.approx(gap if higher else -gap, abs=1e-9)


def test_languages_that_no_draw_holds_together_have_no_width():
    names = [f"l{n}" for n in range(30)]
    told = parity([1.0] * 30, names, names, seed=0, samples=200)
    assert told["mean"].low == told["mean"].value == told["mean"].high == 1


def test_one_language_and_no_pivot():
    result = spread({"swh_Latn": 0.5}, pivot="swh_Latn")
    assert (result["range"], result["standard_deviation"]) == (0, 0)
    assert "gap_to_pivot" not in result
    assert "gap_to_pivot" not in spread(VALUES, pivot="deu_Latn")


def test_intervals_resample_translations_together():
    rng = np.random.default_rng(0)
    shared = rng.integers(2, size=300).astype(float)
    values, languages, groups = np.tile(shared, 2), ["a"] * 300 + ["b"] * 300, np.arange(600)
    together = parity(values, languages, groups % 300, seed=1, pivot="a")
    assert together["range"].high == 0
    apart = parity(values, languages, groups, seed=1, pivot="a")
    assert apart["range"].high > 0.05
    assert together["mean"].value == pytest.approx(shared.mean())
    assert apart["gap_to_pivot"].low < 0 < apart["gap_to_pivot"].high


def test_sizes_weigh_the_values_of_a_language():
    told = parity([6.0, 2.0, 3.0], ["a", "a", "b"], [0, 1, 2], sizes=[1.0, 3.0, 1.0], seed=0)
    assert told["mean"].value == pytest.approx((8 / 4 + 3) / 2)
    assert told["range"].value == pytest.approx(1)
