"""Tables of one evaluation: models side by side, with intervals and their differences."""

from typing import Any

from mlx_hybrid.evaluation.metrics.calibration import INVERSE_TEMPERATURES
from mlx_hybrid.report.tables import Table, interval, number

CALIBRATION = (
    ("negative log-likelihood, nats", "nll_nats"), ("Brier score", "brier"),
    ("ECE, 15 bins of equal width", "ece_width"), ("ECE, 15 bins of equal mass", "ece_mass"),
)  # fmt: skip
PARITY = (
    ("mean", "mean"), ("worst language", "worst"), ("range", "range"),
    ("standard deviation", "standard_deviation"), ("pivot's lead", "gap_to_pivot"),
)  # fmt: skip


def result_tables(results: dict[str, Any]) -> list[Table]:
    """Every table that the results of `evaluate` have figures for."""
    if "lm_eval" in results:
        return [harness(results)]
    kind = {"classification": classification, "text": language_modelling, "translation": translation}
    return kind[results["kind"]](results)


def head(results: dict) -> str:
    limit = f", at most {results['limit']} a language" if results["limit"] else ""
    return f"{results['task']} v{results['version']}: {results['records']} records{limit}"


def columns(models: dict, differences: dict) -> tuple[str, ...]:
    return (*models, *differences)


def measured(title: str, results: dict, metric: str, digits: int = 3, note: str = "") -> Table:
    """One metric of every model, whole and by language, and the differences between models."""
    models, differences = results["models"], results.get("differences", {})
    rows = [
        (
            "all",
            *(interval(model[metric], digits) for model in models.values()),
            *(interval(row.get(metric), digits, signed=True) for row in differences.values()),
        )
    ]
    for language in results["languages"]:
        own = [model["languages"].get(language, {}).get(metric) for model in models.values()]
        changes = [row["languages"].get(language, {}).get(metric) for row in differences.values()]
        rows.append(
            (
                language,
                *(interval(value, digits) for value in own),
                *(interval(value, digits, signed=True) for value in changes),
            )
        )
    return Table(title, ("", *columns(models, differences)), rows, note)


def classification(results: dict) -> list[Table]:
    told = {
        name: row for name, row in results["differences"].items() if "test" in row
    }  # older p took translations for independent
    tests = [f"{name}: p = {row['p']:.2g} ({row['test']})" for name, row in told.items()]
    note = "; ".join(["95 % intervals over resampled groups", *tests]) + "."
    tables = [measured(f"Accuracy, {head(results)}", results, "accuracy", note=note)]
    tables.append(calibration(results))
    tables.append(parity(results, "Parity of accuracy"))
    if variants := variant_table(results):
        tables.append(variants)
    return tables


def calibration(results: dict) -> Table:
    models, rows = results["models"], []
    f1 = ("macro-F1", *(interval(model["macro_f1"]) for model in models.values()))
    for state, word in (("before", ""), ("after", ", after temperature scaling")):
        for label, key in CALIBRATION:
            tables = [model["calibration"].get(state) for model in models.values()]
            if any(tables):
                rows.append((label + word, *(figure(table and table[key]) for table in tables)))
    fitted = [model["calibration"].get("temperature") for model in models.values()]
    if any(value is not None for value in fitted):
        rows.append(("temperature, fitted on dev", *map(temperature, fitted)))
    words = {
        name: "sums divided by length" if model["scoring"]["normalised"] else "plain sums"
        for name, model in models.items()
    }
    told = set(words.values()) if len(set(words.values())) == 1 else [f"{w} ({n})" for n, w in words.items()]
    note = f"Scores are {', '.join(told)} of log-likelihoods."
    return Table("Macro-F1 and calibration", ("", *models), [f1, *rows], note)


def temperature(value: float | None) -> str:
    """A fitted temperature; none fits where the fit stopped at its bounds."""
    if value is None:
        return "–"
    low, high = (1 / bound for bound in reversed(INVERSE_TEMPERATURES))
    return f"{value:.3g}" if low * 1.01 < value < high / 1.01 else f"none fits ({value:.3g})"


def figure(value: Any) -> str:
    return interval(value) if isinstance(value, dict) else number(value)


