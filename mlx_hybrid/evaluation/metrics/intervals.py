"""How far a figure can be trusted: bootstrap intervals, and an exact test of paired answers.

Resampling n values with replacement draws how often each distinct value comes up, which is a multinomial:
drawing the counts instead of the indices gives the same distribution and takes no time on accuracies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_hybrid.errors import DataError

LEVEL = 0.95
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
    """A statistic of the sums of the columns of `table` (n, columns), with its percentile bootstrap interval.

    `statistic` takes (samples, columns). With `groups` (n labels) whole groups are resampled: values in one group
    (translations of a sentence, one premise) are not independent. Raises DataError on no values, or one not finite.
    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    if not table.size:
        raise DataError("No values: a mean and its interval need at least one.")
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if bad.size:
        raise DataError(f"Value {bad[0]} is {table[bad[0]][0]}, and an interval needs finite ones.")
    sums = sums_by_group(table, groups)
    drawn = statistic(resampled_sums(sums, np.random.default_rng(seed), samples))
    return interval_of(float(statistic(sums.sum(0, keepdims=True))[0]), drawn, len(sums))


def bootstrap_ratio(numerators: Sequence[float], denominators: Sequence[float], **resampling) -> Interval:
    """Σ numerators / Σ denominators (bits per byte, loss per token); resampling as in `bootstrap`."""
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if len(numerators) != len(denominators) or not np.all(denominators > 0):
        raise DataError("A ratio needs one denominator above zero for every numerator.")
    return bootstrap(np.stack([numerators, denominators], 1), lambda s: s[:, 0] / s[:, 1], **resampling)


def bootstrap_mean(values: Sequence[float], **resampling) -> Interval:
    """Mean of `values` (n,), of groups Σ values / Σ sizes; resampling as in `bootstrap`."""
    return bootstrap_ratio(values, np.ones(len(values)), **resampling)


def paired_bootstrap(a: Sequence[float], b: Sequence[float], **resampling) -> Interval:
    """Mean of b − a over the same n examples, and its interval; above zero, b is better.

    Koehn 2004, https://aclanthology.org/W04-3250. Raises DataError where the lengths differ.
    """
    return bootstrap_mean(_change(a, b), **resampling)


def sign_flip(a_correct: Sequence[bool], b_correct: Sequence[bool], groups: Sequence) -> float:
    """Two-sided p of the exact sign-flip test on paired right-or-wrong answers in groups that are not independent.

    With d_g = Σ (b − a) over the examples of group g, p = P(|Σ s_g d_g| ≥ |Σ d_g|) over all signs s_g = ±1, by
    convolution. Where each example is its own group it is the exact test of McNemar 1947,
    https://doi.org/10.1007/BF02295996. Yeh 2000, https://aclanthology.org/C00-2137.
    """
    changes = sums_by_group(_change(a_correct, b_correct)[:, None], groups)[:, 0]
    sizes = np.abs(changes[changes != 0]).astype(int)
    whole = int(sizes.sum())
    chance = np.zeros(whole + 1)  # of each sum over the groups that keep their sign
    chance[0] = 1.0
    for size in sizes:
        moved = chance.copy()
        moved[size:] += chance[:-size]
        chance = moved / 2
    sums = 2 * np.arange(whole + 1) - whole
    return min(1.0, float(chance[np.abs(sums) >= abs(int(changes.sum()))].sum()))


def interval_of(value: float, drawn: np.ndarray, count: int) -> Interval:
    """The central LEVEL of the resampled values around the observed one."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), count)


def drawn_counts(units: int, *, seed: int, samples: int) -> np.ndarray:
    """How often each unit comes up in each resample, (samples, units)."""
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=samples)


def sums_by_group(table: np.ndarray, groups: Sequence | None) -> np.ndarray:
    """Sums of the rows of each group, (groups, columns); each row is its own where `groups` is None."""
    if groups is None:
        return table
    if len(groups) != len(table):
        raise DataError(f"{len(groups)} groups for {len(table)} values.")
    place = group_places(groups)
    sums = np.zeros((place.max(initial=-1) + 1, table.shape[1]))
    np.add.at(sums, place, table)
    return sums


def group_places(groups: Sequence) -> np.ndarray:
    """Number of each value's group, (n,)."""
    return np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)[1]


def resampled_sums(table: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Sums of each column of `table` (units, columns) over resampled units, (samples, columns)."""
    units, counts = np.unique(table, axis=0, return_counts=True)
    block = max(1, DRAWS_AT_ONCE // len(table))
    sums = []
    for start in range(0, samples, block):
        size = min(block, samples - start)
        if len(units) * 4 <= len(table):
            sums.append(rng.multinomial(len(table), counts / len(table), size=size) @ units)
        else:
            index = rng.integers(len(table), size=(size, len(table)))
            sums.append(np.stack([column[index].sum(1) for column in table.T], 1))
    return np.concatenate(sums)


def _change(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    """b − a of each example."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise DataError(f"A paired test needs the same examples on both sides, not {len(a)} and {len(b)}.")
    return b - a
