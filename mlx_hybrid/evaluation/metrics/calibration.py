"""How far a model's probabilities can be believed.

Scores are (n, options) log-likelihoods or logits, made probabilities by a softmax over the options; −inf is an
option that an example does not have. NaN, +inf, a row of −inf alone, an answer outside the options and an empty
set are DataErrors. Everything is float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import Interval, bootstrap

BINS = 15  # as Guo et al. 2017 report
INVERSE_TEMPERATURES = (1e-4, 1e4)  # where the fit stops when the best is at zero or infinity
SPREAD, SPREAD_OF_LANGUAGES = 1.0, 0.3  # of biases and log temperatures, in nats, before anything is seen
EVERY = "all"


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """log softmax(scores), (n, options)."""
    scores = check_scores(scores)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def negative_log_likelihood(scores: np.ndarray, answers: Sequence[int]) -> np.ndarray:
    """−log p(answer) of each example in nats, (n,)."""
    answers = check_answers(scores, answers)
    return -log_probabilities(scores)[np.arange(len(answers)), answers]


def brier(scores: np.ndarray, answers: Sequence[int]) -> np.ndarray:
    """Σₖ (pₖ − yₖ)² of each example, (n,), from 0 to 2. Brier 1950, doi 10.1175/1520-0493(1950)078<0001>2.0.CO;2."""
    answers = check_answers(scores, answers)
    errors = np.exp(log_probabilities(scores))
    errors[np.arange(len(answers)), answers] -= 1
    return (errors**2).sum(1)


def confidence(scores: np.ndarray, answers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the likeliest option, and whether it is the answer; of equal ones the first counts."""
    answers = check_answers(scores, answers)
    return np.exp(log_probabilities(scores)).max(1), np.argmax(scores, 1) == answers


def reliability(
    confidences: np.ndarray, correct: np.ndarray, *, bins: int = BINS, mass: bool = False
) -> list[dict]:
    """Count, mean confidence and accuracy of each bin that is not empty; `bin_of` says what a bin is."""
    index = bin_of(confidences, bins, mass)
    counts = np.bincount(index)
    held = np.flatnonzero(counts)
    sure, right = (np.bincount(index, own)[held] / counts[held] for own in (confidences, correct))
    keys = ("count", "confidence", "accuracy")
    return [dict(zip(keys, row)) for row in zip(counts[held].tolist(), sure.tolist(), right.tolist())]


def expected_calibration_error(
    confidences: np.ndarray, correct: np.ndarray, *, bins: int = BINS, mass: bool = False
) -> float:
    """Σ_b n_b / n · |accuracy_b − confidence_b|. Guo et al. 2017, https://arxiv.org/abs/1706.04599."""
    gaps = np.asarray(correct, np.float64) - confidences
    return float(np.abs(np.bincount(bin_of(confidences, bins, mass), gaps)).sum() / len(gaps))


def bin_of(confidences: np.ndarray, bins: int, mass: bool = False) -> np.ndarray:
    """The bin of each confidence: bin i holds those in (i/bins, (i+1)/bins], 0 going to the first.

    With `mass` as near as can be to n/bins examples each, by the middle rank of each value: equal ones share a bin.
    """
    if not len(confidences):
        raise DataError("Calibration needs at least one example.")
    if not mass:
        edges = np.searchsorted(np.linspace(0, 1, bins + 1), confidences, side="left")
        return np.clip(edges - 1, 0, bins - 1)
    _, inverse, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return np.minimum((middle * bins / len(confidences)).astype(np.int64), bins - 1)[inverse]


def ece_interval(confidences: np.ndarray, correct: np.ndarray, **resampling) -> Interval:
    """ECE of equal width and its bootstrap interval; of few examples both lie above the true error (Kumar et al. 2019,
    section 4)."""
    gaps = np.asarray(correct, np.float64) - confidences
    inside = np.eye(BINS)[bin_of(confidences, BINS)] * gaps[:, None]
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
        return float(((np.exp(log_probabilities(scores * np.exp(log))) * finite).sum(1) - wanted).mean())

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


@dataclass(frozen=True)
class Calibration:
    """Scores made honest: zₖ = sₖ / T_l + b_lₖ for the option k of a record in language l.

    Temperatures and biases are by language; `all` stands for languages that were not there when it was fitted.
    """

    temperature: Mapping[str, float]
    bias: Mapping[str, Mapping[str, float]]
    records: int

    def logits(self, scores: np.ndarray, languages: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Calibrated scores (n, labels) of records in these languages."""
        known = [language if language in self.temperature else EVERY for language in languages]
        heat = np.array([self.temperature[language] for language in known])
        bias = np.array([[self.bias[language].get(label, 0.0) for label in labels] for language in known])
        return check_scores(scores) / heat[:, None] + bias

    def tree(self) -> dict:
        return asdict(self)


def fit_calibration(
    scores: np.ndarray, answers: Sequence[int], languages: Sequence[str], labels: Sequence[str]
) -> Calibration:
    """The temperature and the bias of each label with the least NLL of the answers, shrunk for each language.

    log T and b have normal priors: those of all languages around 0, those of one language around the former, so that
    few records change little. Fit it on a development set, never on the test set.
    """
    from scipy import optimize

    answers, scores = check_answers(scores, answers), check_scores(scores)
    scores = scores - scores.max(1, keepdims=True)
    finite, names = np.where(np.isfinite(scores), scores, 0.0), sorted(set(languages))
    place, rows = np.searchsorted(names, languages), np.arange(len(answers))
    shape, spread = (len(names) + 1, len(labels) + 1), np.full((len(names) + 1, 1), SPREAD_OF_LANGUAGES)
    spread[-1] = SPREAD

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """NLL and priors of (languages and all, −log T and biases), and the gradient."""
        table = flat.reshape(shape)
        own = table[place] + table[-1]
        steep = np.exp(own[:, :1])
        log_p = log_probabilities(scores * steep + own[:, 1:])
        errors = np.exp(log_p)
        errors[rows, answers] -= 1
        slopes = np.column_stack([(errors * finite).sum(1) * steep[:, 0], errors])
        gradient = table / spread**2
        np.add.at(gradient, place, slopes)
        gradient[-1] += slopes.sum(0)
        return ((table / spread) ** 2).sum() / 2 - log_p[rows, answers].sum(), gradient.ravel()

    found = optimize.minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B").x.reshape(shape)
    tables = dict(zip(names, found[:-1] + found[-1])) | {EVERY: found[-1]}
    heat = {name: float(np.exp(-own[0])) for name, own in tables.items()}
    bias = {name: dict(zip(labels, own[1:].tolist())) for name, own in tables.items()}
    return Calibration(heat, bias, len(answers))
