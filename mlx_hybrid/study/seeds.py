"""Means over training seeds, their intervals, and whether two methods differ.

Two things move a figure: which seed trained the model, and which examples stand in the test set. Seeds are repeated and
examples are not, so

    SE² = s² / n + SE²_examples        s² over n seeds; SE_examples from resampled groups of the one test set

s² holds part of the examples' variance too, so the interval errs on the wide side. The bounds are those of Student's
t with Welch and Satterthwaite's degrees of freedom, (n − 1) · (SE² / (s² / n))², since only s² comes from few values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import LEVEL

NORMAL_95 = 1.959964
GRID = 1001  # points of the integral; its error is below 1e-7 for one to a thousand degrees
MOST_DEGREES = 1e3  # from here on the normal distribution is taken, right to 2e-3 in the quantile


@dataclass(frozen=True)
class SeedMean:
    """A mean over seeds with its interval; of a difference also `p`, two-sided, that it is zero."""

    value: float
    low: float
    high: float
    seeds: int
    p: float | None = None


def example_error(low: float, high: float) -> float:
    """Standard error of a 95 % interval over examples."""
    return (high - low) / (2 * NORMAL_95)


def mean_over_seeds(values: Sequence[float], errors: Sequence[float] = ()) -> SeedMean:
    """Mean of one value a seed and its interval; `errors` are each value's standard errors over examples.

    One seed gives an interval over examples alone, or of no width where there are none. Raises DataError on no value or
    one that is not finite.
    """
    values = finite(values)
    mean, error, degrees = float(values.mean()), *combined_error(values, errors)
    reach = error * student_quantile((1 + LEVEL) / 2, degrees)
    return SeedMean(mean, mean - reach, mean + reach, len(values))


def difference_over_seeds(before: Sequence[float], after: Sequence[float], error: float = 0.0) -> SeedMean:
    """After minus before, paired by seed; `error` is the standard error over examples of the mean difference.

    One seed without such an error says nothing of chance, so p is then 1.
    """
    before, after = finite(before), finite(after)
    if len(before) != len(after):
        raise DataError(
            f"A comparison over seeds needs as many on both sides, not {len(before)} and {len(after)}."
        )
    changes = after - before
    total, degrees = combined_error(changes, [error])
    mean = float(changes.mean())
    reach = total * student_quantile((1 + LEVEL) / 2, degrees)
    unknown = total == 0 and len(changes) < 2
    p = (
        1.0
        if mean == 0 or unknown
        else 0.0
        if total == 0
        else 2 * (1 - student_cdf(abs(mean) / total, degrees))
    )
    return SeedMean(mean, mean - reach, mean + reach, len(changes), p)


def combined_error(values: np.ndarray, errors: Sequence[float]) -> tuple[float, float]:
    """(SE of the mean, its degrees of freedom)."""
    count = len(values)
    seeds = float(values.var(ddof=1)) / count if count > 1 else 0.0
    examples = float(np.mean(np.square(errors))) if len(errors) else 0.0
    degrees = (count - 1) * ((seeds + examples) / seeds) ** 2 if seeds > 0 else math.inf
    return math.sqrt(seeds + examples), degrees


def finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64).reshape(-1)
    if not array.size or not np.isfinite(array).all():
        raise DataError("A mean over seeds needs at least one value, and finite ones.")
    return array


def student_cdf(t: float, degrees: float) -> float:
    """P(T ≤ t) of Student's t, t ≥ 0: with t = √ν tan θ the density is proportional to cos^(ν−1) θ."""
    if degrees > MOST_DEGREES:
        return 0.5 * (1 + math.erf(t / math.sqrt(2)))
    angle = math.atan(t / math.sqrt(degrees))
    return 0.5 + 0.5 * cosine_integral(angle, degrees - 1) / whole_integral(degrees - 1)


@lru_cache
def whole_integral(power: float) -> float:
    return cosine_integral(math.pi / 2, power)


def cosine_integral(angle: float, power: float) -> float:
    """∫₀^angle cos^power θ dθ by Simpson's rule."""
    theta = np.linspace(0, angle, GRID)
    heights = np.clip(np.cos(theta), 0, 1) ** power
    weights = np.full(GRID, 2.0)
    weights[1::2], weights[0], weights[-1] = 4.0, 1.0, 1.0
    return float(heights @ weights) * angle / (GRID - 1) / 3


def student_quantile(share: float, degrees: float) -> float:
    """The t with P(T ≤ t) = share ≥ ½, by bisection."""
    low, high = 0.0, 1e3
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < share else (low, middle)
    return (low + high) / 2


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p adjusted for how many differences are tested at once. Holm 1979, https://www.jstor.org/stable/4615733."""
    adjusted, largest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p))
        adjusted[name] = largest
    return adjusted
