"""Tables and intervals from what models answered, a plain dictionary of each kind of evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mlx_hybrid.evaluation.benchmarks.variants import REAL_VARIANTS
from mlx_hybrid.evaluation.metrics import calibration
from mlx_hybrid.evaluation.metrics.classification import accuracy, by_language, choose, macro_f1, tied
from mlx_hybrid.evaluation.metrics.intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
    paired_bootstrap,
    paired_test,
)
from mlx_hybrid.evaluation.metrics.parity import parity, parity_intervals
from mlx_hybrid.evaluation.sets import EvaluationSet

ECE_RESAMPLES = 500


def label_scores(examples: EvaluationSet, rows: list[dict], *, normalised: bool) -> np.ndarray:
    """(records, labels) log-likelihoods, divided by their token counts where `normalised`; −inf where not an option."""
    scores = np.full((len(rows), len(examples.labels)), -np.inf)
    column = {label: number for number, label in enumerate(examples.labels)}
    for number, (row, options) in enumerate(zip(rows, examples.options, strict=True)):
        values = np.array(row["sums"]) / (np.array(row["counts"]) if normalised else 1)
        scores[number, [column[label] for label in options]] = values
    return scores


def choose_scoring(dev: EvaluationSet | None, rows: list[dict] | None) -> dict:
    """Whether to divide by length: what is right more often on the development set; sums where neither is."""
    if dev is None:
        return {"normalised": False, "chosen_on": "default"}
    right = [(choose(label_scores(dev, rows, normalised=n)) == dev.answers).mean() for n in (False, True)]
    return {
        "normalised": bool(right[1] > right[0]), "chosen_on": "dev",
        "dev_accuracy": {"sum": float(right[0]), "normalised": float(right[1])},
    }  # fmt: skip


def classification(examples: EvaluationSet, scores: np.ndarray, *, seed: int, pivot: str | None) -> dict:
    """Accuracy and macro-F1, whole and by language, and their parity."""
    chosen, languages = choose(scores), examples.languages
    table = by_language(chosen, examples.answers, languages, seed=seed, groups=examples.groups)
    right = (chosen == examples.answers).astype(float)
    return {
        "count": len(chosen),
        "ties": tied(scores),
        "accuracy": asdict(accuracy(chosen, examples.answers, seed=seed, groups=examples.groups)),
        "macro_f1": asdict(macro_f1(chosen, examples.answers, seed=seed, groups=examples.groups)),
        "languages": table,
        "parity": spread({name: row["accuracy"]["value"] for name, row in table.items()}, pivot)
        | {"intervals": _parity_intervals(examples, right, seed, pivot)},
    }


def spread(values: Mapping[str, float], pivot: str | None, *, higher_is_better: bool = True) -> dict:
    return parity(values, pivot=pivot, higher_is_better=higher_is_better)


def calibrated(examples: EvaluationSet, scores: np.ndarray, temperature: float | None, *, seed: int) -> dict:
    """Calibration as it is and, with a temperature fitted elsewhere, after it; whole and by language."""
    result = {"bins": calibration.BINS, "before": calibration_table(examples, scores, 1.0, seed=seed)}
    if temperature is not None:
        after = calibration_table(examples, scores, temperature, seed=seed)
        result |= {"temperature": temperature, "after": after}
    return result


def calibration_table(examples: EvaluationSet, scores: np.ndarray, temperature: float, *, seed: int) -> dict:
    """NLL, Brier score and ECE with their intervals over groups, whole and by language."""
    confidences, correct = calibration.confidence(scores, examples.answers, temperature)
    nll = calibration.negative_log_likelihood(scores, examples.answers, temperature)
    brier = calibration.brier(scores, examples.answers, temperature)
    languages, groups = np.array(examples.languages), np.array(examples.groups)

    def row(own: np.ndarray) -> dict:
        sure, right, kin = confidences[own], correct[own], groups[own]
        return {
            "nll_nats": asdict(bootstrap_mean(nll[own], seed=seed, groups=kin)),
            "brier": asdict(bootstrap_mean(brier[own], seed=seed, groups=kin)),
            "ece_width": asdict(ece_interval(sure, right, seed=seed, groups=kin)),
            "ece_mass": calibration.expected_calibration_error(sure, right, mass="mass"),
        }

    return row(np.ones(len(languages), bool)) | {
        "reliability": calibration.reliability(confidences, correct),
        "languages": {name: row(languages == name) for name in sorted(set(examples.languages))},
    }


def ece_interval(
    confidences: np.ndarray, correct: np.ndarray, *, seed: int, groups: Sequence | None = None
) -> Interval:
    """ECE and its bootstrap interval over groups; of few examples both lie above the true error (Kumar et al. 2019,
    section 4)."""
    return bootstrap_statistic(
        lambda index: calibration.expected_calibration_error(confidences[index], correct[index]),
        len(correct),
        seed=seed,
        samples=ECE_RESAMPLES,
        groups=groups,
    )


def difference(examples: EvaluationSet, before: np.ndarray, after: np.ndarray, *, seed: int) -> dict:
    """After minus before, right answers (records,) on the same records, whole and by language, each with `p` and the
    `test` it is of."""
    languages, groups = np.array(examples.languages), np.array(examples.groups)
    result = {
        "accuracy": asdict(paired_bootstrap(before, after, seed=seed, groups=groups)),
        **paired_test(before > 0, after > 0, groups),
        "languages": {},
    }
    for name in sorted(set(examples.languages)):
        own = languages == name
        gain = paired_bootstrap(before[own], after[own], seed=seed, groups=groups[own])
        result["languages"][name] = {
            "accuracy": asdict(gain),
            **paired_test(before[own] > 0, after[own] > 0, groups[own]),
        }
    return result


def variant_drop(
    examples: EvaluationSet, plain: np.ndarray, varied: np.ndarray, changed: np.ndarray, *, seed: int
) -> dict:
    """Accuracy lost to a variant over the records it changes: plain minus varied, and how many it changes."""
    result: dict[str, Any] = {"records": len(changed), "changed": int(changed.sum())}
    if changed.any():
        groups = np.array(examples.groups)[changed]
        result["drop"] = asdict(paired_bootstrap(varied[changed], plain[changed], seed=seed, groups=groups))
        result["drop_all"] = float((plain - varied).mean())
    return result


def real_variants(examples: EvaluationSet, right: np.ndarray, *, seed: int) -> dict:
    """Drop from a language to the same sentences in its other script, where the set holds both; a sentence that is
    asked about more than once counts by its mean."""
    languages, groups = np.array(examples.languages), np.array(examples.groups)
    result = {}
    for language, others in REAL_VARIANTS.items():
        for name, other in others.items():
            own = [mean_by_group(groups[languages == l], right[languages == l]) for l in (language, other)]
            shared = sorted(own[0].keys() & own[1].keys())
            if shared:
                columns = [[table[group] for group in shared] for table in own]
                drop = paired_bootstrap(columns[1], columns[0], seed=seed)
                result[name] = {"of": language, "as": other, "records": len(shared), "drop": asdict(drop)}
    return result


def mean_by_group(groups: np.ndarray, values: np.ndarray) -> dict[str, float]:
    return {str(group): float(values[groups == group].mean()) for group in np.unique(groups)}


def language_modelling(examples: EvaluationSet, nats: np.ndarray, *, seed: int, pivot: str | None) -> dict:
    """Bits per byte of UTF-8, whole and by language, lower being better."""
    bits, sizes = nats / np.log(2), byte_counts(examples)
    languages, groups = np.array(examples.languages), np.array(examples.groups)
    table = {}
    for name in sorted(set(examples.languages)):
        own = languages == name
        interval = bootstrap_ratio(bits[own], sizes[own], seed=seed, groups=groups[own])
        table[name] = {
            "count": int(own.sum()),
            "bytes": int(sizes[own].sum()),
            "bits_per_byte": asdict(interval),
        }
    whole = bootstrap_ratio(bits, sizes, seed=seed, groups=groups)
    values = {name: row["bits_per_byte"]["value"] for name, row in table.items()}
    return {
        "count": len(nats), "bits_per_byte": asdict(whole), "languages": table,
        "parity": spread(values, pivot, higher_is_better=False),
    }  # fmt: skip


def modelling_difference(
    examples: EvaluationSet, before: np.ndarray, after: np.ndarray, *, seed: int
) -> dict:
    """After minus before in bits per byte; below zero, after is better."""
    bits, sizes = (after - before) / np.log(2), byte_counts(examples)
    languages, groups = np.array(examples.languages), np.array(examples.groups)
    rows = {name: languages == name for name in sorted(set(examples.languages))}
    return {
        "bits_per_byte": asdict(bootstrap_ratio(bits, sizes, seed=seed, groups=groups)),
        "languages": {
            name: {
                "bits_per_byte": asdict(bootstrap_ratio(bits[own], sizes[own], seed=seed, groups=groups[own]))
            }
            for name, own in rows.items()
        },
    }


def byte_counts(examples: EvaluationSet) -> np.ndarray:
    return np.array([len(record.fields["text"].encode()) for record in examples.records], np.float64)


def pairs_of_models(names: list[str]) -> list[tuple[str, str]]:
    """The first model with each other."""
    return [(names[0], other) for other in names[1:]]


def _parity_intervals(examples: EvaluationSet, right: np.ndarray, seed: int, pivot: str | None) -> dict:
    languages, groups = np.array(examples.languages), np.array(examples.groups)
    names = sorted(set(examples.languages))
    return parity_intervals(
        {name: right[languages == name] for name in names},
        {name: groups[languages == name] for name in names},
        seed=seed,
        pivot=pivot,
        samples=2_000,
    )
