"""Translations: written greedily, scored by chrF++ and spBLEU, their parity and the balance of directions."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.chrf import (
    Directions,
    chrf_signature,
    intervals,
    measure_name,
    score_directions,
    sentence_statistics,
)
from mlx_hybrid.evaluation.metrics.intervals import bootstrap_statistic
from mlx_hybrid.evaluation.metrics.parity import MEASURES, directional_balance, parity
from mlx_hybrid.evaluation.metrics.spbleu import TOKENIZER, missing_tokenizer
from mlx_hybrid.evaluation.sets import EvaluationSet, language_code, references

RESAMPLES = 1_000
MOST_TOKENS = 256  # of one translation


def directions_of(examples: EvaluationSet) -> list[tuple[str, str]]:
    """Source and target language of each record."""
    return [
        (language_code(record.fields.get("source_language")), language_code(record.language))
        for record in examples.records
    ]


def translated(examples: EvaluationSet, texts: list[str], *, seed: int) -> Directions:
    """chrF++ of each direction, as it is and over resampled groups."""
    return score_directions(
        directions_of(examples), examples.groups, statistics_of(examples, texts), seed=seed
    )


def statistics_of(examples: EvaluationSet, texts: list[str]) -> np.ndarray:
    """What chrF++ is made of, a row a record."""
    columns = reference_columns(texts, [references(record) for record in examples.records])
    return sentence_statistics(texts, columns)


def translation(
    examples: EvaluationSet, texts: list[str], scored: Directions, *, seed: int, pivot: str | None
) -> dict:
    """chrF++ of each direction, its parity out of and into the pivot, their balance; spBLEU, or why not."""
    own = {name: asdict(value) for name, value in intervals([scored], pivot).items()}
    places, groups, missing = directions_of(examples), examples.groups, missing_tokenizer()
    signature = chrf_signature(len(references(examples.records[0])))
    directions: dict[str, dict] = {}
    for pair in scored.pairs:
        rows = [number for number, place in enumerate(places) if place == pair]
        wrote, name = [texts[n] for n in rows], ">".join(pair)
        directions[name] = {
            "count": len(rows), "empty": sum(not text.strip() for text in wrote), "chrf": own[f"chrf@{name}"],
            "chrf_signature": signature,
        }  # fmt: skip
        if not missing:
            columns = reference_columns(wrote, [references(examples.records[n]) for n in rows])
            directions[name] |= score_spbleu(wrote, columns, seed=seed, groups=[groups[n] for n in rows])
    result: dict[str, Any] = {"count": len(texts), "directions": directions, "mean_chrf": own["chrf"]}
    if missing:
        result["spbleu_missing"] = missing
    else:
        result["mean_spbleu"] = float(np.mean([row["spbleu"]["value"] for row in directions.values()]))
    values = {pair: float(scored.observed[0, number]) for number, pair in enumerate(scored.pairs)}
    for name, prefix, side in (("parity_from_pivot", "chrf_out", 0), ("parity_to_pivot", "chrf_in", 1)):
        if languages := {pair[1 - side]: value for pair, value in values.items() if pair[side] == pivot}:
            bounds = {m: own[key] for m in MEASURES if (key := measure_name(prefix, m)) in own}
            result[name] = parity(languages) | {"intervals": bounds}
    if "balance" in own:
        bounds = {key: own[name] for key, name in (("mean", "balance"), ("mean_size", "balance_size"))}
        bounds["languages"] = {n.partition("@")[2]: row for n, row in own.items() if n.startswith("balance@")}
        result["balance"] = directional_balance(values, pivot=pivot) | {"intervals": bounds}
    return result


def translation_difference(before: Directions, after: Directions, *, pivot: str | None) -> dict:
    """After minus before in chrF++ over the same draws, the mean over directions and each of them."""
    own = {name: asdict(value) for name, value in intervals([after], pivot, minus=[before]).items()}
    names = [">".join(pair) for pair in after.pairs]
    return {"chrf": own["chrf"], "directions": {name: {"chrf": own[f"chrf@{name}"]} for name in names}}


def score_spbleu(
    hypotheses: Sequence[str],
    columns: Sequence[Sequence[str]],
    *,
    seed: int,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Corpus spBLEU, 0 to 100, with its interval over groups, and sacrebleu's signature."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize=TOKENIZER)
    table = np.array(bleu._extract_corpus_statistics(hypotheses, columns))

    def corpus(index: np.ndarray) -> float:
        return bleu._compute_score_from_stats(table[index].sum(0).tolist()).score

    own = bootstrap_statistic(corpus, len(table), seed=seed, samples=RESAMPLES, groups=groups)
    return {"spbleu": asdict(own), "spbleu_signature": str(bleu.get_signature())}


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


def greedy(
    model: Any, tokenizer: Any, *, max_tokens: int = MOST_TOKENS
) -> Callable[[list[list[int]]], list[str]]:
    """A generator for `evaluate`: the likeliest token each time, until the turn ends or `max_tokens`."""

    def generate(prompts: list[list[int]]) -> list[str]:
        from mlx_lm.generate import batch_generate

        return [
            text.strip() for text in batch_generate(model, tokenizer, prompts, max_tokens=max_tokens).texts
        ]

    return generate
