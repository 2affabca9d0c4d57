"""Which option is chosen, and how often that is right, with intervals."""

from collections.abc import Sequence

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import (
    Interval,
    bootstrap_mean,
    group_places,
    interval_of,
    resampled_sums,
)


def choose(scores: np.ndarray) -> np.ndarray:
    """The option with the highest score in each row; of equal ones the first."""
    return np.argmax(scores, axis=1)


def tied(scores: np.ndarray) -> int:
    """How many rows have more than one highest score."""
    scores = np.asarray(scores)
    return int(((scores == scores.max(1, keepdims=True)).sum(1) > 1).sum())


def accuracy(
    chosen: Sequence[int], answers: Sequence[int], *, seed: int, groups: Sequence | None = None
) -> Interval:
    """Share of right answers, by examples or resampled by group. Raises DataError when there are none."""
    return bootstrap_mean(_pair(chosen, answers)[2], seed=seed, groups=groups)


def macro_f1(
    chosen: Sequence[int],
    answers: Sequence[int],
    *,
    seed: int,
    samples: int = 10_000,
    groups: Sequence | None = None,
) -> Interval:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), of the classes that are an answer or are chosen.

    The interval resamples examples, or whole groups, with the counts of (answer, choice) pairs in each.
    """
    chosen, answers, _ = _pair(chosen, answers)
    pairs, kinds = np.unique(np.stack([answers, chosen], 1), axis=0, return_inverse=True)
    place = group_places(len(answers), groups)
    counts = np.zeros((place.max() + 1, len(pairs)))
    np.add.at(counts, (place, kinds.reshape(-1)), 1)
    drawn = _macro_f1(pairs, resampled_sums(counts, np.random.default_rng(seed), samples))
    return interval_of(float(_macro_f1(pairs, counts.sum(0)[None])[0]), drawn, len(counts))


def _pair(chosen: Sequence[int], answers: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chosen, answers = np.asarray(chosen), np.asarray(answers)
    if len(chosen) != len(answers):
        raise DataError(f"{len(chosen)} choices for {len(answers)} answers.")
    if not len(answers):
        raise DataError("Accuracy needs at least one example.")
    return chosen, answers, (chosen == answers).astype(np.float64)


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
