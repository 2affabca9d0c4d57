"""Choices between answers as rows: accuracy, macro-F1, calibration, parity, robustness, and what an adapter changed."""

from collections.abc import Mapping

import numpy as np

from mlx_hybrid.evaluation.answers import label_scores
from mlx_hybrid.evaluation.benchmarks.variants import REAL_VARIANTS
from mlx_hybrid.evaluation.metrics import calibration
from mlx_hybrid.evaluation.metrics.classification import choose, macro_f1, tied
from mlx_hybrid.evaluation.metrics.intervals import bootstrap_mean, paired_bootstrap, sign_flip
from mlx_hybrid.evaluation.metrics.parity import parity
from mlx_hybrid.evaluation.results import DIFFERENCE, Row, by_model
from mlx_hybrid.evaluation.sets import EvaluationSet

VARIANT = "variant:"


def choice_rows(
    parts: Mapping[str, EvaluationSet], answers: Mapping[str, dict], *, seed: int, pivot: str | None
) -> tuple[dict, list[Row]]:
    """Facts and rows of every model, and of the second less the first."""
    test, dev = parts["test"], parts.get("dev")
    rows: list[Row] = []
    bins, right, fits = {}, {}, {}
    for name, own in answers.items():
        scores = label_scores(test, own["test"])
        right[name] = (choose(scores) == test.answers).astype(float)
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
            told += mean_rows(test, "accuracy_calibrated", choose(scores) == test.answers, seed=seed)
            told += calibration_rows(test, scores, "_calibrated", seed=seed)
        told += real_variants(test, right[name], seed=seed)
        told += variant_rows(parts, own, right[name], seed=seed)
        rows += by_model(told, name)
    if len(right) == 2:
        rows += by_model(difference_rows(test, *right.values(), seed=seed), DIFFERENCE)
    fitted = {"calibration": {name: own.tree() for name, own in fits.items()}} if fits else {}
    return {"labels": test.labels, "reliability": bins} | fitted, rows


def accuracy_rows(test: EvaluationSet, scores: np.ndarray, *, seed: int) -> list[Row]:
    """Accuracy and macro-F1 of the whole and of each language, and how many rows had no single best option."""
    chosen, wanted, groups = choose(scores), test.answers, np.array(test.groups)
    rows = mean_rows(test, "accuracy", chosen == wanted, seed=seed)
    for language, own in test.places():
        value = macro_f1(chosen[own], wanted[own], seed=seed, groups=groups[own])
        rows.append(Row.of("macro_f1", value, len(own), language))
    return [*rows, Row("ties", value=tied(scores), n=len(scores))]


def calibration_rows(test: EvaluationSet, scores: np.ndarray, suffix: str, *, seed: int) -> list[Row]:
    """NLL, Brier score and ECE of the whole and of each language."""
    sure, correct = calibration.confidence(scores, test.answers)
    nll = calibration.negative_log_likelihood(scores, test.answers)
    rows = mean_rows(test, f"nll{suffix}", nll, seed=seed)
    rows += mean_rows(test, f"brier{suffix}", calibration.brier(scores, test.answers), seed=seed)
    groups = np.array(test.groups)
    for language, own in test.places():
        value = calibration.ece_interval(sure[own], correct[own], seed=seed, groups=groups[own])
        rows.append(Row.of(f"ece{suffix}", value, len(own), language))
        mass = calibration.expected_calibration_error(sure[own], correct[own], mass=True)
        rows.append(Row(f"ece_mass{suffix}", language, value=mass, n=len(own)))
    return rows


def difference_rows(test: EvaluationSet, before: np.ndarray, after: np.ndarray, *, seed: int) -> list[Row]:
    """After minus before, right answers (records,) on the same records, and p that both are right as often."""
    groups, rows = np.array(test.groups), mean_rows(test, "accuracy", after - before, seed=seed)
    for language, own in test.places():
        p = sign_flip(before[own] > 0, after[own] > 0, groups[own])
        rows.append(Row("sign_flip_p", language, value=p, n=len(own), groups=len(set(groups[own]))))
    return rows


def variant_rows(
    parts: Mapping[str, EvaluationSet], answers: dict, right: np.ndarray, *, seed: int
) -> list[Row]:
    """Accuracy lost to each variant over the records that it changes, and how many these are."""
    test = parts["test"]
    place = {record.where: number for number, record in enumerate(test.records)}
    rows = []
    for part in (part for part in parts if part.startswith(VARIANT)):
        examples, name = parts[part], part.removeprefix(VARIANT)
        scores = label_scores(examples, answers[part])
        plain = [place[record.where] for record in examples.records]
        lost = right[plain] - (choose(scores) == examples.answers)
        own = zip(examples.records, plain)
        changed = np.array([record.fields != test.records[n].fields for record, n in own])
        for language, own in examples.places():
            rows.append(Row("changed", language, name, int(changed[own].sum()), n=len(own)))
        if changed.any():
            kept = np.flatnonzero(changed)
            rows += mean_rows(examples.part(kept), "drop", lost[kept], seed=seed, variant=name)
    return rows


def mean_rows(
    test: EvaluationSet, metric: str, values: np.ndarray, *, seed: int, variant: str = ""
) -> list[Row]:
    """The mean of one value a record, of the whole and of each language."""
    groups, rows = np.array(test.groups), []
    for language, own in test.places():
        value = bootstrap_mean(values[own], seed=seed, groups=groups[own])
        rows.append(Row.of(metric, value, len(own), language, variant))
    return rows


def real_variants(test: EvaluationSet, right: np.ndarray, *, seed: int) -> list[Row]:
    """Drop from a language to the same sentences in its other script, where the set holds both; a sentence that is
    asked about more than once counts by its mean."""
    languages, groups = np.array(test.languages), np.array(test.groups)
    means = lambda own: {g: right[own & (groups == g)].mean() for g in np.unique(groups[own])}  # noqa: E731
    rows = []
    for language, others in REAL_VARIANTS.items():
        for name, other in others.items():
            here, there = means(languages == language), means(languages == other)
            if shared := sorted(here.keys() & there.keys()):
                columns = ([table[group] for group in shared] for table in (there, here))
                rows.append(Row("changed", variant=name, value=len(shared), n=len(shared)))
                drop = paired_bootstrap(*columns, seed=seed)
                rows.append(Row.of("drop", drop, len(shared), variant=name))
    return rows