def parity(results: dict, title: str, key: str = "parity", digits: int = 3) -> Table:
    rows = []
    for label, name in PARITY:
        cells = []
        for model in results["models"].values():
            own = model.get(key) or {}
            value = own.get("intervals", {}).get(name, own.get(name))
            word = f" {own['worst_language']}" if name == "worst" and own else ""
            cells.append(
                (interval(value, digits) if isinstance(value, dict) else number(value, digits)) + word
            )
        if any(cell != "–" for cell in cells):
            rows.append((label, *cells))
    return Table(title, ("", *results["models"]), rows)


def variant_table(results: dict) -> Table | None:
    models = results["models"]
    names = list(dict.fromkeys(name for model in models.values() for name in model["variants"]))
    if not names:
        return None
    rows = []
    for name in names:
        tables = [model["variants"].get(name, {}) for model in models.values()]
        changed = next((t.get("changed", t.get("records", 0)) for t in tables if t), 0)
        rows.append((name, str(changed), *(interval(t.get("drop"), signed=True) for t in tables)))
    note = "Accuracy lost on the records that a variant changes; above zero is worse."
    return Table("Robustness to spelling", ("variant", "records", *models), rows, note)


def language_modelling(results: dict) -> list[Table]:
    tables = [measured(f"Bits per byte, {head(results)}", results, "bits_per_byte", note="Lower is better.")]
    if len(results["languages"]) > 1:
        tables.append(parity(results, "Parity of bits per byte"))
    return tables


def translation(results: dict) -> list[Table]:
    models, differences = results["models"], results.get("differences", {})
    rows = []
    for name in next(iter(models.values()))["directions"]:
        own = [model["directions"][name] for model in models.values()]
        changes = [row["directions"][name]["chrf"] for row in differences.values()]
        rows.append((name, *scores([row["chrf"] for row in own], changes)))
        if any("spbleu" in row for row in own):
            blank = ["–"] * len(changes)
            rows.append((f"{name} spBLEU", *scores([row.get("spbleu") for row in own], []), *blank))
    means = [model["mean_chrf"] for model in models.values()]
    rows.append(("mean", *scores(means, [row["chrf"] for row in differences.values()])))
    if any("mean_spbleu" in model for model in models.values()):
        blank = ["–"] * len(differences)
        rows.append(
            ("mean spBLEU", *(number(model.get("mean_spbleu"), 1) for model in models.values()), *blank)
        )
    missing = dict.fromkeys(model["spbleu_missing"] for model in models.values() if "spbleu_missing" in model)
    note = " ".join(["95 % intervals over resampled groups.", *missing])
    tables = [
        Table(f"chrF++, {head(results)}", ("direction", *columns(models, differences)), rows, note),
    ]
    for key, title in (
        ("parity_from_pivot", "Parity out of the pivot"),
        ("parity_to_pivot", "Parity into the pivot"),
    ):
        if len(results["languages"]) > 2 and any(key in model for model in models.values()):
            tables.append(parity(results, title, key, 1))
    if any("balance" in model for model in models.values()):
        tables.append(balance(models))
    return tables


def scores(values: list, changes: list) -> list[str]:
    """Scores from 0 to 100 and their differences, with their intervals."""
    return [interval(v, 1) for v in values] + [interval(c, 1, signed=True) for c in changes]


def balance(models: dict) -> Table:
    """Out of the pivot minus into it, in chrF++."""
    tables = [model.get("balance", {}).get("intervals", {}) for model in models.values()]
    languages = list(dict.fromkeys(name for table in tables for name in table.get("languages", {})))
    rows = [
        (name, *(interval(table.get("languages", {}).get(name), 1, signed=True) for table in tables))
        for name in languages
    ]
    rows.append(("mean size", *(interval(table.get("mean_size"), 1) for table in tables)))
    return Table("Directional balance", ("", *models), rows, "chrF++ out of the pivot minus into it.")


def harness(results: dict) -> Table:
    """Metrics of lm-evaluation-harness: one row a task and metric, one column a model."""
    models, rows = results["lm_eval"], []
    for task, metrics in next(iter(models.values())).items():
        for key, value in metrics.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or key in ("version", "sample_len") or not is_number(value):
                continue
            errors = [own[task].get(f"{metric}_stderr,{kind}") for own in models.values()]
            spreads = [f" ± {error:.3f}" if is_number(error) else "" for error in errors]
            cells = [f"{own[task][key]:.3f}{spread}" for own, spread in zip(models.values(), spreads)]
            rows.append((f"{task} {metric}", *cells))
    note = "± is the harness's standard error."
    return Table("lm-evaluation-harness", ("task and metric", *models), rows, note)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)
