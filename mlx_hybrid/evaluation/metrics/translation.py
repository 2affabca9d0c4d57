"""Translations: written greedily, scored by chrF++, its parity and the balance of directions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics import chrf
from mlx_hybrid.evaluation.metrics.intervals import Interval
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, Row, by_model
from mlx_hybrid.evaluation.sets import EvaluationSet, language_code, references

MOST_TOKENS = 256  # of one translation


def directions_of(examples: EvaluationSet) -> list[tuple[str, str]]:
    """Source and target language of each record."""
    return [
        (language_code(record.fields.get("source_language")), language_code(record.language))
        for record in examples.records
    ]


def translation_rows(
    parts: Mapping[str, EvaluationSet], answers: Mapping[str, dict], *, seed: int, pivot: str | None
) -> tuple[dict, list[Row]]:
    """chrF++ of each direction, its parity out of and into the pivot and its balance; of two models what the second has
    more. Facts name sacrebleu's settings."""
    test = parts["test"]
    texts = {name: [row["text"] for row in own["test"]] for name, own in answers.items()}
    pairs, groups = directions_of(test), test.groups
    scored = {
        n: chrf.score_directions(pairs, groups, statistics_of(test, t), seed=seed) for n, t in texts.items()
    }
    sizes = {ALL: len(pairs)} | {">".join(pair): pairs.count(pair) for pair in sorted(set(pairs))}
    rows: list[Row] = []
    for name, own in scored.items():
        told = figure_rows(chrf.intervals([own], pivot), sizes) + empty_rows(pairs, texts[name])
        rows += by_model(told, name)
    if len(scored) == 2:
        before, after = scored.values()
        rows += by_model(figure_rows(chrf.intervals([after], pivot, minus=[before]), sizes), DIFFERENCE)
    return {"signatures": {"chrf": chrf.signature(len(references(test.records[0])))}}, rows


def figure_rows(figures: Mapping[str, Interval], sizes: Mapping[str, int]) -> list[Row]:
    """Rows of `direction_measures`; a language or direction stands behind the @."""
    rows = []
    for figure, value in figures.items():
        name, _, language = figure.partition("@")
        rows.append(Row.of(name, value, sizes.get(language or ALL, value.count), language or ALL))
    return rows


def empty_rows(pairs: list[tuple[str, str]], texts: list[str]) -> list[Row]:
    """How many translations of each direction are empty, which score zero."""
    rows = []
    for pair in sorted(set(pairs)):
        own = [text for text, other in zip(texts, pairs, strict=True) if other == pair]
        rows.append(Row("empty", ">".join(pair), value=sum(not text.strip() for text in own), n=len(own)))
    return rows


def statistics_of(examples: EvaluationSet, texts: list[str]) -> np.ndarray:
    """What a corpus's chrF++ is made of, a row a record."""
    columns = reference_columns(texts, [references(record) for record in examples.records])
    return chrf.sentence_statistics(texts, columns)


def reference_columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each set of references whole, from those of each hypothesis.

    Raises DataError on no hypothesis, or references that are not as many for each.
    """
    if not len(hypotheses):
        raise DataError("No translations to score.")
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} translations for {len(references)} sets of references.")
    counts = {len(own) for own in references}
    if len(counts) > 1 or 0 in counts:
        raise DataError("Every translation needs the same number of references, at least one.")
    return [list(column) for column in zip(*references)]


def greedy(tokenizer: Any, max_tokens: int = MOST_TOKENS) -> Callable[[Any, list[list[int]]], list[str]]:
    """A generator for `evaluate`: the likeliest token each time, until the turn ends or `max_tokens`."""

    def generate(model: Any, prompts: list[list[int]]) -> list[str]:
        from mlx_hybrid.models.generate import Sampling, answers

        found = dict(answers(model, tokenizer, prompts, [Sampling(max_tokens=max_tokens)] * len(prompts)))
        return ["".join(piece.text for piece in found[i]).strip() for i in range(len(prompts))]

    return generate
