"""Translations: written greedily, scored by corpus chrF++, its parity and the balance of directions.

chrF with character n-grams up to 6, word n-grams up to 2 and β = 2. Popović 2017, https://aclanthology.org/W17-4770.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import Columns, Interval, bootstrap_each, intervals_of, measures
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, Row, by_model
from mlx_hybrid.evaluation.sets import Answers, EvaluationSet, Parts, language_code, references

MOST_TOKENS = 256  # of one translation
RESAMPLES = 1_000
Pair = tuple[str, str]  # source and target language


def translation_rows(
    parts: Parts, answers: Answers, *, seed: int, pivot: str | None
) -> tuple[dict, list[Row]]:
    """chrF++ of each direction, its parity and balance; of two models what the second has more."""
    test, rows, scored = parts["test"], list[Row](), []
    pairs = directions_of(test)
    sizes = Counter(">".join(pair) for pair in sorted(pairs)) | {ALL: len(pairs)}

    def told(figures: Mapping[str, Interval], model: str) -> list[Row]:
        split = ((*name.partition("@")[::2], value) for name, value in figures.items())
        own = (Row.of(name, v, sizes.get(at or ALL, v.count), at or ALL) for name, at, v in split)
        return by_model(own, model)

    for model, own in answers.items():
        texts = [row["text"] for row in own["test"]]
        scored.append(score_directions(pairs, test.groups, statistics_of(test, texts), seed=seed))
        rows += told(intervals(scored[-1:], pivot), model)
        empty = Counter(">".join(pair) for pair, text in zip(pairs, texts, strict=True) if not text.strip())
        rows += by_model((Row("empty", d, value=empty[d], n=n) for d, n in sizes.items() if d != ALL), model)
    if len(scored) == 2:
        rows += told(intervals(scored[1:], pivot, minus=scored[:1]), DIFFERENCE)
    metric = chrf()
    metric.corpus_score(["a"], [["a"]] * len(references(test.records[0])))  # how many it learns only so
    return {"signatures": {"chrf": str(metric.get_signature())}}, rows


def directions_of(examples: EvaluationSet) -> list[Pair]:
    """Source and target language of each record."""
    own = [(record.fields.get("source_language"), record.language) for record in examples.records]
    return [(language_code(source), language_code(target)) for source, target in own]


def statistics_of(examples: EvaluationSet, texts: list[str]) -> np.ndarray:
    """What a corpus's chrF++ is made of, a row a record. Raises DataError where references are not as many for each."""
    each = [references(record) for record in examples.records]
    if len({len(own) for own in each}) > 1:
        raise DataError("Every translation needs the same number of references.")
    return sentence_statistics(texts, list(zip(*each, strict=True)))


def chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2)


def sentence_statistics(hypotheses: Sequence[str], columns: Sequence[Sequence[str]]) -> np.ndarray:
    """What a corpus score is summed from, (sentences, 8 · 3), as sacrebleu counts it; `columns` are its references."""
    return np.array(chrf()._extract_corpus_statistics(hypotheses, columns))


def corpus_score(sums: np.ndarray) -> np.ndarray:
    """The score from 0 to 100 of summed statistics (…, counts)."""
    own = chrf()
    return np.apply_along_axis(lambda row: own._compute_score_from_stats(row.tolist()).score, -1, sums)


def score_directions(pairs: Sequence[Pair], groups: Sequence[str], table: np.ndarray, seed: int) -> Columns:
    """The corpus score of each direction, from the direction, group and row of statistics of each sentence."""
    return bootstrap_each(pairs, groups, table, corpus_score, seed=seed, samples=RESAMPLES)


def intervals(
    models: Sequence[Columns], pivot: str | None, *, minus: Sequence[Columns] = ()
) -> dict[str, Interval]:
    """Each figure of `direction_measures`, its mean over `models`, less that over `minus`, with its interval."""
    figures: dict[str, np.ndarray] = {}
    for sign, side in ((1, models), (-1, minus)):
        for own in side:
            for name, values in direction_measures(own.scores, own.names, pivot).items():
                figures[name] = figures.get(name, 0) + sign / len(side) * values
    return intervals_of(figures, models[0].groups)


def direction_measures(scores: np.ndarray, pairs: Sequence[Pair], pivot: str | None) -> dict[str, np.ndarray]:
    """Each figure of each row of (samples, directions).

    `chrf` is the mean over directions and `chrf@a>b` one of them; `chrf_out` and `chrf_in` are means out of and into
    the pivot, with `_worst`, `_range` and `_standard_deviation`; `balance@xx` is pivot→xx minus xx→pivot, `balance` its
    mean and `balance_size` the mean of its size.
    """
    column = dict(zip(pairs, scores.T))
    told = {"chrf": scores.mean(1)} | {f"chrf@{'>'.join(pair)}": own for pair, own in column.items()}
    for name, side in (("chrf_out", 0), ("chrf_in", 1)):
        if own := [value for pair, value in column.items() if pair[side] == pivot]:
            spread = measures(np.stack(own, 1), None)
            told |= {f"{name}_{measure}".removesuffix("_mean"): value for measure, value in spread.items()}
    gaps = {b: own - column[b, a] for (a, b), own in column.items() if a == pivot and (b, a) in column}
    if gaps:
        table = np.stack(list(gaps.values()), 1)
        told |= {"balance": table.mean(1), "balance_size": np.abs(table).mean(1)}
        told |= {f"balance@{name}": own for name, own in gaps.items()}
    return told


def greedy(tokenizer: Any, max_tokens: int = MOST_TOKENS) -> Callable[[Any, list[list[int]]], list[str]]:
    """A generator for `evaluate`: the likeliest token each time, until the turn ends or `max_tokens`."""

    def generate(model: Any, prompts: list[list[int]]) -> list[str]:
        from mlx_hybrid.models.generate import Sampling, answers

        found = dict(answers(model, tokenizer, prompts, [Sampling(max_tokens=max_tokens)] * len(prompts)))
        return ["".join(piece.text for piece in found[i]).strip() for i in range(len(prompts))]

    return generate
