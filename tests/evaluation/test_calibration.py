import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from sklearn import calibration as sk_calibration
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation import calibration as c


def draw(seed: int, rows: int = 600, options: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident scores: the answer is the top option less often than they say."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (rows, options))
    return scores, np.where(rng.random(rows) < 0.6, scores.argmax(1), rng.integers(options, size=rows))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_nll_and_brier_agree_with_scikit_learn(temperature):
    scores, answers = draw(0)
    probabilities = np.exp(c.log_probabilities(scores, temperature))
    nll = c.negative_log_likelihood(scores, answers, temperature).mean()
    assert nll == pytest.approx(sk.log_loss(answers, probabilities), rel=1e-9)
    onehot = np.eye(4)[answers]
    expected = sum(sk.brier_score_loss(onehot[:, k], probabilities[:, k]) for k in range(4))
    assert c.brier(scores, answers, temperature).mean() == pytest.approx(expected)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_of_equal_width_agrees_with_torchmetrics(bins):
    scores, answers = draw(1)
    probabilities = torch.tensor(np.exp(c.log_probabilities(scores)))
    theirs = multiclass_calibration_error(
        probabilities, torch.tensor(answers), num_classes=4, n_bins=bins, norm="l1"
    )
    ours = c.expected_calibration_error(*c.confidence(scores, answers), bins=bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_equal_mass_bins_agree_with_scikit_learn_quantiles():
    confidences, correct = c.confidence(*draw(2))
    true, predicted = sk_calibration.calibration_curve(correct, confidences, n_bins=15, strategy="quantile")
    rows = c.reliability(confidences, correct, mass="mass")
    assert [row["count"] for row in rows] == [40] * 15
    np.testing.assert_allclose([row["accuracy"] for row in rows], true)
    np.testing.assert_allclose([row["confidence"] for row in rows], predicted)


def test_bin_edges_belong_to_the_bin_below():
    rows = c.reliability(np.array([0.0, 0.2, 0.2000001, 1.0]), np.ones(4), bins=5)
    assert [(row["low"], row["count"]) for row in rows] == [(0.0, 2), (0.2, 1), (0.8, 1)]


@given(st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=60), st.integers(0, 99))
def test_equal_confidences_share_a_bin_whatever_their_order(confidences, seed):
    correct = np.arange(len(confidences)) % 2
    order = np.random.default_rng(seed).permutation(len(confidences))
    rows = c.reliability(confidences, correct, mass="mass")
    moved = c.reliability(np.array(confidences)[order], correct[order], mass="mass")
    assert all(row["low"] == row["high"] or row["high"] > row["low"] for row in rows)
    assert sum(row["count"] for row in rows) == len(confidences)
    assert [(row["low"], row["count"]) for row in rows] == [(row["low"], row["count"]) for row in moved]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_fitted_temperature_is_the_optimum_scipy_finds(sharpness):
    scores, answers = draw(3)
    scores = scores * sharpness
    nll = lambda log: c.negative_log_likelihood(scores, answers, np.exp(log)).mean()  # noqa: E731
    best = optimize.minimize_scalar(nll, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9}).x
    assert c.fit_temperature(scores, answers) == pytest.approx(np.exp(best), rel=1e-5)


def test_temperature_keeps_accuracy_and_does_not_worsen_the_fit_set():
    scores, answers = draw(4)
    temperature = c.fit_temperature(scores, answers)
    before, after = (c.confidence(scores, answers, t) for t in (1.0, temperature))
    np.testing.assert_array_equal(before[1], after[1])
    assert c.expected_calibration_error(*after) < c.expected_calibration_error(*before)


def test_temperatures_where_none_is_best():
    right = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert c.fit_temperature(right, [0, 1]) == pytest.approx(1e-4)
    assert c.fit_temperature(right, [1, 0]) == pytest.approx(1e4)
    assert c.fit_temperature(np.zeros((3, 2)), [0, 1, 1]) == 1.0
    assert c.fit_temperature(np.zeros((3, 1)), [0, 0, 0]) == 1.0


def test_an_option_that_is_not_there_has_no_weight():
    padded = np.array([[1.0, 0.0, -np.inf], [0.5, 2.0, 1.0]])
    np.testing.assert_allclose(c.brier(padded[:1], [0]), c.brier(padded[:1, :2], [0]))
    assert np.isfinite(c.fit_temperature(padded, [1, 0]))
    with pytest.raises(DataError, match="−inf"):
        c.fit_temperature(padded, [2, 0])


@pytest.mark.parametrize(
    "bad", [[[np.nan, 1]], [[np.inf, 1]], [[-np.inf, -np.inf]], np.zeros((0, 2)), [1.0, 2.0]]
)
def test_scores_without_probabilities_are_errors(bad):
    with pytest.raises(DataError):
        c.negative_log_likelihood(np.array(bad), [0] * len(bad))


def test_answers_must_fit():
    for answers in ([0, 1], [2], [-1]):
        with pytest.raises(DataError):
            c.brier(np.zeros((1, 2)), answers)
    with pytest.raises(DataError):
        c.reliability(np.array([]), np.array([]))
