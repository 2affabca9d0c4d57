"""Tables of a comparison: means over seeds with half their 95 % interval, and a mark where methods differ."""

from collections.abc import Callable, Sequence

from mlx_hybrid.report.tables import Table

LEVEL = 0.05
MARK = " *"
BASE = "base"

CALIBRATION = (
    ("accuracy", "accuracy"), ("macro-F1", "macro_f1"), ("NLL, nats", "nll"), ("Brier", "brier"), ("ECE", "ece"),
    ("NLL scaled", "nll_scaled"), ("ECE scaled", "ece_scaled"), ("bits per byte", "bits_per_byte"), ("chrF++", "chrf"),
    ("spBLEU", "spbleu"),
)  # fmt: skip
PARITY = (
    ("worst language", "worst"), ("range", "range"), ("standard deviation", "standard_deviation"),
    ("pivot's lead", "gap_to_pivot"), ("chrF++ out of pivot", "chrf_out"), ("chrF++ into pivot", "chrf_in"),
    ("worst, out", "chrf_out_worst"), ("worst, in", "chrf_in_worst"), ("balance", "balance"),
    ("size of balance", "balance_size"),
)  # fmt: skip
PARITY_NOTES = {
    "accuracy": "Of accuracy.", "bits_per_byte": "Of bits per byte, lower being better.",
    "chrf": "Of chrF++. Balance is out of the pivot minus into it, its size how far that is from 0.",
}  # fmt: skip
FOOTPRINT = (
    ("trainable", "trainable", 0), ("peak memory, GB", "peak_memory_gb", 2), ("step, s", "step_seconds", 3),
    ("tokens/s", "tokens_per_second", 0), ("training, s", "train_seconds", 1),
)  # fmt: skip
DIGITS = {"chrf": 1, "spbleu": 1, "balance": 1}


class Rows:
    """Rows of a summary by method, governance setting and metric."""

    def __init__(self, summary: dict):
        self.summary = summary
        self.first = summary["governance"][0]
        self.table = {(r["method"], r["governance"], r["metric"]): r for r in summary["rows"]}

    def get(self, method: str, metric: str, governance: str | None = None) -> dict | None:
        setting = "" if method == BASE else governance or self.first
        return self.table.get((method, setting, metric))

    def has(self, metric: str) -> bool:
        return any(key[2] == metric for key in self.table)

    def names(self, prefix: str) -> list[str]:
        """What stands behind `prefix@`, in order."""
        found = (key[2].partition("@") for key in self.table)
        return sorted({name for head, at, name in found if at and head == prefix})

    @property
    def models(self) -> list[str]:
        return [BASE, *self.summary["methods"]]


def cell(row: dict | None, digits: int = 3, key: str = "difference") -> str:
    """`0.712 ± 0.013 *`; the value alone where its interval is unknown or of no width."""
    if row is None:
        return "–"
    mark = MARK if row.get(key, {}).get("p_holm", 1.0) < LEVEL else ""
    spread = f" ± {(row['high'] - row['low']) / 2:,.{digits}f}" if row["high"] > row["low"] else ""
    return f"{row['value']:,.{digits}f}{spread}{mark}"


def digits(metric: str) -> int:
    return DIGITS.get(metric.partition("@")[0].split("_")[0], 3)


def reading(summary: dict) -> str:
    """How every figure is to be read."""
    count = len(summary["seeds"])
    seeds = (
        f"Means over {count} seeds," if count > 1 else "One seed, so no variation of training is measured;"
    )
    over = "seeds and " if count > 1 else ""
    marks = setting = ""
    if len(summary["methods"]) > 1:
        marks = f"* differs from {summary['reference']} (p < {LEVEL:g}, Holm over the methods). "
    if len(summary["governance"]) > 1:
        setting = f" All but Table V is of the first governance setting, {summary['governance'][0]}."
    limit = f"; at most {summary['limit']} records a language" if summary["limit"] else ""
    return (
        f"{seeds} ± half the 95 % interval over {over}{summary['records']} test records{limit}, "
        "and no ± where that is unknown or of no width. "
        f"{marks}The base has no seeds.{setting}"
    )


def study_tables(summary: dict) -> list[Table]:
    """II to VI and the learning rates, as far as there are figures for them."""
    rows = Rows(summary)
    makers: Sequence[Callable[[Rows], Table | None]] = (
        quality, languages, calibration_by_language, parity, directions, variants, governance, footprint, rates,
    )  # fmt: skip
    return [table for make in makers if (table := make(rows))]


def quality(rows: Rows) -> Table:
    shown = [(label, metric) for label, metric in CALIBRATION if rows.has(metric)]
    lines = [(model, *(cell(rows.get(model, m), digits(m)) for _, m in shown)) for model in rows.models]
    notes = {
        "nll": "Scaled: by a temperature fitted on the development records. ECE has 15 bins of equal width.",
        "bits_per_byte": "Lower is better.",
        "chrf": "The mean over directions.",
    }
    note = " ".join(
        [*(text for metric, text in notes.items() if rows.has(metric)), *rows.summary.get("notes", [])]
    )
    title = "Table II. Quality and calibration" if rows.has("nll") else "Table II. Quality"
    return Table(title, ("method", *(label for label, _ in shown)), lines, note)


