"""The tables of results: measures, languages and variants down, models across."""

from mlx_hybrid.evaluation.metrics.calibration import INVERSE_TEMPERATURES
from mlx_hybrid.evaluation.metrics.chrf import measure_name
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, RETENTION, UNTRAINED, Results, Row
from mlx_hybrid.report.tables import Cell, Line, Table, by_language, interval, pivot

CALIBRATION = {
    "nll": "negative log-likelihood, nats",
    "brier": "Brier score",
    "ece": "ECE, 15 bins of equal width",
    "ece_mass": "ECE, 15 bins of equal mass",
}
QUALITY = {
    "loss": "loss, nats per token",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    **CALIBRATION,
    "temperature": "temperature, fitted on dev",
    "nll_scaled": "  NLL with the temperature",
    "ece_scaled": "  ECE with the temperature",
    "accuracy_calibrated": "  accuracy with temperature and biases by language",
    "nll_calibrated": "  NLL with both",
    "ece_calibrated": "  ECE with both",
    "bits_per_byte": "bits per byte",
    "chrf": "chrF++, mean over directions",
}
KEPT = {RETENTION: "other text, bits per byte", UNTRAINED: "  of languages not trained"}
"""What is left of the rest: above the base's bits something is forgotten."""
PARITY = {
    "mean": "mean",
    "worst": "worst language",
    "range": "range",
    "standard_deviation": "standard deviation",
    "gap_to_pivot": "pivot's lead",
}
PARITY_NOTES = {
    "accuracy": "Of accuracy.",
    "bits_per_byte": "Of bits per byte, lower being better.",
    "chrf": "Of chrF++. Balance is out of the pivot minus into it, its size how far that is from 0.",
}
TITLES = {"accuracy": "Accuracy", "bits_per_byte": "Bits per byte", "chrf": "chrF++"}
"""The measure that results are judged by first, by what they are of."""
OTHER = "Bits per byte of text outside the task; above the base's, something is forgotten."
DROP = "Accuracy lost on the records that the spelling changes; above zero is worse."


def result_tables(results: Results, cell: Cell | None = None) -> list[Table]:
    """Every table that the results have figures for, each figure written by `cell`."""
    if "harness" in results.facts:
        return harness(results)
    note = quality_note(results)
    if cell is None:
        cell, note = with_worst(results), f"95 % intervals over resampled groups. {note}".strip()
    main = main_metric(results)
    title = "Quality and calibration" if results.has("nll") else "Quality"
    whole = [(label, metric, ALL, "") for metric, label in QUALITY.items()]
    whole += [(label, "bits_per_byte", ALL, variant) for variant, label in KEPT.items()]
    tables = pivot(f"{title}: {head(results.facts)}", "", whole, results, cell, note)
    names = "direction" if main == "chrf" else "language"
    word = TITLES.get(main, main)
    lower = "Lower is better." if main == "bits_per_byte" else ""
    tables += pivot(f"{word} by {names}", names, by_language(main, results), results, cell, lower)
    tables += pivot("Calibration error by language", names, by_language("ece", results), results, cell)
    if len(results.languages(main)) > 1:
        note = PARITY_NOTES.get(main, "")
        tables += pivot("Parity between languages", "", parity(main), results, cell, note)
        tables += pivot("Balance by language", "language", by_language("balance", results), results, cell)
    kept = [
        (name, "bits_per_byte", name, RETENTION) for name in results.languages("bits_per_byte", RETENTION)
    ]
    tables += pivot("Other text by language", "language", kept, results, cell, OTHER)
    tables += pivot("Robustness to spelling", "variant", variants(results), results, cell, DROP)
    return tables


def main_metric(results: Results) -> str:
    """What the results are judged by first."""
    return next((metric for metric in TITLES if results.has(metric)), "loss")


def head(facts: dict) -> str:
    limit = f", at most {facts['limit']} a language" if facts.get("limit") else ""
    return f"{facts['task']} v{facts['version']}, {facts['records']} records{limit}"


def quality_note(results: Results) -> str:
    """How the figures came about, and what is missing."""
    row = results.get("sign_flip_p", DIFFERENCE)
    notes = [f"The difference in accuracy: p = {row.value:.2g} (sign flips of groups)."] if row else []
    return " ".join([*notes, *results.facts.get("notes", [])])


def parity(main: str) -> list[Line]:
    """Lines of the spread of a measure over languages; of translations out of the pivot and into it."""
    if main != "chrf":
        return [(label, f"{main}_{measure}", ALL, "") for measure, label in PARITY.items()]
    ways = {"chrf_out": "out of the pivot", "chrf_in": "into the pivot"}
    lines = [
        (f"{label}, {way}", measure_name(prefix, measure), ALL, "")
        for prefix, way in ways.items()
        for measure, label in PARITY.items()
    ]
    return [*lines, ("balance", "balance", ALL, ""), ("size of balance", "balance_size", ALL, "")]


def variants(results: Results) -> list[Line]:
    """A line a variant, with the number of records that it changes."""
    counts = {row.variant: row.n for row in results.rows if (row.metric, row.language) == ("drop", ALL)}
    return [(f"{name}, {count} records", "drop", ALL, name) for name, count in counts.items()]


def with_worst(results: Results) -> Cell:
    """Writes intervals, a fitted temperature as one, and the name of the worst language beside its figure."""

    def cell(row: Row | None) -> str:
        if row and row.metric == "temperature":
            return temperature(row.value)
        if row and row.metric.endswith("_worst"):
            main = row.metric.partition("_worst")[0].removesuffix("_out").removesuffix("_in")
            own = [results.get(main, row.model, name) for name in results.languages(main)]
            names = [one.language for one in own if one and one.value == row.value]
            return " ".join([interval(row), *names[:1]])
        return interval(row)

    return cell


def temperature(value: float) -> str:
    """A fitted temperature; none fits where the fit stopped at its bounds."""
    low, high = (1 / bound for bound in reversed(INVERSE_TEMPERATURES))
    return f"{value:.3g}" if low * 1.01 < value < high / 1.01 else f"none fits ({value:.3g})"


def harness(results: Results) -> list[Table]:
    """Metrics of lm-evaluation-harness, a line a task and metric."""
    found = dict.fromkeys((row.metric, row.variant) for row in results.rows)
    lines = [(f"{metric} {variant}".strip(), metric, ALL, variant) for metric, variant in found]
    note = "95 % intervals by the harness's standard errors."
    return pivot("lm-evaluation-harness", "task and metric", lines, results, note=note)
