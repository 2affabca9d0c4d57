"""How evenly a model serves its languages."""

from collections.abc import Mapping, Sequence

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import Interval, interval_of

MEASURES = ("mean", "worst", "range", "standard_deviation", "gap_to_pivot")


def parity(
    values: Mapping[str, Sequence[float]],
    groups: Mapping[str, Sequence],
    *,
    sizes: Mapping[str, Sequence[float]] | None = None,
    seed: int,
    pivot: str | None = None,
    samples: int = 2_000,
    higher_is_better: bool = True,
) -> dict[str, Interval]:
    """Each of MEASURES over Σ values / Σ sizes of each language, with its interval; sizes are 1 where none are given.

    Groups are resampled across languages at once: a group that stands in several (a translated sentence) is drawn in
    all of them together. Draws in which a language gets no example are left out; where no other are, the intervals
    have no width. The gap is how much better the pivot is than the mean of the others, left out without a pivot among
    the languages or with no other. Raises DataError on no language, an empty one, or a value that is not finite.
    """
    languages = sorted(values)
    totals, weights = _group_tables(languages, values, groups, sizes)
    table = totals.sum(0, keepdims=True) / weights.sum(0, keepdims=True)
    _check(languages, table)
    place = languages.index(pivot) if pivot in languages else None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=samples)
    counts = drawn @ weights
    whole = (counts > 0).all(1)
    observed = measures(table, place, higher_is_better)
    spread = (
        measures((drawn @ totals)[whole] / counts[whole], place, higher_is_better)
        if whole.any()
        else observed
    )
    return {
        name: interval_of(float(observed[name][0]), column, len(totals))
        for name, column in spread.items()
        if column is not None
    }


def measures(
    table: np.ndarray, pivot: int | None, higher_is_better: bool = True
) -> dict[str, np.ndarray | None]:
    """Each of MEASURES of each row of (samples, languages); the gap is None without a pivot or with no other."""
    gap = None
    if pivot is not None and table.shape[1] > 1:
        gap = table[:, pivot] - np.delete(table, pivot, axis=1).mean(1)
        gap = gap if higher_is_better else -gap
    columns = (
        table.mean(1),
        table.min(1) if higher_is_better else table.max(1),
        np.ptp(table, axis=1),
        table.std(1),
        gap,
    )
    return dict(zip(MEASURES, columns))


def _group_tables(
    languages: list[str],
    values: Mapping[str, Sequence[float]],
    groups: Mapping[str, Sequence],
    sizes: Mapping[str, Sequence[float]] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values and of sizes, (groups, languages)."""
    names = sorted({str(group) for language in languages for group in groups[language]})
    row = {name: number for number, name in enumerate(names)}
    totals, weights = np.zeros((len(names), len(languages))), np.zeros((len(names), len(languages)))
    for column, language in enumerate(languages):
        if not len(values[language]):
            raise DataError(f"No examples in {language}; leave out the language or give it data.")
        rows = [row[str(group)] for group in groups[language]]
        np.add.at(totals[:, column], rows, np.asarray(values[language], np.float64))
        np.add.at(weights[:, column], rows, 1 if sizes is None else np.asarray(sizes[language], np.float64))
    return totals, weights


def _check(languages: list[str], table: np.ndarray) -> None:
    if not languages:
        raise DataError("Parity needs at least one language.")
    bad = [language for language, value in zip(languages, table[0]) if not np.isfinite(value)]
    if bad:
        raise DataError(f"The value of {', '.join(bad)} is not finite, so languages cannot be compared.")
