"""Figures with their bootstrap intervals: means, ratios, macro-F1, and how evenly a model serves its languages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_hybrid.errors import DataError

LEVEL = 0.95
MEASURES = ("mean", "worst", "range", "standard_deviation", "gap_to_pivot")
DRAWS_AT_ONCE = 1 << 22  # bounds the memory of one block of resamples to some tens of MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval, in the units of the values; `count` is of the units resampled."""

    value: float
    low: float
    high: float
    count: int


def bootstrap(
    table: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int,
    samples: int = 10_000,
    groups: Sequence | None = None,
) -> Interval:
    """A statistic, (samples, columns) → (samples,), of the sums of `table` (n, columns) with its percentile interval.

    With `groups` (n labels) whole groups are resampled: translations of a sentence are not independent. Raises
    DataError on no values. Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    if not table.size:
        raise DataError("No values: a mean and its interval need at least one.")
    sums, rng = table, np.random.default_rng(seed)
    if groups is not None:
        place = group_places(groups)
        sums = np.zeros((place.max() + 1, table.shape[1]))
        np.add.at(sums, place, table)
    units, counts = np.unique(sums, axis=0, return_counts=True)
    count, block = len(sums), max(1, DRAWS_AT_ONCE // len(sums))
    values = [statistic(sums.sum(0, keepdims=True))]
    for size in [min(block, samples - start) for start in range(0, samples, block)]:
        if len(units) * 4 <= count:  # how often each distinct value comes up is a multinomial
            drawn = rng.multinomial(count, counts / count, size=size) @ units
        else:
            index = rng.integers(count, size=(size, count))
            drawn = np.stack([column[index].sum(1) for column in sums.T], 1)
        values.append(statistic(drawn))
    return intervals_of({"": np.concatenate(values)}, count)[""]


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float], **resampling) -> Interval:
    """Σ numerators / Σ denominators (bits per byte, loss per token); resampling as in `bootstrap`."""
    table = np.stack([numerators, denominators], 1).astype(np.float64)
    return bootstrap(table, lambda sums: sums[:, 0] / sums[:, 1], **resampling)


def macro_f1(chosen: Sequence[int], answers: Sequence[int], **resampling) -> Interval:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN), of the classes that are an answer or are chosen; resampling as
    in `bootstrap`, with the counts of (answer, choice) pairs."""
    pairs, kinds = np.unique(np.stack([answers, chosen], 1), axis=0, return_inverse=True)
    truth, choice = (pairs[:, [side]] == np.unique(pairs) for side in (0, 1))  # (pairs, classes)

    def mean_f1(counts: np.ndarray) -> np.ndarray:
        hits, either = counts @ (truth & choice), counts @ truth + counts @ choice
        return (2 * hits / np.maximum(either, 1)).sum(1) / (either > 0).sum(1)

    return bootstrap(np.eye(len(pairs))[kinds.reshape(-1)], mean_f1, **resampling)


@dataclass(frozen=True)
class Columns:
    """A statistic of each of several names, (1 + samples, names): as observed, and over resampled groups."""

    names: list
    scores: np.ndarray
    groups: int


def bootstrap_each(
    names: Sequence,
    groups: Sequence,
    table: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    seed: int,
    samples: int,
) -> Columns:
    """A statistic, (samples, columns) → (samples,), of the summed rows of `table` (n, columns) of each name (n,).

    A group is drawn in all names together, and by the same seed alike for every table; draws in which a name gets no
    row are left out, and where no other are, the intervals have no width.
    """
    place, kinds = group_places(groups), sorted(set(names))
    count = int(place.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=samples)
    rows = [np.array([n for n, own in enumerate(names) if own == kind]) for kind in kinds]
    weights = [np.concatenate([np.ones((1, count), np.int64), drawn])[:, place[own]] for own in rows]
    whole = np.all([own.any(1) for own in weights], axis=0)
    scores = np.stack([statistic(own[whole] @ table[kept]) for own, kept in zip(weights, rows)], 1)
    return Columns(kinds, scores if len(scores) > 1 else np.repeat(scores, 2, 0), count)


def parity(
    values: Sequence[float],
    languages: Sequence[str],
    groups: Sequence,
    *,
    sizes: Sequence[float] | None = None,
    seed: int,
    pivot: str | None = None,
    samples: int = 2_000,
    higher_is_better: bool = True,
) -> dict[str, Interval]:
    """Each of MEASURES over Σ values / Σ sizes of each language, with its interval; sizes are 1 where none are given.

    A group that stands in several languages is drawn in all of them together. The gap is how much better the pivot is
    than the mean of the others.
    """
    table = np.stack([values, np.ones(len(values)) if sizes is None else sizes], 1).astype(np.float64)
    ratio = lambda sums: sums[:, 0] / sums[:, 1]  # noqa: E731
    own = bootstrap_each(languages, groups, table, ratio, seed=seed, samples=samples)
    place = own.names.index(pivot) if pivot in own.names else None
    return intervals_of(measures(own.scores, place, higher_is_better), own.groups)


def measures(table: np.ndarray, pivot: int | None, higher_is_better: bool = True) -> dict[str, np.ndarray]:
    """Each of MEASURES of each row of (samples, languages); no gap without a pivot or with no other."""
    worst = table.min(1) if higher_is_better else table.max(1)
    columns = [table.mean(1), worst, np.ptp(table, axis=1), table.std(1)]
    if pivot is not None and table.shape[1] > 1:
        gap = table[:, pivot] - np.delete(table, pivot, axis=1).mean(1)
        columns.append(gap if higher_is_better else -gap)
    return dict(zip(MEASURES, columns))


def intervals_of(figures: Mapping[str, np.ndarray], count: int) -> dict[str, Interval]:
    """Of each figure, (1 + samples,): the observed value, and the central LEVEL of the resampled ones."""
    bounds = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ends = {name: np.quantile(own[1:], bounds).tolist() for name, own in figures.items()}
    return {name: Interval(float(own[0]), *ends[name], count) for name, own in figures.items()}


def group_places(groups: Sequence) -> np.ndarray:
    """Number of each value's group, (n,)."""
    return np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)[1]
