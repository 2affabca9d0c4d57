"""Likelihoods of texts and answers as rows: bits per byte of texts, nats per trained token of conversations."""

from collections.abc import Mapping

import numpy as np

from mlx_hybrid.evaluation.metrics.intervals import bootstrap_ratio
from mlx_hybrid.evaluation.metrics.parity import parity
from mlx_hybrid.evaluation.results import DIFFERENCE, Row, by_model
from mlx_hybrid.evaluation.sets import EvaluationSet, byte_counts


def text_rows(
    parts: Mapping[str, EvaluationSet], answers: Mapping[str, dict], *, seed: int, pivot: str | None
) -> tuple[dict, list[Row]]:
    """Bits per byte of UTF-8 and their parity; lower is better."""
    test, sizes = parts["test"], byte_counts(parts["test"])
    bits = {name: nats_of(own["test"]) / np.log(2) for name, own in answers.items()}
    rows = ratio_rows("bits_per_byte", test, bits, sizes, seed=seed)
    places, groups = dict(test.places()[1:]), np.array(test.groups)
    for name, values in bits.items():
        spread = parity(
            {language: values[own] for language, own in places.items()},
            {language: groups[own] for language, own in places.items()},
            sizes={language: sizes[own] for language, own in places.items()},
            seed=seed,
            pivot=pivot,
            higher_is_better=False,
        )
        rows += by_model((Row.of(f"bits_per_byte_{m}", v, len(values)) for m, v in spread.items()), name)
    return {}, rows


def loss_rows(
    parts: Mapping[str, EvaluationSet],
    answers: Mapping[str, dict],
    *,
    seed: int,
    part: str = "test",
    **_: object,
) -> tuple[dict, list[Row]]:
    """Nats per trained token, as training and validation count them."""
    nats = {name: nats_of(own[part]) for name, own in answers.items()}
    first = next(iter(answers.values()))[part]
    tokens = np.array([row["tokens"] for row in first], np.float64)
    return {}, ratio_rows("loss", parts[part], nats, tokens, seed=seed)


def ratio_rows(
    metric: str, test: EvaluationSet, sums: Mapping[str, np.ndarray], sizes: np.ndarray, *, seed: int
) -> list[Row]:
    """Σ sums / Σ sizes of each model and of the second less the first, of the whole and of each language."""
    columns = dict(sums)
    if len(sums) == 2:
        before, after = sums.values()
        columns[DIFFERENCE] = after - before
    groups, rows = np.array(test.groups), []
    for name, values in columns.items():
        for language, own in test.places():
            value = bootstrap_ratio(values[own], sizes[own], seed=seed, groups=groups[own])
            rows += by_model([Row.of(metric, value, len(own), language)], name)
    return rows


def nats_of(answers: list[dict]) -> np.ndarray:
    return np.array([row["nats"] for row in answers])
