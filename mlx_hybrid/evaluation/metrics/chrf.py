"""Corpus scores of resampled corpora: sacrebleu makes one of summed sentence statistics, so resampling needs no text.

chrF with character n-grams up to 6, word n-grams up to 2 and β = 2. Popović 2017, https://aclanthology.org/W17-4770.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_hybrid.evaluation.metrics.intervals import Interval, drawn_counts, group_places, interval_of
from mlx_hybrid.evaluation.metrics.parity import measures

RESAMPLES = 1_000
Pair = tuple[str, str]  # source and target language


def chrf() -> Any:
    """sacrebleu's chrF++."""
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2)


def sentence_statistics(hypotheses: Sequence[str], columns: Sequence[Sequence[str]]) -> np.ndarray:
    """What a corpus score is summed from, (sentences, 8 · 3), as sacrebleu counts it: n-grams in the hypothesis, in its
    best reference, and in both. `columns` holds each set of references whole."""
    return np.array(chrf()._extract_corpus_statistics(hypotheses, columns))


def signature(references: int) -> str:
    """How sacrebleu names these settings, with so many references a sentence."""
    metric = chrf()
    metric.corpus_score(["a"], [["a"]] * references)  # before which it knows no number of references
    return str(metric.get_signature())


def corpus_score(sums: np.ndarray) -> np.ndarray:
    """The score from 0 to 100 of summed statistics (…, counts)."""
    own = chrf()
    return np.apply_along_axis(lambda row: own._compute_score_from_stats(row.tolist()).score, -1, sums)


@dataclass(frozen=True)
class Directions:
    """A corpus score of each direction, as observed (1, directions) and over resampled groups (samples, directions)."""

    pairs: list[Pair]
    observed: np.ndarray
    drawn: np.ndarray
    groups: int


def score_directions(
    pairs: Sequence[Pair], groups: Sequence[str], statistics: np.ndarray, *, seed: int
) -> Directions:
    """Of one direction, group and row of statistics a sentence; a group is drawn in all its directions at once.

    Two models with the same sentences and seed get the same draws, so their scores can be subtracted. Draws in which a
    direction gets no sentence are left out; where no other are, the intervals have no width.
    """
    place = group_places(groups)
    count = int(place.max()) + 1
    weights = drawn_counts(count, seed=seed, samples=RESAMPLES)
    rows = {pair: [n for n, own in enumerate(pairs) if own == pair] for pair in sorted(set(pairs))}
    drawn = [weights[:, place[own]] for own in rows.values()]
    whole = np.all([own.sum(1) > 0 for own in drawn], axis=0)
    tables = [statistics[own] for own in rows.values()]
    observed = np.stack([corpus_score(table.sum(0, keepdims=True)) for table in tables], 1)
    if not whole.any():
        return Directions(list(rows), observed, observed, count)
    scores = [corpus_score(own[whole] @ table) for own, table in zip(drawn, tables)]
    return Directions(list(rows), observed, np.stack(scores, 1), count)


def intervals(
    models: Sequence[Directions], pivot: str | None, *, minus: Sequence[Directions] = ()
) -> dict[str, Interval]:
    """Each figure of `direction_measures`, its mean over `models`, less that over `minus`, with its interval."""
    observed, drawn = (averaged(models, part, pivot) for part in ("observed", "drawn"))
    if minus:
        other = [averaged(minus, part, pivot) for part in ("observed", "drawn")]
        observed, drawn = (
            {name: own[name] - less[name] for name in own} for own, less in zip((observed, drawn), other)
        )
    return {name: interval_of(float(observed[name][0]), drawn[name], models[0].groups) for name in observed}


def averaged(models: Sequence[Directions], part: str, pivot: str | None) -> dict[str, np.ndarray]:
    tables = [direction_measures(getattr(own, part), own.pairs, pivot) for own in models]
    return {name: np.mean([table[name] for table in tables], 0) for name in tables[0]}


def direction_measures(scores: np.ndarray, pairs: Sequence[Pair], pivot: str | None) -> dict[str, np.ndarray]:
    """Each figure of each row of (samples, directions).

    `chrf` is the mean over directions and `chrf@a>b` one of them; `chrf_out` and `chrf_in` are means out of and into
    the pivot, with `_worst`, `_range` and `_standard_deviation`; `balance@xx` is pivot→xx minus xx→pivot, `balance` its
    mean and `balance_size` the mean of its size.
    """
    column = {pair: scores[:, number] for number, pair in enumerate(pairs)}
    told = {"chrf": scores.mean(1)} | {f"chrf@{'>'.join(pair)}": own for pair, own in column.items()}
    for name, side in (("chrf_out", 0), ("chrf_in", 1)):
        if own := [value for pair, value in column.items() if pair[side] == pivot]:
            spread = measures(np.stack(own, 1), None)
            told |= {measure_name(name, measure): values for measure, values in spread.items()}
    gaps = {
        target: value - column[target, pivot]
        for (source, target), value in column.items()
        if source == pivot and (target, pivot) in column
    }
    if gaps:
        table = np.stack(list(gaps.values()), 1)
        told |= {"balance": table.mean(1), "balance_size": np.abs(table).mean(1)}
        told |= {f"balance@{name}": own for name, own in gaps.items()}
    return told


def measure_name(prefix: str, measure: str) -> str:
    """`chrf_out` for the mean, else `chrf_out_worst`."""
    return prefix if measure == "mean" else f"{prefix}_{measure}"
