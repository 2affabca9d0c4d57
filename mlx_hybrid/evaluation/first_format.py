"""Results of format 1, nested by model and language, as rows: files that older runs hold."""

from collections.abc import Iterator
from typing import Any

from mlx_hybrid.evaluation.metrics.chrf import measure_name
from mlx_hybrid.evaluation.metrics.intervals import MCNEMAR, SIGN_FLIP
from mlx_hybrid.evaluation.metrics.parity import MEASURES
from mlx_hybrid.evaluation.results import ADAPTED, ALL, BASE, DIFFERENCE, Results, Row, by_model

FIGURES = ("accuracy", "macro_f1", "bits_per_byte", "chrf", "spbleu", "empty")
CALIBRATION = {"nll": "nll_nats", "brier": "brier", "ece": "ece_width", "ece_mass": "ece_mass"}
HELD_OUT = ("loss_nats_per_token", "accuracy", "accuracy_by_language")
SIDES = {"base": BASE, "adapted": ADAPTED, "gain": DIFFERENCE, "difference": DIFFERENCE}


def from_first_format(tree: dict[str, Any]) -> Results | None:
    """The rows of `held-out.json`, of `evaluate`, or of `evaluate --lm-eval`; None for anything else."""
    nested = ("format", "models", "differences", "lm_eval", *HELD_OUT)
    facts = {key: value for key, value in tree.items() if key not in nested}
    if "accuracy_by_language" in tree or "loss_nats_per_token" in tree:
        kind = "classification" if "accuracy" in tree else "conversation"
        facts |= {"task": "held-out records", "version": 1, "limit": 0, "kind": kind}
        return Results(facts, tuple(held_out(tree)))
    if "lm_eval" in tree:
        told = [
            by_model(task_rows(task, own), model)
            for model, tasks in tree["lm_eval"].items()
            for task, own in tasks.items()
        ]
        return Results(facts, tuple(row for rows in told for row in rows))
    models = tree.get("models")
    if models is None or tree.get("kind") not in ("classification", "text", "translation"):
        return None
    sides = [*models.items(), *((DIFFERENCE, own) for own in tree.get("differences", {}).values())]
    rows = [row for name, own in sides for row in by_model(of_model(own), name)]
    notes = [own["spbleu_missing"] for own in models.values() if "spbleu_missing" in own]
    before = {name: own.get("calibration", {}).get("before", {}) for name, own in models.items()}
    beside = {
        "notes": list(dict.fromkeys(notes)),
        "reliability": {name: own["reliability"] for name, own in before.items() if "reliability" in own},
        "scoring": {name: own["scoring"] for name, own in models.items() if "scoring" in own},
    }
    return Results(facts | {key: value for key, value in beside.items() if value}, tuple(rows))


def figure(metric: str, value: Any, n: int = 0, language: str = ALL, variant: str = "") -> Row:
    """A row of a number, or of a value with its interval."""
    if not isinstance(value, dict):
        return Row(metric, language, variant, float(value), n=n)
    groups = value.get("count", 0)
    bounds = value.get("low"), value.get("high")
    return Row(metric, language, variant, value["value"], *bounds, n or groups, groups)


def held_out(tree: dict) -> Iterator[Row]:
    places = [("loss", ALL, tree.get("loss_nats_per_token"), tree["records"])]
    places.append(("accuracy", ALL, tree.get("accuracy"), tree.get("questions", 0)))
    for language, own in tree.get("accuracy_by_language", {}).items():
        places.append(("accuracy", language or "und", own, own.get("questions", 0)))
    for metric, language, own, n in places:
        for key, value in (own or {}).items():
            if key in SIDES:
                yield from by_model([figure(metric, value, n, language)], SIDES[key])


def of_model(own: dict) -> Iterator[Row]:
    """What was told of one model or difference, whatever it was asked."""
    count = own.get("count", 0)
    places = own.get("languages", {}) | own.get("directions", {})
    for language, table in {ALL: own, **places}.items():
        n = table.get("count", 0)
        yield from (figure(metric, table[metric], n, language) for metric in FIGURES if metric in table)
        if "test" in table:  # without it a p took translations for independent
            yield figure(MCNEMAR if table["test"] == "McNemar" else SIGN_FLIP, table["p"], 0, language)
    for metric in ("chrf", "spbleu"):
        if f"mean_{metric}" in own:
            yield figure(metric, own[f"mean_{metric}"], count)
    yield from calibration(own.get("calibration", {}), count, places)
    main = "accuracy" if "accuracy" in own else "bits_per_byte"
    for key, prefix in (("parity", main), ("parity_from_pivot", "chrf_out"), ("parity_to_pivot", "chrf_in")):
        spread = own.get(key, {}) | own.get(key, {}).get("intervals", {})
        for measure in (name for name in MEASURES if spread.get(name) is not None):
            name = f"{prefix}_{measure}" if key == "parity" else measure_name(prefix, measure)
            yield figure(name, spread[measure], count)
    for name, whole in own.get("variants", {}).items():
        for language, table in {ALL: whole, **whole.get("languages", {})}.items():
            changed = table.get("changed", table["records"])
            yield Row("changed", language, name, changed, n=table["records"])
            if "drop" in table:
                yield figure("drop", table["drop"], changed, language, name)
    if balance := own.get("balance", {}).get("intervals"):
        yield figure("balance", balance["mean"], count)
        yield figure("balance_size", balance["mean_size"], count)
        yield from (figure("balance", value, 0, name) for name, value in balance["languages"].items())


def calibration(own: dict, count: int, places: dict) -> Iterator[Row]:
    for state, suffix in (("before", ""), ("after", "_scaled")):
        whole = own.get(state) or {}
        for language, table in {ALL: whole, **whole.get("languages", {})}.items():
            n = count if language == ALL else places.get(language, {}).get("count", 0)
            known = {metric: key for metric, key in CALIBRATION.items() if key in table}
            yield from (figure(metric + suffix, table[key], n, language) for metric, key in known.items())
    if own.get("temperature") is not None:
        yield figure("temperature", own["temperature"])


def task_rows(task: str, own: dict[str, Any], n: int = 0) -> Iterator[Row]:
    """The metrics of one task of lm-evaluation-harness, each with the interval of its standard error."""
    for key, value in own.items():
        metric, _, kind = key.partition(",")
        if metric.endswith("_stderr") or key in ("version", "sample_len") or not is_number(value):
            continue
        error = own.get(f"{metric}_stderr,{kind}")
        bounds = (value - 1.96 * error, value + 1.96 * error) if is_number(error) else (None, None)
        yield Row(f"{task} {metric}", ALL, "" if kind in ("", "none") else kind, float(value), *bounds, n)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
