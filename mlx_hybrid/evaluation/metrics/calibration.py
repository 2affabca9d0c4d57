"""How far a model's probabilities can be believed.

Scores are (n, options) log-likelihoods or logits, made probabilities by a softmax; −inf is an option that is not there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mlx_hybrid.evaluation.metrics.intervals import Interval, bootstrap
from mlx_hybrid.files import read_json, write_json

BINS = 15  # of equal width, as Guo et al. 2017 report
INVERSE_TEMPERATURES = (1e-4, 1e4)  # where the fit stops when the best is at zero or infinity
SPREAD, SPREAD_OF_LANGUAGES = 1.0, 0.3  # of biases and log temperatures, in nats, before anything is seen
EVERY = "all"
CONFIG = "adapter_config.json"


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """log softmax(scores), (n, options)."""
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def marked(scores: np.ndarray, answers: Sequence[int]) -> np.ndarray:
    """Where the answer of each example stands among its scores, (n, options)."""
    return np.asarray(answers)[:, None] == np.arange(scores.shape[1])


def negative_log_likelihood(scores: np.ndarray, answers: Sequence[int]) -> np.ndarray:
    """−log p(answer) of each example in nats, (n,)."""
    return -log_probabilities(scores)[marked(scores, answers)]


def brier(scores: np.ndarray, answers: Sequence[int]) -> np.ndarray:
    """Σₖ (pₖ − yₖ)² of each example, (n,), from 0 to 2. Brier 1950, doi 10.1175/1520-0493(1950)078<0001>2.0.CO;2."""
    return ((np.exp(log_probabilities(scores)) - marked(scores, answers)) ** 2).sum(1)


def confidence(scores: np.ndarray, answers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The probability of the likeliest option, and whether it is the answer; of equal ones the first counts."""
    return np.exp(log_probabilities(scores)).max(1), scores.argmax(1) == answers


def bin_of(confidences: np.ndarray) -> np.ndarray:
    """The bin of each confidence: bin i holds those in (i/BINS, (i+1)/BINS], 0 going to the first."""
    return np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1), confidences, side="left") - 1, 0, BINS - 1)


def reliability(confidences: np.ndarray, correct: np.ndarray) -> list[dict]:
    """Count, mean confidence and accuracy of each bin that is not empty."""
    index = bin_of(confidences)
    counts = np.bincount(index)
    held = np.flatnonzero(counts)
    sure, right = (np.bincount(index, own)[held] / counts[held] for own in (confidences, correct))
    keys = ("count", "confidence", "accuracy")
    return [dict(zip(keys, row)) for row in zip(counts[held].tolist(), sure.tolist(), right.tolist())]


def ece_interval(confidences: np.ndarray, correct: np.ndarray, **resampling) -> Interval:
    """Σ_b n_b / n · |accuracy_b − confidence_b| and its bootstrap interval; of few examples both lie above the true
    error (Kumar et al. 2019, section 4). Guo et al. 2017, https://arxiv.org/abs/1706.04599."""
    gaps = np.asarray(correct, np.float64) - confidences
    inside = np.eye(BINS)[bin_of(confidences)] * gaps[:, None]
    table = np.column_stack([inside, np.ones(len(gaps))])
    return bootstrap(table, lambda sums: np.abs(sums[:, :-1]).sum(1) / sums[:, -1], **resampling)


def fit_temperature(
    scores: np.ndarray,
    answers: Sequence[int],
    loss: Callable[..., np.ndarray] = negative_log_likelihood,
    prior: float = 0.0,
) -> float:
    """The temperature T > 0 with the least Σ loss(scores / T) + prior (log T)² / 2, to be fitted on a development set.

    Where no finite T is best, the fit is an end of INVERSE_TEMPERATURES, and 1 where no score differs.
    """
    from scipy import optimize

    def cost(log: float) -> float:
        return float(loss(scores / np.exp(log), answers).sum() + prior * log**2 / 2)

    ends = sorted(-np.log(INVERSE_TEMPERATURES))
    found = optimize.minimize_scalar(cost, bounds=ends, options={"xatol": 1e-7}).x
    return float(np.exp(min((0.0, *ends, found), key=cost)))


