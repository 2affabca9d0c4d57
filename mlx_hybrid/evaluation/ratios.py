"""Likelihoods of texts and answers as rows: bits per byte of texts, nats per trained token of conversations."""

from collections.abc import Collection, Mapping

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.intervals import bootstrap_ratio
from mlx_hybrid.evaluation.metrics.parity import parity
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, RETENTION, UNTRAINED, Row, by_model
from mlx_hybrid.evaluation.sets import EvaluationSet

Parts = Mapping[str, EvaluationSet]
Answers = Mapping[str, dict]  # model → part → its rows


def text_rows(parts: Parts, answers: Answers, *, seed: int, pivot: str | None) -> tuple[dict, list[Row]]:
    """Bits per predicted byte of UTF-8 and their parity; lower is better."""
    test = parts["test"]
    bits, sizes = columns(answers, "test", "bytes")
    bits = {name: nats / np.log(2) for name, nats in bits.items()}
    rows = ratio_rows("bits_per_byte", test, bits, sizes, seed=seed)
    own = sizes > 0
    places = np.array(test.languages)[own], np.array(test.groups)[own]
    for name, values in bits.items():
        how = {"sizes": sizes[own], "seed": seed, "pivot": pivot, "higher_is_better": False}
        spread = parity(values[own], *places, **how)
        rows += by_model((Row.of(f"bits_per_byte_{m}", v, int(own.sum())) for m, v in spread.items()), name)
    return {}, rows


def retention_rows(
    parts: Parts, answers: Answers, *, seed: int, untrained: Collection[str] = ()
) -> list[Row]:
    """Bits per byte of text outside the task: of all, of each language, and of those that were not trained."""
    nats, sizes = columns(answers, "retention", "bytes")
    known = np.flatnonzero(sizes)  # a small vocabulary has no token of some scripts
    if not known.size:
        return []
    kept, sizes = parts["retention"].part(known), sizes[known]
    bits = {name: own[known] / np.log(2) for name, own in nats.items()}
    rows = ratio_rows("bits_per_byte", kept, bits, sizes, seed=seed, variant=RETENTION)
    own = [n for n, language in enumerate(kept.languages) if language in untrained]
    if own:
        others, bits = kept.part(own), {name: values[own] for name, values in bits.items()}
        told = ratio_rows("bits_per_byte", others, bits, sizes[own], seed=seed, variant=UNTRAINED)
        rows += [row for row in told if row.language == ALL]
    return rows


def loss_rows(
    parts: Parts, answers: Answers, *, seed: int, pivot: str | None = None, part: str = "test"
) -> tuple[dict, list[Row]]:
    """Nats per trained token, as training and validation count them."""
    return {}, ratio_rows("loss", parts[part], *columns(answers, part, "tokens"), seed=seed)


def columns(answers: Answers, part: str, size: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Nats of each model, (records,), and the sizes of what they are of, the same for all."""
    nats = {name: np.array([row["nats"] for row in own[part]]) for name, own in answers.items()}
    first = next(iter(answers.values()))[part]
    return nats, np.array([row[size] for row in first], np.float64)


def ratio_rows(
    metric: str,
    test: EvaluationSet,
    sums: Mapping[str, np.ndarray],
    sizes: np.ndarray,
    *,
    seed: int,
    variant: str = "",
) -> list[Row]:
    """Σ sums / Σ sizes of each model and of the second less the first, of the whole and of each language."""
    table = dict(sums)
    if len(sums) == 2:
        before, after = sums.values()
        table[DIFFERENCE] = after - before
    groups, rows = np.array(test.groups), []
    for name, values in table.items():
        for language, own in predicted(test, sizes):
            value = bootstrap_ratio(values[own], sizes[own], seed=seed, groups=groups[own])
            rows += by_model([Row.of(metric, value, len(own), language, variant)], name)
    return rows


def predicted(test: EvaluationSet, sizes: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The places of `all` and of each language, without records of which nothing is predicted."""
    places = [(language, own[sizes[own] > 0]) for language, own in test.places()]
    if empty := [language for language, own in places if not len(own)]:
        raise DataError(
            f"Nothing is predicted of the records in {', '.join(empty)}: their texts are one token each, and this "
            "tokenizer puts none before them; leave them out or give longer texts."
        )
    return places
