"""Results of format 1, nested by model and language, as rows: files that older runs hold."""

from collections.abc import Iterator
from typing import Any

from mlx_hybrid.evaluation.metrics.chrf import measure_name
from mlx_hybrid.evaluation.metrics.intervals import MCNEMAR, SIGN_FLIP
from mlx_hybrid.evaluation.results import ADAPTED, ALL, BASE, DIFFERENCE, Results, Row, by_model

CALIBRATION = {"nll": "nll_nats", "brier": "brier", "ece": "ece_width", "ece_mass": "ece_mass"}
SPREAD = ("mean", "worst", "range", "standard_deviation", "gap_to_pivot")


def from_first_format(tree: dict[str, Any]) -> Results | None:
    """The rows of `held-out.json`, of `evaluate`, or of `evaluate --lm-eval`; None for anything else."""
    if "accuracy_by_language" in tree or "loss_nats_per_token" in tree:
        return Results(held_out_facts(tree), tuple(held_out(tree)))
    if "lm_eval" in tree:
        return Results(facts(tree, "lm_eval"), tuple(harness(tree["lm_eval"])))
    kind = {"classification": classification, "text": language_modelling, "translation": translation}
    if "models" not in tree or tree.get("kind") not in kind:
        return None
    rows = [row for name, own in tree["models"].items() for row in by_model(kind[tree["kind"]](own), name)]
    for own in tree.get("differences", {}).values():
        rows += by_model(difference(own), DIFFERENCE)
    return Results(facts(tree, "models", "differences") | told(tree["models"]), tuple(rows))


def facts(tree: dict, *nested: str) -> dict:
    return {key: value for key, value in tree.items() if key not in ("format", *nested)}


def told(models: dict) -> dict:
    """What is said of models beside their figures."""
    missing = [own["spbleu_missing"] for own in models.values() if "spbleu_missing" in own]
    bins = {
        name: own["calibration"]["before"]["reliability"]
        for name, own in models.items()
        if "reliability" in own.get("calibration", {}).get("before", {})
    }
    scoring = {name: own["scoring"] for name, own in models.items() if "scoring" in own}
    own = {"notes": list(dict.fromkeys(missing)), "reliability": bins, "scoring": scoring}
    return {key: value for key, value in own.items() if value}


def figure(metric: str, value: Any, n: int = 0, language: str = ALL, variant: str = "") -> Row:
    """A row of a number, or of a value with its interval."""
    if not isinstance(value, dict):
        return Row(metric, language, variant, float(value), n=n)
    groups = value.get("count", 0)
    bounds = value.get("low"), value.get("high")
    return Row(metric, language, variant, value["value"], *bounds, n or groups, groups)


def held_out_facts(tree: dict) -> dict:
    return facts(tree, "loss_nats_per_token", "accuracy", "accuracy_by_language") | {
        "task": "held-out records",
        "version": 1,
        "limit": 0,
        "kind": "classification" if "accuracy" in tree else "conversation",
    }


def held_out(tree: dict) -> Iterator[Row]:
    sides = {"base": BASE, "adapted": ADAPTED, "gain": DIFFERENCE, "difference": DIFFERENCE}
    places = [("loss", ALL, tree.get("loss_nats_per_token"), tree["records"])]
    places.append(("accuracy", ALL, tree.get("accuracy"), tree.get("questions", 0)))
    for language, own in tree.get("accuracy_by_language", {}).items():
        places.append(("accuracy", language or "und", own, own.get("questions", 0)))
    for metric, language, own, n in places:
        for key, value in (own or {}).items():
            if key in sides:
                yield from by_model([figure(metric, value, n, language)], sides[key])


def classification(own: dict) -> Iterator[Row]:
    count = own.get("count", 0)
    for language, table in {ALL: own, **own.get("languages", {})}.items():
        for metric in ("accuracy", "macro_f1"):
            if metric in table:
                yield figure(metric, table[metric], table.get("count", 0), language)
    for state, suffix in (("before", ""), ("after", "_scaled")):
        whole = own["calibration"].get(state, {})
        for language, table in {ALL: whole, **whole.get("languages", {})}.items():
            n = count if language == ALL else own["languages"].get(language, {}).get("count", 0)
            known = {metric: key for metric, key in CALIBRATION.items() if key in table}
            yield from (figure(metric + suffix, table[key], n, language) for metric, key in known.items())
    if own["calibration"].get("temperature") is not None:
        yield figure("temperature", own["calibration"]["temperature"])
    yield from spread("accuracy", own.get("parity", {}), count)
    for name, whole in own.get("variants", {}).items():
        for language, table in {ALL: whole, **whole.get("languages", {})}.items():
            changed = table.get("changed", table["records"])
            yield Row("changed", language, name, changed, n=table["records"])
            if "drop" in table:
                yield figure("drop", table["drop"], changed, language, name)


def spread(metric: str, own: dict, n: int) -> Iterator[Row]:
    for name in SPREAD:
        value = own.get("intervals", {}).get(name, own.get(name))
        if value is not None:
            yield figure(f"{metric}_{name}", value, n)


def language_modelling(own: dict) -> Iterator[Row]:
    for language, table in {ALL: own, **own["languages"]}.items():
        yield figure("bits_per_byte", table["bits_per_byte"], table.get("count", 0), language)
    yield from spread("bits_per_byte", own["parity"], own["count"])


def translation(own: dict) -> Iterator[Row]:
    count = own.get("count", 0)
    yield figure("chrf", own["mean_chrf"], count)
    if "mean_spbleu" in own:
        yield figure("spbleu", own["mean_spbleu"], count)
    for name, table in own["directions"].items():
        for metric in ("chrf", "spbleu", "empty"):
            if metric in table:
                yield figure(metric, table[metric], table["count"], name)
    for metric, key in (("chrf_out", "parity_from_pivot"), ("chrf_in", "parity_to_pivot")):
        for name, value in own.get(key, {}).get("intervals", {}).items():
            yield figure(measure_name(metric, name), value, count)
    if balance := own.get("balance", {}).get("intervals"):
        yield figure("balance", balance["mean"], count)
        yield figure("balance_size", balance["mean_size"], count)
        yield from (figure("balance", value, 0, name) for name, value in balance["languages"].items())


def difference(own: dict) -> Iterator[Row]:
    for language, table in {ALL: own, **own.get("languages", {}), **own.get("directions", {})}.items():
        for metric in ("accuracy", "macro_f1", "bits_per_byte", "chrf"):
            if metric in table:
                yield figure(metric, table[metric], 0, language)
        if "test" in table:  # without it a p took translations for independent
            name = MCNEMAR if table["test"] == "McNemar" else SIGN_FLIP
            yield figure(name, table["p"], 0, language)


def harness(models: dict) -> Iterator[Row]:
    for model, tasks in models.items():
        yield from by_model((row for task, own in tasks.items() for row in task_rows(task, own)), model)


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