@dataclass(frozen=True)
class Calibration:
    """Scores made honest: zₖ = sₖ / T_l + b_lₖ for option k of a record in language l, `all` for those not fitted."""

    temperature: Mapping[str, float]
    bias: Mapping[str, Mapping[str, float]]
    records: int

    def logits(self, scores: np.ndarray, languages: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        """Calibrated scores (n, labels) of records in these languages."""
        known = [language if language in self.temperature else EVERY for language in languages]
        heat = np.array([self.temperature[language] for language in known])
        bias = np.array([[self.bias[language].get(label, 0.0) for label in labels] for language in known])
        return scores / heat[:, None] + bias


def read_calibration(adapter: Path | None) -> Calibration | None:
    """The one stored with an adapter, if any."""
    own = read_json(adapter / CONFIG).get("mlx_hybrid", {}) if adapter else {}
    return Calibration(**own["calibration"]) if "calibration" in own else None


def write_calibration(adapter: Path, calibration: Calibration) -> None:
    """Store one with an adapter of ours; stock mlx-lm's has no place for it."""
    tree = read_json(adapter / CONFIG)
    if "mlx_hybrid" in tree:
        tree["mlx_hybrid"]["calibration"] = asdict(calibration)
        write_json(adapter / CONFIG, tree)


def fit_calibration(
    scores: np.ndarray, answers: Sequence[int], languages: Sequence[str], labels: Sequence[str]
) -> Calibration:
    """The fit by language, and one temperature over it with the least Brier score, which few answers that are far off
    rule less than they do the NLL. Fit it on a development set, never on the test set."""
    fitted = fit_by_language(scores, answers, languages, labels)
    heat = fit_temperature(fitted.logits(scores, languages, labels), answers, brier, SPREAD**-2)
    temperature = {name: own * heat for name, own in fitted.temperature.items()}
    bias = {name: {label: b / heat for label, b in own.items()} for name, own in fitted.bias.items()}
    return Calibration(temperature, bias, len(scores))


def fit_by_language(
    scores: np.ndarray, answers: Sequence[int], languages: Sequence[str], labels: Sequence[str]
) -> Calibration:
    """The temperature and the bias of each label with the least NLL of the answers, shrunk for each language.

    log T and b have normal priors: those of all languages around 0, those of one language around the former, so that
    few records change little.
    """
    from scipy import optimize

    wanted, names = marked(scores, answers), sorted(set(languages))
    scores = scores - scores.max(1, keepdims=True)
    finite = np.where(np.isfinite(scores), scores, 0.0)
    place, shape = np.searchsorted(names, languages), (len(names) + 1, len(labels) + 1)
    spread = np.array([SPREAD_OF_LANGUAGES] * len(names) + [SPREAD])[:, None]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """NLL and priors of (languages and all, −log T and biases), and the gradient."""
        table = flat.reshape(shape)
        own = table[place] + table[-1]
        steep = np.exp(own[:, :1])
        log_p = log_probabilities(scores * steep + own[:, 1:])
        errors = np.exp(log_p) - wanted
        slopes = np.column_stack([(errors * finite).sum(1) * steep[:, 0], errors])
        gradient = table / spread**2
        np.add.at(gradient, place, slopes)
        gradient[-1] += slopes.sum(0)
        return ((table / spread) ** 2).sum() / 2 - log_p[wanted].sum(), gradient.ravel()

    found = optimize.minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B").x.reshape(shape)
    tables = dict(zip(names, found[:-1] + found[-1])) | {EVERY: found[-1]}
    heat = {name: float(np.exp(-own[0])) for name, own in tables.items()}
    bias = {name: dict(zip(labels, own[1:].tolist())) for name, own in tables.items()}
    return Calibration(heat, bias, len(scores))
