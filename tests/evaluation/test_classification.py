import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.classification import choose, macro_f1, tied

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


def test_macro_f1_of_groups_resamples_them_whole():
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, size=60)
    answers = np.repeat(rng.integers(3, size=60), sizes)
    chosen = np.where(np.repeat(rng.random(60) < 0.6, sizes), answers, (answers + 1) % 3)
    members = np.split(np.arange(len(answers)), np.cumsum(sizes)[:-1])
    draws = []
    for _ in range(400):
        index = np.concatenate([members[n] for n in rng.integers(60, size=60)])
        draws.append(sk.f1_score(answers[index], chosen[index], average="macro"))
    grouped = macro_f1(chosen, answers, seed=2, groups=np.repeat(np.arange(60), sizes))
    alone = macro_f1(chosen, answers, seed=2)
    assert grouped.count == 60
    width = grouped.high - grouped.low
    wanted = np.quantile(draws, [0.025, 0.975])  # of 400 draws, each within 0.03 widths
    assert (grouped.low, grouped.high) == pytest.approx(wanted, abs=0.1 * width)
    assert width > 1.5 * (alone.high - alone.low)


def test_ties_go_to_the_first_option_and_are_counted():
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [3.0, 3.0, 3.0]])
    assert choose(scores).tolist() == [0, 1, 0]
    assert tied(scores) == 2


def test_one_class_is_perfect_or_nothing():
    assert macro_f1([1, 1], [1, 1], seed=0).low == 1.0
    assert macro_f1([0, 0], [1, 1], seed=0).value == 0.0


def test_nothing_and_unequal_lengths_are_errors():
    for chosen, answers in (([], []), ([1], [1, 2])):
        with pytest.raises(DataError):
            macro_f1(chosen, answers, seed=0)
