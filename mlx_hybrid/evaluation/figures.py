"""Answers as rows: of choices accuracy, calibration, parity and robustness, of texts bits, of conversations losses."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.answers import label_scores
from mlx_hybrid.evaluation.metrics import calibration
from mlx_hybrid.evaluation.metrics.intervals import bootstrap_ratio, macro_f1, parity
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, RETENTION, UNTRAINED, Row, by_model
from mlx_hybrid.evaluation.sets import Answers, EvaluationSet, Parts

Sums = Mapping[str, np.ndarray]  # model → of each record
VARIANT = "variant:"


def choice_rows(parts: Parts, answers: Answers, *, seed: int, pivot: str | None) -> tuple[dict, list[Row]]:
    """Facts and rows of every model, and of the second less the first."""
    test, dev = parts["test"], parts.get("dev")
    rows, bins, right, fits = [], {}, {}, {}
    for name, own in answers.items():
        scores = label_scores(test, own["test"])
        right[name] = (scores.argmax(1) == test.answers).astype(float)
        bins[name] = calibration.reliability(*calibration.confidence(scores, test.answers))
        told = accuracy_rows(test, scores, seed=seed)
        spread = parity(right[name], test.languages, test.groups, seed=seed, pivot=pivot)
        told += [Row.of(f"accuracy_{measure}", value, len(scores)) for measure, value in spread.items()]
        told += calibration_rows(test, scores, "", seed=seed)
        if dev:
            dev_scores = label_scores(dev, own["dev"])
            temperature = calibration.fit_temperature(dev_scores, dev.answers)
            told.append(Row("temperature", value=temperature, n=len(dev.records)))
            told += calibration_rows(test, scores / temperature, "_scaled", seed=seed)
            fits[name] = calibration.fit_calibration(dev_scores, dev.answers, dev.languages, dev.labels)
            scores = fits[name].logits(scores, test.languages, test.labels)
            told += mean_rows(test, "accuracy_calibrated", scores.argmax(1) == test.answers, seed=seed)
            told += calibration_rows(test, scores, "_calibrated", seed=seed)
        told += variant_rows(parts, own, right[name], seed=seed)
        rows += by_model(told, name)
    if len(right) == 2:
        before, after = right.values()
        rows += by_model(mean_rows(test, "accuracy", after - before, seed=seed), DIFFERENCE)
    fitted = {"calibration": {name: asdict(own) for name, own in fits.items()}} if fits else {}
    return {"labels": test.labels, "reliability": bins} | fitted, rows


def accuracy_rows(test: EvaluationSet, scores: np.ndarray, *, seed: int) -> list[Row]:
    """Accuracy and macro-F1, and how many rows had no single best option."""
    chosen, wanted = scores.argmax(1), test.answers
    f1 = lambda own, **how: macro_f1(chosen[own], wanted[own], seed=seed, **how)  # noqa: E731
    rows = mean_rows(test, "accuracy", chosen == wanted, seed=seed) + test.rows("macro_f1", f1)
    ties = int(((scores == scores.max(1, keepdims=True)).sum(1) > 1).sum())
    return [*rows, Row("ties", value=ties, n=len(scores))]


def calibration_rows(test: EvaluationSet, scores: np.ndarray, suffix: str, *, seed: int) -> list[Row]:
    """NLL, Brier score and ECE."""
    sure, correct = calibration.confidence(scores, test.answers)
    rows: list[Row] = []
    for name, measure in (("nll", calibration.negative_log_likelihood), ("brier", calibration.brier)):
        rows += mean_rows(test, f"{name}{suffix}", measure(scores, test.answers), seed=seed)
    ece = lambda own, **how: calibration.ece_interval(sure[own], correct[own], seed=seed, **how)  # noqa: E731
    return rows + test.rows(f"ece{suffix}", ece)


def variant_rows(parts: Parts, answers: dict, right: np.ndarray, *, seed: int) -> list[Row]:
    """Accuracy lost to each variant over the records that it changes, and how many these are."""
    test = parts["test"]
    place = {record.where: number for number, record in enumerate(test.records)}
    rows = []
    for part in (part for part in parts if part.startswith(VARIANT)):
        examples, name = parts[part], part.removeprefix(VARIANT)
        plain = [place[record.where] for record in examples.records]
        lost = right[plain] - (label_scores(examples, answers[part]).argmax(1) == examples.answers)
        own = zip(examples.records, plain)
        changed = np.array([record.fields != test.records[n].fields for record, n in own])
        for language, own in examples.places():
            rows.append(Row("changed", language, name, int(changed[own].sum()), n=len(own)))
        if changed.any():
            kept = np.flatnonzero(changed)
            rows += mean_rows(examples.part(kept), "drop", lost[kept], seed=seed, variant=name)
    return rows


def text_rows(parts: Parts, answers: Answers, *, seed: int, pivot: str | None) -> tuple[dict, list[Row]]:
    """Bits per predicted byte of UTF-8 and their parity; lower is better."""
    test, bits, sizes = predicted(parts["test"], answers, "test", "bytes")
    rows = ratio_rows("bits_per_byte", test, bits, sizes, seed=seed)
    how = {"sizes": sizes, "seed": seed, "pivot": pivot, "higher_is_better": False}
    for name, values in bits.items():
        spread = parity(values, test.languages, test.groups, **how)
        rows += by_model((Row.of(f"bits_per_byte_{m}", v, len(sizes)) for m, v in spread.items()), name)
    return {}, rows


def retention_rows(parts: Parts, answers: Answers, *, seed: int, untrained: Collection[str]) -> list[Row]:
    """Bits per byte of text outside the task: of all, of each language, and of those that were not trained."""
    kept, bits, sizes = predicted(parts["retention"], answers, "retention", "bytes", some=True)
    if not sizes.size:
        return []
    rows = ratio_rows("bits_per_byte", kept, bits, sizes, seed=seed, variant=RETENTION)
    if own := [n for n, language in enumerate(kept.languages) if language in untrained]:
        others = {name: values[own] for name, values in bits.items()}
        told = ratio_rows("bits_per_byte", kept.part(own), others, sizes[own], seed=seed, variant=UNTRAINED)
        rows += [row for row in told if row.language == ALL]
    return rows


def loss_rows(
    parts: Parts, answers: Answers, *, seed: int, pivot: str | None = None, part: str = "test"
) -> tuple[dict, list[Row]]:
    """Nats per trained token, as training and validation count them."""
    return {}, ratio_rows("loss", *predicted(parts[part], answers, part, "tokens"), seed=seed)


def predicted(
    asked: EvaluationSet, answers: Answers, part: str, size: str, *, some: bool = False
) -> tuple[EvaluationSet, Sums, np.ndarray]:
    """The records of which something is predicted, of each model the nats a token or bits a byte, and the sizes, the
    same for all. Raises DataError where none is of a language, unless `some` languages are enough."""
    sizes = np.array([row[size] for row in next(iter(answers.values()))[part]], np.float64)
    known = np.flatnonzero(sizes)
    unit = np.log(2) if size == "bytes" else 1.0
    sums = {name: np.array([own[part][n]["nats"] for n in known]) / unit for name, own in answers.items()}
    kept = asked.part(known)
    if not some and (empty := sorted({*asked.languages} - {*kept.languages})):
        told = f"Nothing is predicted of the records in {', '.join(empty)}"
        why = "their texts are one token each, and this tokenizer puts none before them"
        raise DataError(f"{told}: {why}; leave them out or give longer texts.")
    return kept, sums, sizes[known]


def ratio_rows(metric: str, test: EvaluationSet, sums: Sums, sizes: np.ndarray, **how) -> list[Row]:
    """Σ sums / Σ sizes of each model and of the second less the first; `how` as `mean_rows` takes it."""
    table = dict(sums)
    if len(sums) == 2:
        before, after = sums.values()
        table[DIFFERENCE] = after - before
    rows = {name: mean_rows(test, metric, values, sizes, **how) for name, values in table.items()}
    return [row for name, own in rows.items() for row in by_model(own, name)]


def mean_rows(
    test: EvaluationSet, metric: str, values: np.ndarray, sizes: Any = 1.0, *, seed: int, variant: str = ""
) -> list[Row]:
    """Σ values / Σ sizes, one size for all or one for each, of the whole and of each language."""
    sizes = np.broadcast_to(sizes, len(values))
    ratio = lambda own, **how: bootstrap_ratio(values[own], sizes[own], seed=seed, **how)  # noqa: E731
    return test.rows(metric, ratio, variant)
