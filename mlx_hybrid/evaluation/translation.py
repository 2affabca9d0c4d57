"""Translations against references: chrF++, and spBLEU where its tokenizer can be had."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.intervals import bootstrap_statistic
from mlx_hybrid.evaluation.spbleu import TOKENIZER

RESAMPLES = 1_000


def score_translations(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, seed: int, spbleu: bool
) -> dict[str, Any]:
    """Corpus chrF++ and, where asked, spBLEU with their intervals over sentences, and sacrebleu's signatures.

    `references` holds one or more per hypothesis, the same number for all. chrF++ is chrF with word bigrams, β = 2;
    0 to 100. An empty hypothesis scores 0. Popović 2017, https://aclanthology.org/W17-4770.
    """
    from sacrebleu.metrics import BLEU, CHRF

    columns = _columns(hypotheses, references)
    chrf = CHRF(word_order=2)
    result: dict[str, Any] = {
        "count": len(hypotheses), "empty": sum(not h.strip() for h in hypotheses),
        "chrf": asdict(_with_interval(chrf, hypotheses, columns, seed)), "chrf_signature": str(chrf.get_signature()),
    }  # fmt: skip
    if spbleu:
        bleu = BLEU(tokenize=TOKENIZER)
        result["spbleu"] = asdict(_with_interval(bleu, hypotheses, columns, seed))
        result["spbleu_signature"] = str(bleu.get_signature())
    return result


def greedy(model: Any, tokenizer: Any, *, max_tokens: int = 256) -> Callable[[list[list[int]]], list[str]]:
    """A generator for `evaluate`: the likeliest token each time, until the turn ends or `max_tokens`."""

    def generate(prompts: list[list[int]]) -> list[str]:
        from mlx_lm.generate import batch_generate

        return [
            text.strip() for text in batch_generate(model, tokenizer, prompts, max_tokens=max_tokens).texts
        ]

    return generate


def _with_interval(metric: Any, hypotheses: Sequence[str], columns: list[list[str]], seed: int) -> Any:
    """A corpus score is a function of summed sentence statistics, so sentences are resampled by their statistics."""
    table = np.array(metric._extract_corpus_statistics(hypotheses, columns))

    def corpus(index: np.ndarray) -> float:
        return metric._compute_score_from_stats(table[index].sum(0).tolist()).score

    return bootstrap_statistic(corpus, len(table), seed=seed, samples=RESAMPLES)


def _columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[str]]:
    if not len(hypotheses):
        raise DataError("No translations to score.")
    if len(hypotheses) != len(references):
        raise DataError(f"{len(hypotheses)} translations for {len(references)} sets of references.")
    counts = {len(own) for own in references}
    if len(counts) > 1 or 0 in counts:
        raise DataError("Every translation needs the same number of references, at least one.")
    return [list(column) for column in zip(*references)]
