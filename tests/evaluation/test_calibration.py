from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from mlx_hybrid.evaluation.figures import calibration_rows
from mlx_hybrid.evaluation.metrics import calibration as c
from mlx_hybrid.evaluation.results import Results
from mlx_hybrid.evaluation.sets import EvaluationSet
from mlx_hybrid.records.record import Record


def draw(seed: int, rows: int = 600, options: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident scores: the answer is the top option less often than they say."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (rows, options))
    return scores, np.where(rng.random(rows) < 0.6, scores.argmax(1), rng.integers(options, size=rows))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_nll_and_brier_agree_with_scikit_learn(temperature):
    scores, answers = draw(0)
    probabilities = np.exp(c.log_probabilities(scores / temperature))
    nll = c.negative_log_likelihood(scores / temperature, answers).mean()
    assert nll == pytest.approx(sk.log_loss(answers, probabilities), rel=1e-9)
    onehot = np.eye(4)[answers]
    expected = sum(sk.brier_score_loss(onehot[:, k], probabilities[:, k]) for k in range(4))
    assert c.brier(scores / temperature, answers).mean() == pytest.approx(expected)


def ece(confidences: np.ndarray, correct: np.ndarray) -> float:
    return c.ece_interval(confidences, correct, seed=0, samples=1).value


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_agrees_with_torchmetrics(bins, monkeypatch):
    monkeypatch.setattr(c, "BINS", bins)
    scores, answers = draw(1)
    probabilities = torch.tensor(np.exp(c.log_probabilities(scores)))
    theirs = multiclass_calibration_error(
        probabilities, torch.tensor(answers), num_classes=4, n_bins=bins, norm="l1"
    )
    assert ece(*c.confidence(scores, answers)) == pytest.approx(float(theirs), abs=1e-6)


def guo_ece(confidences: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """The loop of Guo et al. 2017, equation 3, with a confidence of 0, which it leaves out, in the first bin."""
    total = 0.0
    for low, high in zip(np.linspace(0, 1, bins + 1)[:-1], np.linspace(0, 1, bins + 1)[1:]):
        inside = ((confidences > low) | ((low == 0) & (confidences == 0))) & (confidences <= high)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    return total


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, *(k / 15 for k in range(16)), 0.5, 0.1, 1 / 3]), st.booleans()),
        min_size=1,
    )
)
def test_ece_on_the_edges_of_bins_is_guos(pairs):
    confidences, correct = np.array(pairs, float).T
    assert ece(confidences, correct) == pytest.approx(guo_ece(confidences, correct, c.BINS), abs=1e-12)


@pytest.mark.parametrize(
    "scores",
    [
        [[0.0, 0.0, 0.0]],
        [[1e4, -1e4, 0.0]],
        [[-1e4, -1e4 - 1, -2e4]],
        [[3.0, -np.inf, 1.0]],
        [[5.0]],
        [[700.0, 701.0], [-745.0, 0.0]],
        [[1e-300, 0.0]],
    ],
)
def test_probabilities_of_extreme_scores_are_scipys(scores):
    scores = np.array(scores)
    wanted = special.log_softmax(scores, axis=1)
    np.testing.assert_allclose(
        c.log_probabilities(scores), wanted, rtol=0, atol=1e-11
    )  # scores of 1e4 hold 2e-12
    p = special.softmax(scores, axis=1)
    wanted = ((p - np.eye(p.shape[1])[0]) ** 2).sum(1)
    np.testing.assert_allclose(c.brier(scores, [0] * len(scores)), wanted, atol=1e-12)


def test_of_equal_scores_the_first_is_the_one_believed():
    confidences, correct = c.confidence(np.zeros((2, 4)), [0, 3])
    assert confidences.tolist() == [0.25, 0.25]
    assert correct.tolist() == [True, False]


def test_bin_edges_belong_to_the_bin_below(monkeypatch):
    monkeypatch.setattr(c, "BINS", 5)
    rows = c.reliability(np.array([0.0, 0.2, 0.2000001, 1.0]), np.ones(4))
    assert [(row["confidence"], row["count"]) for row in rows] == [(0.1, 2), (0.2000001, 1), (1.0, 1)]


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_fitted_temperature_is_the_optimum_scipy_finds(sharpness):
    scores, answers = draw(3)
    scores = scores * sharpness
    nll = lambda log: c.negative_log_likelihood(scores / np.exp(log), answers).mean()  # noqa: E731
    best = optimize.minimize_scalar(nll, bounds=(-6, 6), method="bounded", options={"xatol": 1e-9}).x
    assert c.fit_temperature(scores, answers) == pytest.approx(np.exp(best), rel=1e-5)


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


def test_the_interval_of_ece_is_that_of_resampled_examples():
    confidences, correct = c.confidence(*draw(5))
    own = c.ece_interval(confidences, correct, seed=0, samples=2_000)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(1_000):
        index = rng.integers(600, size=600)
        drawn.append(guo_ece(confidences[index], correct[index], c.BINS))
    assert own.value == pytest.approx(ece(confidences, correct))
    assert (own.low, own.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.005)


