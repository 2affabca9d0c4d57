"""How evenly a model serves its languages, and the two directions of a translation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import interval_of

MEASURES = ("mean", "worst", "range", "standard_deviation", "gap_to_pivot")


def parity(values: Mapping[str, float], *, pivot: str | None = None, higher_is_better: bool = True) -> dict:
    """Spread of one value a language: worst, range, standard deviation (population), gap to the pivot.

    The gap is how much better the pivot is than the mean of the others, in the unit of the values; None without
    a pivot among the languages or with no other. Raises DataError on no language or a value not finite.
    """
    languages = sorted(values)
    table = np.array([[values[language] for language in languages]], np.float64)
    _check(languages, table)
    row = measures(table, _place(languages, pivot), higher_is_better)
    worst = (np.argmin if higher_is_better else np.argmax)(table[0])
    best = (np.argmax if higher_is_better else np.argmin)(table[0])
    return {
        **{name: None if column is None else float(column[0]) for name, column in row.items()},
        "worst_language": languages[worst], "best_language": languages[best], "pivot": pivot,
    }  # fmt: skip


def parity_intervals(
    values: Mapping[str, Sequence[float]],
    groups: Mapping[str, Sequence],
    *,
    seed: int,
    pivot: str | None = None,
    samples: int = 10_000,
) -> dict[str, dict]:
    """Intervals of the measures of `parity` over per-example values, resampling groups across languages at once.

    A group that stands in several languages (a translated sentence) is drawn in all of them together. Draws in
    which a language gets no example are left out; where no other are, the intervals have no width.
    """
    languages = sorted(values)
    totals, sizes = _group_tables(languages, values, groups)
    table = totals.sum(0, keepdims=True) / sizes.sum(0, keepdims=True)
    _check(languages, table)
    place = _place(languages, pivot)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=samples)
    counts = weights @ sizes
    whole = (counts > 0).all(1)
    observed = measures(table, place)
    drawn = measures((weights @ totals)[whole] / counts[whole], place) if whole.any() else observed
    return {
        name: asdict(interval_of(float(observed[name][0]), column, len(totals)))
        for name, column in drawn.items()
        if column is not None
    }


def directional_balance(values: Mapping[tuple[str, str], float], *, pivot: str) -> dict:
    """pivot→xx minus xx→pivot for every language with both directions, their mean and mean size.

    Zero is balance; above it the model translates out of the pivot better than into it. Raises DataError when
    no language has both directions.
    """
    others = sorted({target for source, target in values if source == pivot})
    table = {
        other: float(values[pivot, other] - values[other, pivot])
        for other in others
        if (other, pivot) in values
    }
    if not table:
        raise DataError(f"No language has both directions with {pivot}.")
    gaps = np.array(list(table.values()))
    return {
        "pivot": pivot,
        "languages": table,
        "mean": float(gaps.mean()),
        "mean_size": float(np.abs(gaps).mean()),
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
        table.mean(1), table.min(1) if higher_is_better else table.max(1), np.ptp(table, axis=1), table.std(1), gap
    )  # fmt: skip
    return dict(zip(MEASURES, columns))


def _group_tables(
    languages: list[str], values: Mapping[str, Sequence[float]], groups: Mapping[str, Sequence]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts, (groups, languages)."""
    names = sorted({str(group) for language in languages for group in groups[language]})
    row = {name: number for number, name in enumerate(names)}
    totals, sizes = np.zeros((len(names), len(languages))), np.zeros((len(names), len(languages)))
    for column, language in enumerate(languages):
        if not len(values[language]):
            raise DataError(f"No examples in {language}; leave out the language or give it data.")
        rows = [row[str(group)] for group in groups[language]]
        np.add.at(totals[:, column], rows, np.asarray(values[language], np.float64))
        np.add.at(sizes[:, column], rows, 1)
    return totals, sizes


def _place(languages: list[str], pivot: str | None) -> int | None:
    return languages.index(pivot) if pivot in languages else None


def _check(languages: list[str], table: np.ndarray) -> None:
    if not languages:
        raise DataError("Parity needs at least one language.")
    bad = [language for language, value in zip(languages, table[0]) if not np.isfinite(value)]
    if bad:
        raise DataError(f"The value of {', '.join(bad)} is not finite, so languages cannot be compared.")