def by_name(rows: Rows, prefix: str, title: str, first: str, note: str = "") -> Table | None:
    names = rows.names(prefix)
    if not names:
        return None
    lines = [
        (name, *(cell(rows.get(model, f"{prefix}@{name}"), digits(prefix)) for model in rows.models))
        for name in names
    ]
    return Table(title, (first, *rows.models), lines, note)


def languages(rows: Rows) -> Table | None:
    metric = next((m for m in ("accuracy", "bits_per_byte") if rows.names(m)), "accuracy")
    word = {"accuracy": "Accuracy", "bits_per_byte": "Bits per byte"}[metric]
    return by_name(rows, metric, f"Table II b. {word} by language", "language")


def calibration_by_language(rows: Rows) -> Table | None:
    return by_name(rows, "ece", "Table II c. Calibration error by language", "language")


def parity(rows: Rows) -> Table | None:
    shown = [(label, metric) for label, metric in PARITY if rows.has(metric)]
    if not shown:
        return None
    lines = [(model, *(cell(rows.get(model, m), digits(m)) for _, m in shown)) for model in rows.models]
    title = "Table III. Parity between languages"
    return Table(title, ("method", *(label for label, _ in shown)), lines, PARITY_NOTES[main_metric(rows)])


def directions(rows: Rows) -> Table | None:
    return by_name(rows, "chrf", "Table III b. chrF++ by direction", "direction")


def variants(rows: Rows) -> Table | None:
    note = "Accuracy lost on the records that the spelling changes; above zero is worse."
    return by_name(rows, "drop", "Table IV. Robustness to spelling", "variant", note)


def governance(rows: Rows) -> Table | None:
    summary = rows.summary
    if len(summary["governance"]) < 2:
        return None
    metric = main_metric(rows)
    lines = []
    for name in summary["governance"]:
        own = summary["governed"].get(name, {})
        kept = f"{own['kept']} of {own['records']}" if own else "–"
        caught, lost = found_and_lost(own) if own.get("planted") else ("–", "–")
        cells = (cell(rows.get(m, metric, name), digits(metric), key="governed") for m in summary["methods"])
        lines.append((name, kept, caught, lost, *cells))
    note = (
        f"{metric.replace('_', ' ')} after training on what each setting keeps; * differs from "
        f"{summary['governance'][0]} with the same method."
    )
    return Table(
        "Table V. Governance",
        ("setting", "kept", "planted found", "others lost", *summary["methods"]),
        lines,
        note,
    )


def found_and_lost(own: dict) -> tuple[str, str]:
    """Of the planted records those set aside, and of the others."""
    others, others_kept = own["records"] - own["planted"], own["kept"] - own["planted_kept"]
    return (
        f"{own['planted'] - own['planted_kept']} of {own['planted']}",
        f"{others - others_kept} of {others}",
    )


def footprint(rows: Rows) -> Table:
    lines = []
    for method in rows.summary["methods"]:
        sizes = ", ".join(f"{k} {v}" for k, v in rows.summary["sizes"].get(method, {}).items())
        cells = [cell(rows.get(method, metric), places) for _, metric, places in FOOTPRINT]
        lines.append(
            (
                f"{method} ({sizes})" if sizes else method,
                *[c.replace(" ± 0", "") if n == 0 else c for n, c in enumerate(cells)],
            )
        )
    note = {
        "steps": "Every method takes the same steps.",
        "params": f"Sizes are those nearest in parameters to {rows.summary['reference']}.",
        "time": f"Steps are those that take as long as {rows.summary['reference']} takes.",
    }[rows.summary["budget"]]
    return Table("Table VI. Footprint", ("method", *(label for label, _, _ in FOOTPRINT)), lines, note)


def rates(rows: Rows) -> Table | None:
    """Every rate tried; a choice at the end of the grid is said to be one."""
    grid, chosen = rows.summary["grid"], rows.summary["chosen"]
    if not grid:
        return None
    tried = sorted({row["rate"] for row in grid})
    lines, ends = [], []
    for method in rows.summary["methods"]:
        own = {row["rate"]: row["valid_loss_nats_per_token"] for row in grid if row["method"] == method}
        cells = [f"{own[r]:.3f}{' ←' if r == chosen[method] else ''}" if r in own else "–" for r in tried]
        lines.append((method, *cells))
        ends += [method] if len(tried) > 1 and chosen[method] in (tried[0], tried[-1]) else []
    note = "Validation loss in nats per token of one seed at each rate; ← is chosen. The test set is not looked at."
    if ends:
        note += f" At the end of the grid: {', '.join(ends)}; a wider --lrs may do better."
    return Table("Learning rates", ("method", *(f"{rate:g}" for rate in tried)), lines, note)


def main_metric(rows: Rows) -> str:
    return next(metric for metric in ("accuracy", "bits_per_byte", "chrf") if rows.has(metric))