def test_a_language_is_calibrated_as_its_records_alone():
    scores, answers = draw(2, rows=90)
    rows = [
        {
            "text": str(n),
            "language": "en" if n % 3 else "sw",
            "label": "abcd"[answer],
            "options": list("abcd"),
        }
        for n, answer in enumerate(answers)
    ]

    def table(which):
        records = [Record({**rows[n], "messages": []}, "made", int(n)) for n in which]
        options = [dict(zip("abcd", "abcd"))] * len(records)
        examples = EvaluationSet("classification", "made", 1, records, list("abcd"), options)
        return Results({}, tuple(calibration_rows(examples, scores[which], "", seed=0)))

    swahili = np.arange(0, 90, 3)
    alone, whole = table(swahili), table(np.arange(90))
    for metric in ("nll", "brier", "ece"):
        within = whole.get(metric, "model", "swh_Latn")
        assert replace(within, language="all") == alone.get(metric, "model")
        assert within.low < within.value < within.high
        assert within.n == within.groups == len(swahili)


def in_languages(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores that are too sharp, and partial to some answers, more so in one language."""
    rng = np.random.default_rng(seed)
    answers, languages = rng.integers(3, size=rows), rng.choice(["de", "sw"], rows).tolist()
    honest = 2 * np.eye(3)[answers] + rng.normal(0, 1, (rows, 3))
    partial = np.array([[0.8, 0, 0] if language == "de" else [1.6, 0, -0.5] for language in languages])
    return 2.5 * (honest + partial), answers, languages


def prior_and_loss(flat: np.ndarray, scores, answers, languages) -> float:
    """What the fit makes least, record by record; a row of `flat` is −log T and the biases of de, sw and all."""
    table, total = flat.reshape(3, 4), 0.0
    for score, answer, language in zip(scores, answers, languages):
        own = table[["de", "sw"].index(language)] + table[2]
        logits = score * np.exp(own[0]) + own[1:]
        total += special.logsumexp(logits) - logits[answer]
    spread = np.array([[c.SPREAD_OF_LANGUAGES]] * 2 + [[c.SPREAD]])
    return total + ((table / spread) ** 2).sum() / 2


def test_the_fit_by_language_is_the_optimum_that_scipy_finds():
    scores, answers, languages = in_languages(0, 40)
    own = c.fit_by_language(scores, answers, languages, list("abc"))
    best = optimize.minimize(
        prior_and_loss, np.zeros(12), (scores - scores.max(1, keepdims=True), answers, languages)
    ).x.reshape(3, 4)
    for place, name in enumerate(("de", "sw")):
        assert own.temperature[name] == pytest.approx(np.exp(-(best[place] + best[2])[0]), rel=0.01)
        assert list(own.bias[name].values()) == pytest.approx((best[place] + best[2])[1:], abs=0.01)
    assert own.temperature["all"] == pytest.approx(np.exp(-best[2, 0]), rel=0.01)


def test_the_temperature_over_it_has_the_least_brier_score_and_bears_wrong_answers():
    test, truth, places = in_languages(1, 4_000)
    scores, answers, languages = in_languages(0, 200)
    answers = np.where(
        np.arange(200) % 20, answers, scores.argmin(1)
    )  # a twentieth answers what is least likely
    labels = list("abc")
    first, own = (fit(scores, answers, languages, labels) for fit in (c.fit_by_language, c.fit_calibration))
    heat = own.temperature["all"] / first.temperature["all"]
    logs = np.linspace(-3, 3, 6001)
    logits, marks = first.logits(scores, languages, labels), np.eye(3)[answers]
    losses = [((special.softmax(logits / np.exp(x), 1) - marks) ** 2).sum() + x**2 / 2 for x in logs]
    assert heat == pytest.approx(np.exp(logs[np.argmin(losses)]), rel=0.002)
    np.testing.assert_allclose(own.logits(scores, languages, labels), logits / heat)
    errors = [ece(*c.confidence(fit.logits(test, places, labels), truth)) for fit in (own, first)]
    assert errors[0] < 0.75 * errors[1]


def test_calibration_by_language_beats_a_temperature_on_other_records_and_is_stored_as_it_is():
    test, answers, languages = in_languages(1, 4_000)
    dev = in_languages(2, 200)
    own = c.fit_calibration(*dev, list("abc"))
    logits = own.logits(test, languages, list("abc"))
    scaled = test / c.fit_temperature(*dev[:2])
    for measure in (c.negative_log_likelihood, c.brier):
        assert measure(logits, answers).mean() < measure(scaled, answers).mean() - 0.02
    errors = [ece(*c.confidence(own, answers)) for own in (logits, scaled, test)]
    assert errors[0] < errors[1] < errors[2]
    np.testing.assert_array_equal(c.Calibration(**asdict(own)).logits(test, languages, list("abc")), logits)
    turned = own.logits(test[:, ::-1], languages, list("cba"))
    np.testing.assert_allclose(turned[:, ::-1], logits)


def test_few_records_change_little_and_an_unseen_language_has_what_all_share():
    certain = np.array([[9.0, 0.0], [0.0, 9.0]])
    own = c.fit_calibration(certain, [0, 1], ["de", "de"], ["a", "b"])
    assert own.temperature["de"] == pytest.approx(1, abs=0.01)
    wrong = c.fit_calibration(certain, [1, 0], ["de", "de"], ["a", "b"])
    assert 1 < wrong.temperature["all"] < wrong.temperature["de"] < 50
    np.testing.assert_allclose(
        wrong.logits(certain, ["xx", "xx"], ["a", "b"]), certain / wrong.temperature["all"], atol=1e-3
    )
    padded = np.array([[1.0, 0.0, -np.inf], [0.0, 2.0, 1.0]])
    own = c.fit_calibration(padded, [0, 1], ["de", "de"], list("abc"))
    kept = own.logits(padded, ["de", "de"], list("abc"))
    assert (np.isfinite(kept) == np.isfinite(padded)).all()
