"""How far a mean can be trusted: bootstrap intervals, the exact McNemar test and its form for groups.

Resampling n values with replacement draws how often each distinct value comes up, which is a multinomial:
drawing the counts instead of the indices gives the same distribution and takes no time on accuracies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_hybrid.errors import DataError

LEVEL = 0.95
MCNEMAR, SIGN_FLIP = "mcnemar_p", "sign_flip_p"
DRAWS_AT_ONCE = 1 << 22  # bounds the memory of one block of resamples to some tens of MB


@dataclass(frozen=True)
class Interval:
    """An estimate with its percentile interval, in the units of the values."""

    value: float
    low: float
    high: float
    level: float
    count: int
    """How many units were resampled: values, or groups where groups were given."""


def bootstrap_mean(
    values: Sequence[float],
    *,
    seed: int,
    samples: int = 10_000,
    groups: Sequence | None = None,
) -> Interval:
    """Mean of `values` (n,) and its percentile bootstrap interval.

    With `groups` (n labels) whole groups are resampled, the mean being Σ values / Σ sizes of those drawn:
    right where values in one group (translations of a sentence, one premise) are not independent. One unit
    alone gives an interval of width zero. Raises DataError on no values or a value that is not finite.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    values = _finite(values)
    totals, sizes = _by_group(values, groups)
    means = _resampled_means(totals, sizes, np.random.default_rng(seed), samples)
    return interval_of(float(values.mean()), means, len(totals))


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    seed: int,
    samples: int = 10_000,
    groups: Sequence | None = None,
) -> Interval:
    """Mean of b − a over the same n examples, and its interval; above zero, b is better.

    Koehn 2004, https://aclanthology.org/W04-3250. Raises DataError where the lengths differ.
    """
    a, b = _finite(a), _finite(b)
    if len(a) != len(b):
        raise DataError(
            f"A paired comparison needs as many examples on both sides, not {len(a)} and {len(b)}."
        )
    return bootstrap_mean(b - a, seed=seed, samples=samples, groups=groups)


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    seed: int,
    samples: int = 10_000,
    groups: Sequence | None = None,
) -> Interval:
    """Σ numerators / Σ denominators (bits per byte, loss per token) over resampled examples or groups."""
    numerators, denominators = _finite(numerators), _finite(denominators)
    if len(numerators) != len(denominators) or not np.all(denominators > 0):
        raise DataError("A ratio needs one denominator above zero for every numerator.")
    totals, _ = _by_group(numerators, groups)
    sizes, _ = _by_group(denominators, groups)
    means = _resampled_means(totals, sizes, np.random.default_rng(seed), samples)
    return interval_of(float(numerators.sum() / denominators.sum()), means, len(totals))


def bootstrap_statistic(
    statistic: Callable[[np.ndarray], float],
    count: int,
    *,
    seed: int,
    samples: int = 1_000,
    groups: Sequence | None = None,
) -> Interval:
    """Interval of any statistic of `count` examples, or of whole groups of them; `statistic` takes an array of
    indices."""
    if count == 0:
        raise DataError("No values: a mean and its interval need at least one.")
    place = group_places(count, groups)
    sizes = np.bincount(place)
    order, ends, units = np.argsort(place, kind="stable"), np.cumsum(sizes), len(sizes)

    def members(own: np.ndarray) -> np.ndarray:
        """The examples of the groups drawn, one after the other."""
        first = np.repeat(ends[own] - np.cumsum(sizes[own]), sizes[own])
        return order[first + np.arange(sizes[own].sum())]

    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(members(rng.integers(units, size=units))) for _ in range(samples)])
    return interval_of(float(statistic(np.arange(count))), drawn, units)


def mcnemar(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> float:
    """Two-sided p of the exact McNemar test on paired right-or-wrong answers.

    With x and y examples that only a, only b answers rightly, p = min(1, 2 P(Bin(x + y, ½) ≤ min(x, y)));
    1 where the two never disagree. McNemar 1947, https://doi.org/10.1007/BF02295996.
    """
    changes = _paired(a_correct, b_correct)
    only_a, only_b = int((changes < 0).sum()), int((changes > 0).sum())
    count = only_a + only_b
    if count == 0:
        return 1.0
    tail, term = 0, 1
    for k in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (count - k) // (k + 1)
    return min(1.0, tail / (1 << (count - 1)))  # integers, so exact for any count


def sign_flip(a_correct: Sequence[bool], b_correct: Sequence[bool], groups: Sequence) -> float:
    """Two-sided p of the exact sign-flip test on paired right-or-wrong answers in groups that are not independent.

    With d_g = Σ (b − a) over the examples of group g, p = P(|Σ s_g d_g| ≥ |Σ d_g|) over signs s_g = ±1, all 2^groups
    of them: without a true gain a group may as well have come out the other way round. Sums of whole numbers have their
    distribution by convolution, so nothing is drawn. It is McNemar's test where each example is its own group, and 1
    where the two never differ. Yeh 2000, https://aclanthology.org/C00-2137. Raises DataError where the lengths differ.
    """
    changes, _ = _by_group(_finite(_paired(a_correct, b_correct)), groups)
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


def paired_test(a_correct: Sequence[bool], b_correct: Sequence[bool], groups: Sequence) -> tuple[str, float]:
    """The test that fits, MCNEMAR where no group repeats, else SIGN_FLIP, and its p that both are right as often."""
    if len({str(group) for group in groups}) == len(groups):
        return MCNEMAR, mcnemar(a_correct, b_correct)
    return SIGN_FLIP, sign_flip(a_correct, b_correct, groups)


def interval_of(value: float, drawn: np.ndarray, count: int) -> Interval:
    """The central LEVEL of the resampled values around the observed one."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high), LEVEL, count)


def _paired(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> np.ndarray:
    """1 where only b is right, −1 where only a is, else 0."""
    a, b = np.asarray(a_correct, bool), np.asarray(b_correct, bool)
    if a.shape != b.shape:
        raise DataError(f"A paired test needs the same examples on both sides, not {len(a)} and {len(b)}.")
    return b.astype(int) - a


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64).reshape(-1)
    if array.size == 0:
        raise DataError("No values: a mean and its interval need at least one.")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise DataError(
            f"Value {bad[0]} of {array.size} is {array[bad[0]]}, and an interval needs finite ones."
        )
    return array


def _by_group(values: np.ndarray, groups: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and size of each group; each value is its own where `groups` is None."""
    index = group_places(len(values), groups)
    return np.bincount(index, weights=values), np.bincount(index).astype(np.float64)


def group_places(count: int, groups: Sequence | None) -> np.ndarray:
    """Number of each value's group, (count,); each value is its own where `groups` is None."""
    if groups is None:
        return np.arange(count)
    if len(groups) != count:
        raise DataError(f"{len(groups)} groups for {count} values.")
    return np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)[1]


def _resampled_means(
    totals: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, samples: int
) -> np.ndarray:
    """Σ totals / Σ sizes over resampled units, (samples,)."""
    drawn = resampled_sums(np.stack([totals, sizes], 1), rng, samples)
    return drawn[:, 0] / drawn[:, 1]


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
