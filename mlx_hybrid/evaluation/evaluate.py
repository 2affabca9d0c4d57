"""One model, or a base beside adapted ones, on one evaluation set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.evaluation import tables as results
from mlx_hybrid.evaluation.answers import FORMAT, collect
from mlx_hybrid.evaluation.benchmarks.variants import VARIANTS
from mlx_hybrid.evaluation.metrics import calibration, translation
from mlx_hybrid.evaluation.metrics.classification import choose
from mlx_hybrid.evaluation.sets import EvaluationSet, applies, language_code, limited, varied

PIVOT = "eng_Latn"


def evaluate(
    models: Mapping[str, Any],
    tokenizer: Any,
    test: EvaluationSet,
    *,
    dev: EvaluationSet | None = None,
    variants: Sequence[str] = (),
    seed: int = 0,
    limit: int = 0,
    pivot: str | None = PIVOT,
    directory: Path | None = None,
    identities: Mapping[str, str] | None = None,
    generate: Callable[[Any, list[list[int]]], list[str]] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Results of each of `models` (name → model, or a function that loads it) on `test`, a dictionary for JSON.

    A classification chooses between plain and length-normalised scores, and fits its temperature, on `dev`; without
    it scores are sums and calibration is that of the model as it is. The first model is compared with each other.
    `limit` is records a language. With a `directory`, answers are kept there by model, and a second call with the
    same examples goes on where the first stopped, unless `identities` (name → hash of the weights) changed.
    `generate` takes a model and prompts as token ids and gives texts (only translations need it). `progress` hears
    (model, done, all).
    """
    pivot = language_code(pivot) if pivot else None
    if variants and test.kind != "classification":
        raise ConfigError("Variants are measured on classification tasks.")
    for name in variants:
        check_variant(name, set(test.languages))
    test = limited(test, limit, seed)
    parts = {"test": test}
    if test.kind == "classification":
        parts |= {"dev": limited(dev, limit, seed)} if dev else {}
        parts |= {f"variant:{name}": varied_part(test, name, seed) for name in variants}
    answers = {}
    for name, model in models.items():
        path = directory / f"{name}.answers.jsonl" if directory else None
        answers[name] = collect(
            model, tokenizer, parts, path, name=name, identity=(identities or {}).get(name, ""),
            generate=generate, progress=progress,
        )  # fmt: skip
    summarise = {"classification": classify, "text": model_language, "translation": translate}[test.kind]
    return {
        "format": FORMAT, "task": test.task, "version": test.version, "kind": test.kind, "seed": seed, "limit": limit,
        "records": len(test.records), "languages": sorted(set(test.languages)), "pivot": pivot,
        **summarise(parts, answers, seed=seed, pivot=pivot),
    }  # fmt: skip


def check_variant(name: str, languages: set[str]) -> None:
    """Raise ConfigError for a variant that is not known, or that none of the languages has."""
    if name not in VARIANTS:
        raise ConfigError(f'Unknown variant "{name}"; {nearest(name, VARIANTS)}')
    if not any(applies(name, language) for language in languages):
        raise ConfigError(f'Variant "{name}" applies to none of {", ".join(sorted(languages))}.')


def varied_part(test: EvaluationSet, name: str, seed: int) -> EvaluationSet:
    """The records of the languages that a variant applies to, spelt its way."""
    keep = [n for n, language in enumerate(test.languages) if applies(name, language)]
    records = [varied(test.records[n], name, seed) for n in keep]
    return replace(test, records=records, options=[test.options[n] for n in keep])


def classify(parts: Mapping[str, EvaluationSet], answers: dict, *, seed: int, pivot: str | None) -> dict:
    """Accuracy, calibration, parity, variants and differences of every model."""
    test, dev = parts["test"], parts.get("dev")
    tables, right = {}, {}
    for name, own in answers.items():
        scoring = results.choose_scoring(dev, own.get("dev"))
        normalised = scoring["normalised"]
        scores = results.label_scores(test, own["test"], normalised=normalised)
        right[name] = (choose(scores) == test.answers).astype(float)
        temperature = None
        if dev:
            dev_scores = results.label_scores(dev, own["dev"], normalised=normalised)
            temperature = calibration.fit_temperature(dev_scores, dev.answers)
        tables[name] = {
            "scoring": scoring,
            **results.classification(test, scores, seed=seed, pivot=pivot),
            "calibration": results.calibrated(test, scores, temperature, seed=seed),
            "variants": measure_variants(parts, own, right[name], normalised=normalised, seed=seed),
        }
    differences = {
        f"{after} - {before}": results.difference(test, right[before], right[after], seed=seed)
        for before, after in results.pairs_of_models(list(answers))
    }
    return {"labels": test.labels, "models": tables, "differences": differences}


def measure_variants(
    parts: Mapping[str, EvaluationSet], answers: dict, right: np.ndarray, *, normalised: bool, seed: int
) -> dict:
    """Drop by variant, whole and by language, and the real variants that the test set holds."""
    test = parts["test"]
    table: dict[str, dict] = results.real_variants(test, right, seed=seed)
    place = {record.where: number for number, record in enumerate(test.records)}
    for part, examples in parts.items():
        if not part.startswith("variant:"):
            continue
        scores = results.label_scores(examples, answers[part], normalised=normalised)
        varied_right = (choose(scores) == examples.answers).astype(float)
        index = np.array([place[record.where] for record in examples.records])
        changed = np.array([r.fields != test.records[n].fields for r, n in zip(examples.records, index)])
        languages = np.array(examples.languages)
        whole = results.variant_drop(examples, right[index], varied_right, changed, seed=seed)
        whole["languages"] = {}
        for language in sorted(set(examples.languages)):
            own = np.flatnonzero(languages == language)
            part_set = replace(examples, records=[examples.records[n] for n in own], options=[])
            whole["languages"][language] = results.variant_drop(
                part_set, right[index][own], varied_right[own], changed[own], seed=seed
            )
        table[part.removeprefix("variant:")] = whole
    return table


def model_language(
    parts: Mapping[str, EvaluationSet], answers: dict, *, seed: int, pivot: str | None
) -> dict:
    test = parts["test"]
    nats = {name: np.array([row["nats"] for row in own["test"]]) for name, own in answers.items()}
    return {
        "models": {
            name: results.language_modelling(test, values, seed=seed, pivot=pivot)
            for name, values in nats.items()
        },
        "differences": {
            f"{after} - {before}": results.modelling_difference(test, nats[before], nats[after], seed=seed)
            for before, after in results.pairs_of_models(list(nats))
        },
    }


def translate(parts: Mapping[str, EvaluationSet], answers: dict, *, seed: int, pivot: str | None) -> dict:
    test = parts["test"]
    texts = {name: [row["text"] for row in own["test"]] for name, own in answers.items()}
    scored = {name: translation.translated(test, own, seed=seed) for name, own in texts.items()}
    return {
        "models": {
            name: translation.translation(test, texts[name], own, seed=seed, pivot=pivot)
            for name, own in scored.items()
        },
        "differences": {
            f"{after} - {before}": translation.translation_difference(
                scored[before], scored[after], pivot=pivot
            )
            for before, after in results.pairs_of_models(list(scored))
        },
    }
