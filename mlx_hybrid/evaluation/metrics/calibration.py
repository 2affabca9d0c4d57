"""How far a model's probabilities can be believed.

Scores are (n, options) log-likelihoods or logits, made probabilities by a softmax over the options; −inf is an
option that an example does not have. NaN, +inf, a row of −inf alone, an answer outside the options and an empty
set are DataErrors. Everything is float64.
"""

from collections.abc import Sequence

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import Interval, bootstrap

BINS = 15  # as Guo et al. 2017 report
INVERSE_TEMPERATURES = (1e-4, 1e4)  # where the fit stops when the best is at zero or infinity


def log_probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """log softmax(scores / temperature), (n, options)."""
    scores = check_scores(scores) / temperature
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def negative_log_likelihood(
    scores: np.ndarray, answers: Sequence[int], temperature: float = 1.0
) -> np.ndarray:
    """−log p(answer) of each example in nats, (n,)."""
    answers = check_answers(scores, answers)
    return -log_probabilities(scores, temperature)[np.arange(len(answers)), answers]


def brier(scores: np.ndarray, answers: Sequence[int], temperature: float = 1.0) -> np.ndarray:
    """Σₖ (pₖ − yₖ)² of each example, (n,), from 0 to 2. Brier 1950, doi 10.1175/1520-0493(1950)078<0001>2.0.CO;2."""
    answers = check_answers(scores, answers)
    errors = np.exp(log_probabilities(scores, temperature))
    errors[np.arange(len(answers)), answers] -= 1
    return (errors**2).sum(1)


def confidence(
    scores: np.ndarray, answers: Sequence[int], temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the likeliest option, and whether it is the answer; of equal ones the first counts."""
    answers = check_answers(scores, answers)
    probabilities = np.exp(log_probabilities(scores, temperature))
    return probabilities.max(1), np.argmax(scores, 1) == answers


def reliability(
    confidences: np.ndarray, correct: np.ndarray, *, bins: int = BINS, mass: str = "width"
) -> list[dict]:
    """One row a bin that is not empty: its bounds, count, mean confidence and accuracy.

    `width`: bin i holds confidences in (i/bins, (i+1)/bins], 0 going to the first. `mass`: as near as can be to
    n/bins examples each; equal confidences always share a bin, so the order of the examples does not matter.
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, np.float64)
    if not len(confidences):
        raise DataError("Calibration needs at least one example.")
    index = _width_bins(confidences, bins) if mass == "width" else _mass_bins(confidences, bins)
    rows = []
    for number in np.unique(index):
        inside = index == number
        values = confidences[inside]
        bounds = (number / bins, (number + 1) / bins) if mass == "width" else (values.min(), values.max())
        rows.append(
            {
                "low": float(bounds[0]),
                "high": float(bounds[1]),
                "count": int(inside.sum()),
                "confidence": float(values.mean()),
                "accuracy": float(correct[inside].mean()),
            }
        )
    return rows


def expected_calibration_error(
    confidences: np.ndarray, correct: np.ndarray, *, bins: int = BINS, mass: str = "width"
) -> float:
    """Σ_b n_b / n · |accuracy_b − confidence_b|. Guo et al. 2017, https://arxiv.org/abs/1706.04599."""
    rows = reliability(confidences, correct, bins=bins, mass=mass)
    count = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / count


def ece_interval(confidences: np.ndarray, correct: np.ndarray, **resampling) -> Interval:
    """ECE of equal width and its bootstrap interval; of few examples both lie above the true error (Kumar et al. 2019,
    section 4)."""
    gaps = np.asarray(correct, np.float64) - confidences
    inside = np.eye(BINS)[_width_bins(confidences, BINS)] * gaps[:, None]
    table = np.column_stack([inside, np.ones(len(gaps))])
    return bootstrap(table, lambda sums: np.abs(sums[:, :-1]).sum(1) / sums[:, -1], **resampling)


def fit_temperature(scores: np.ndarray, answers: Sequence[int]) -> float:
    """The temperature T > 0 with the least mean NLL of softmax(scores / T).

    The NLL is convex in β = 1/T with slope E_p[s] − s_answer, whose root is found over log β. Where every answer has
    the top score no finite T is best, and where scores tell against the answers none is either: the fit is then 1e-4
    or 1e4. Where no score differs, T = 1. Fit it on a development set, never on the test set.
    """
    from scipy import optimize

    answers, scores = check_answers(scores, answers), check_scores(scores)
    scores = scores - scores.max(1, keepdims=True)
    finite = np.where(np.isfinite(scores), scores, 0.0)
    if not finite.any():
        return 1.0
    wanted = scores[np.arange(len(answers)), answers]
    if not np.all(np.isfinite(wanted)):
        raise DataError("An answer has a score of −inf, so no temperature gives it a likelihood.")

    def slope(log: float) -> float:
        return float(((np.exp(log_probabilities(scores, np.exp(-log))) * finite).sum(1) - wanted).mean())

    low, high = np.log(INVERSE_TEMPERATURES)
    if slope(high) <= 0 or slope(low) >= 0:
        return float(np.exp(-high if slope(high) <= 0 else -low))
    return float(np.exp(-optimize.brentq(slope, low, high)))


def check_scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or not scores.size:
        raise DataError("Calibration needs at least one example with options, an (examples, options) array.")
    bad = np.flatnonzero(np.isnan(scores).any(1) | (scores == np.inf).any(1) | (scores == -np.inf).all(1))
    if bad.size:
        raise DataError(f"Example {bad[0]} has scores {scores[bad[0]].tolist()} that give no probabilities.")
    return scores


def check_answers(scores: np.ndarray, answers: Sequence[int]) -> np.ndarray:
    answers = np.asarray(answers)
    rows, options = np.shape(scores) if np.ndim(scores) == 2 else (0, 0)
    if len(answers) != rows:
        raise DataError(f"{len(answers)} answers for {rows} rows of scores.")
    bad = np.flatnonzero((answers < 0) | (answers >= options))
    if bad.size:
        raise DataError(f"Example {bad[0]} has answer {answers[bad[0]]}, outside its {options} options.")
    return answers.astype(np.int64)


def _width_bins(confidences: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidences, side="left") - 1, 0, bins - 1)


def _mass_bins(confidences: np.ndarray, bins: int) -> np.ndarray:
    """By the middle rank of each distinct value."""
    _, inverse, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return np.minimum((middle * bins / len(confidences)).astype(np.int64), bins - 1)[inverse]
