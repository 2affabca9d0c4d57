"""The tables of results: measures, languages and variants down, models across."""

from functools import partial

from mlx_hybrid.evaluation.metrics.calibration import INVERSE_TEMPERATURES
from mlx_hybrid.evaluation.results import ALL, RETENTION, UNTRAINED, Results, Row
from mlx_hybrid.report.tables import Cell, Line, Table, interval, pivot

QUALITY = {
    "loss": "loss, nats per token",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "nll": "negative log-likelihood, nats",
    "brier": "Brier score",
    "ece": "ECE, 15 bins of equal width",
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
PARITY = {"mean": "mean", "worst": "worst language", "range": "range"}
PARITY |= {"standard_deviation": "standard deviation", "gap_to_pivot": "pivot's lead"}
PARITY_NOTES = {
    "accuracy": "Of accuracy.",
    "bits_per_byte": "Of bits per byte, lower being better.",
    "chrf": "Of chrF++. Balance is out of the pivot minus into it, its size how far that is from 0.",
}
TITLES = {"accuracy": "Accuracy", "bits_per_byte": "Bits per byte", "chrf": "chrF++"}
"""The measure that results are judged by first, by what they are of."""
OTHER = "Bits per byte of text outside the task; above the base's, something is forgotten."
DROP = "Accuracy lost on the records that the spelling changes; above zero is worse."
HARNESS = "95 % intervals by the harness's standard errors."


def result_tables(results: Results, cell: Cell | None = None) -> list[Table]:
    """Every table that the results have figures for, each figure written by `cell`."""

    def lines(metric: str, variant: str = "") -> list[Line]:
        """One a language, or direction."""
        return [(name, metric, name, variant) for name in results.languages(metric, variant)]

    facts, of_all = results.facts, {row.key: row for row in results.rows if row.language == ALL}
    if "harness" in facts:
        own = [(f"{metric} {variant}".strip(), metric, ALL, variant) for metric, _, variant in of_all]
        return pivot("lm-evaluation-harness", "task and metric", own, results, note=HARNESS)
    main = main_metric(results)
    notes = [] if cell else ["95 % intervals over resampled groups."]
    title = "Quality and calibration" if results.has("nll") else "Quality"
    limit = f", at most {facts['limit']} a language" if facts.get("limit") else ""
    head = f"{title}: {facts['task']} v{facts['version']}, {facts['records']} records{limit}"
    whole = [(label, metric, ALL, "") for metric, label in QUALITY.items()]
    whole += [(label, "bits_per_byte", ALL, variant) for variant, label in KEPT.items()]
    names = "direction" if main == "chrf" else "language"
    lower = "Lower is better." if main == "bits_per_byte" else ""
    several = len(results.languages(main)) > 1
    drops = {variant: row.n for (metric, _, variant), row in of_all.items() if metric == "drop"}
    changed = [(f"{name}, {count} records", "drop", ALL, name) for name, count in drops.items()]
    tables = [
        (head, "", whole, " ".join([*notes, *facts.get("notes", [])])),
        (f"{TITLES.get(main, main)} by {names}", names, lines(main), lower),
        ("Calibration error by language", names, lines("ece"), ""),
        ("Parity between languages", "", parity(main) if several else [], PARITY_NOTES.get(main, "")),
        ("Balance by language", "language", lines("balance") if several else [], ""),
        ("Other text by language", "language", lines("bits_per_byte", RETENTION), OTHER),
        ("Robustness to spelling", "variant", changed, DROP),
    ]
    write = cell or partial(with_worst, results)
    return [table for *what, note in tables for table in pivot(*what, results, write, note)]


def main_metric(results: Results) -> str:
    """What the results are judged by first."""
    return next((metric for metric in TITLES if results.has(metric)), "loss")


def parity(main: str) -> list[Line]:
    """Lines of the spread of a measure over languages; of translations out of the pivot and into it."""
    if main != "chrf":
        return [(label, f"{main}_{measure}", ALL, "") for measure, label in PARITY.items()]
    lines = [
        (f"{label}, {way}", f"{prefix}_{measure}".removesuffix("_mean"), ALL, "")
        for prefix, way in (("chrf_out", "out of the pivot"), ("chrf_in", "into the pivot"))
        for measure, label in PARITY.items()
    ]
    return [*lines, ("balance", "balance", ALL, ""), ("size of balance", "balance_size", ALL, "")]


def with_worst(results: Results, row: Row | None) -> str:
    """Writes intervals, a fitted temperature as one, and the name of the worst language beside its figure."""
    if row and row.metric == "temperature":
        low, high = (1 / bound for bound in reversed(INVERSE_TEMPERATURES))  # where no temperature fits
        return f"{row.value:.3g}" if low * 1.01 < row.value < high / 1.01 else f"none fits ({row.value:.3g})"
    if row and row.metric.endswith("_worst"):
        main = row.metric.partition("_worst")[0].removesuffix("_out").removesuffix("_in")
        own = [results.get(main, row.model, name) for name in results.languages(main)]
        names = [one.language for one in own if one and one.value == row.value]
        return " ".join([interval(row), *names[:1]])
    return interval(row)
