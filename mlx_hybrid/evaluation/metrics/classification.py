"""Which option is chosen, and how often that is right, with intervals."""

from collections.abc import Sequence

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import Interval, bootstrap


def choose(scores: np.ndarray) -> np.ndarray:
    """The option with the highest score in each row; of equal ones the first."""
    return np.argmax(scores, axis=1)


def tied(scores: np.ndarray) -> int:
    """How many rows have more than one highest score."""
    return int(((scores == scores.max(1, keepdims=True)).sum(1) > 1).sum())


def macro_f1(chosen: Sequence[int], answers: Sequence[int], **resampling) -> Interval:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), of the classes that are an answer or are chosen.

    The interval resamples examples, or whole groups, with the counts of (answer, choice) pairs in each.
    """
    if len(chosen) != len(answers):
        raise DataError(f"{len(chosen)} choices for {len(answers)} answers.")
    if not len(answers):
        raise DataError("Macro-F1 needs at least one example.")
    pairs, kinds = np.unique(np.stack([answers, chosen], 1), axis=0, return_inverse=True)
    table = np.eye(len(pairs))[kinds.reshape(-1)]
    return bootstrap(table, lambda counts: _macro_f1(pairs, counts), **resampling)


def _macro_f1(pairs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Macro-F1 of each row of counts (samples, pairs) of the (answer, choice) pairs."""
    total, present = np.zeros(len(counts)), np.zeros(len(counts))
    for label in np.unique(pairs):
        truth, choice = pairs[:, 0] == label, pairs[:, 1] == label
        hits = counts[:, truth & choice].sum(1)
        either = counts[:, truth].sum(1) + counts[:, choice].sum(1)
        total += np.where(either > 0, 2 * hits / np.maximum(either, 1), 0)
        present += either > 0
    return total / present
