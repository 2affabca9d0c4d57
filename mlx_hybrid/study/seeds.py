"""Means over training seeds, their intervals, and whether two methods differ.

Two things move a figure: which seed trained the model, and which examples stand in the test set. Seeds are repeated and
examples are not, so

    SE² = s² / n + SE²_examples        s² over n seeds; SE_examples from resampled groups of the one test set

s² holds part of the examples' variance too, so the interval errs on the wide side. The bounds are those of Student's
t with Welch and Satterthwaite's degrees of freedom, (n − 1) · (SE² / (s² / n))², since only s² comes from few values.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, t

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import LEVEL

TAIL = (1 + LEVEL) / 2


def example_error(low: float, high: float) -> float:
    """Standard error of a 95 % interval over examples."""
    return float((high - low) / (2 * norm.ppf(TAIL)))


def mean_over_seeds(values: Sequence[float], errors: Sequence[float] = ()) -> dict[str, float]:
    """Mean of one value a seed (`value`, `seeds`), its interval (`low`, `high`), and `p`, two-sided, that it is zero.

    `errors` are standard errors over examples, of each value or of their mean. One seed gives an interval over examples
    alone, or of no width where there are none; that says nothing of chance, so p is then 1. Raises DataError on no
    value or one that is not finite.
    """
    values, count = np.asarray(values, np.float64), len(values)
    if not count or not np.isfinite(values).all():
        raise DataError("A mean over seeds needs at least one value, and finite ones.")
    seeds = values.var(ddof=1) / count if count > 1 else 0.0
    examples = np.mean(np.square(errors)) if len(errors) else 0.0
    error, mean = math.sqrt(seeds + examples), float(values.mean())
    degrees = (count - 1) * ((seeds + examples) / seeds) ** 2 if seeds else math.inf
    reach = float(error * t.ppf(TAIL, degrees))
    if error:
        p = float(2 * t.sf(abs(mean) / error, degrees))
    else:
        p = 1.0 if mean == 0 or count == 1 else 0.0
    return {"value": mean, "low": mean - reach, "high": mean + reach, "seeds": count, "p": p}


def difference_over_seeds(
    before: Sequence[float], after: Sequence[float], error: float = 0.0
) -> dict[str, float]:
    """`mean_over_seeds` of after minus before, paired by seed; `error` is that over examples of the mean difference."""
    if len(before) != len(after):
        raise DataError(
            f"A comparison over seeds needs as many on both sides, not {len(before)} and {len(after)}."
        )
    return mean_over_seeds(np.subtract(after, before), [error])


def holm(p_values: Sequence[float]) -> list[float]:
    """p adjusted for how many differences are tested at once. Holm 1979, https://www.jstor.org/stable/4615733."""
    order = np.argsort(p_values)
    stepped = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return adjusted.tolist()
