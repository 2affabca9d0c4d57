"""How evenly a model serves its languages."""

from collections.abc import Sequence

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import Interval, drawn_counts, interval_of, sums_by_group

MEASURES = ("mean", "worst", "range", "standard_deviation", "gap_to_pivot")


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

    Groups are resampled across languages at once: a group that stands in several (a translated sentence) is drawn in
    all of them together. Draws in which a language gets no example are left out; where no other are, the intervals
    have no width. The gap is how much better the pivot is than the mean of the others, left out without a pivot among
    the languages or with no other. Raises DataError on no language, or a value that is not finite.
    """
    names, column = np.unique(np.asarray(languages, str), return_inverse=True)
    if not len(names):
        raise DataError("Parity needs at least one language.")
    inside = column[:, None] == np.arange(len(names))
    sizes = np.ones(len(column)) if sizes is None else sizes
    totals, weights = (
        sums_by_group(np.where(inside, np.asarray(own, np.float64)[:, None], 0), groups)
        for own in (values, sizes)
    )
    table = totals.sum(0, keepdims=True) / weights.sum(0, keepdims=True)
    if bad := [name for name, value in zip(names, table[0]) if not np.isfinite(value)]:
        raise DataError(f"The value of {', '.join(bad)} is not finite, so languages cannot be compared.")
    place = list(names).index(pivot) if pivot in names else None
    observed = measures(table, place, higher_is_better)
    drawn = drawn_counts(len(totals), seed=seed, samples=samples)
    counts = drawn @ weights
    whole = (counts > 0).all(1)
    spread = observed
    if whole.any():
        spread = measures((drawn @ totals)[whole] / counts[whole], place, higher_is_better)
    return {name: interval_of(float(observed[name][0]), own, len(totals)) for name, own in spread.items()}


def measures(table: np.ndarray, pivot: int | None, higher_is_better: bool = True) -> dict[str, np.ndarray]:
    """Each of MEASURES of each row of (samples, languages); no gap without a pivot or with no other."""
    columns = [
        table.mean(1),
        table.min(1) if higher_is_better else table.max(1),
        np.ptp(table, axis=1),
        table.std(1),
    ]
    if pivot is not None and table.shape[1] > 1:
        gap = table[:, pivot] - np.delete(table, pivot, axis=1).mean(1)
        columns.append(gap if higher_is_better else -gap)
    return dict(zip(MEASURES, columns))
