"""Tables of a comparison: means over seeds with half their 95 % interval, and a mark where methods differ."""

from dataclasses import fields, replace

from mlx_hybrid.evaluation.results import ALL, BASE, Results, Row
from mlx_hybrid.report.result_tables import main_metric, result_tables
from mlx_hybrid.report.tables import DIGITS, MISSING, Cell, Table, pivot
from mlx_hybrid.study.differences import row_key

LEVEL = 0.05
MARK = " *"
NUMBERS = {
    "Quality and calibration": "II",
    "Quality": "II",
    "Accuracy by language": "II b",
    "Bits per byte by language": "II b",
    "Calibration error by language": "II c",
    "Other text by language": "II d",
    "Parity between languages": "III",
    "chrF++ by direction": "III b",
    "Balance by language": "III c",
    "Robustness to spelling": "IV",
}
FOOTPRINT = {
    "trainable": "trainable",
    "peak memory, GB": "peak_memory_gb",
    "step, s": "step_seconds",
    "tokens/s": "tokens_per_second",
    "training, s": "train_seconds",
}
PLACES = {**DIGITS, "trainable": 0, "peak": 2, "tokens": 0, "train": 1}
ROW = [field.name for field in fields(Row)]


def rows_of(summary: dict, governance: str = "") -> Results:
    """The base and the methods under one governance setting, by default the first, as rows."""
    setting = governance or summary["governance"][0]
    own = [row for row in summary["rows"] if row["governance"] in ("", setting)]
    facts = {key: value for key, value in summary.items() if key != "rows"}
    return Results(facts, tuple(Row(**{name: row[name] for name in ROW}) for row in own))


def marking(summary: dict, name: str = "difference", governance: str = "") -> Cell:
    """Writes `0.712 ± 0.013 *`, the mark by the difference of that name; the value alone where its interval is unknown
    or of no width."""
    setting = governance or summary["governance"][0]
    marked = {
        (row["model"], *row_key(row))
        for row in summary["rows"]
        if row["governance"] == setting and row.get(name, {}).get("p_holm", 1.0) < LEVEL
    }

    def cell(row: Row | None) -> str:
        if row is None:
            return MISSING
        places = PLACES.get(row.metric.partition("_")[0], 3)
        spread = f" ± {(row.high - row.low) / 2:,.{places}f}" if row.high > row.low else ""
        mark = MARK if (row.model, *row.key) in marked else ""
        return f"{row.value:,.{places}f}{spread}{mark}"

    return cell


def reading(summary: dict) -> str:
    """How every figure is to be read."""
    count, records, settings = len(summary["seeds"]), summary["records"], summary["governance"]
    lead, over = f"Means over {count} seeds,", "seeds and "
    if count == 1:
        lead, over = "One seed, so no variation of training is measured;", ""
    limit = f"; at most {summary['limit']} records a language" if summary["limit"] else ""
    several = f"* differs from {summary['reference']} (p < {LEVEL:g}, Holm over the methods). "
    governed = f" All but Table V is of the first governance setting, {settings[0]}."
    return (
        f"{lead} ± half the 95 % interval over {over}{records} test records{limit}, and no ± where that is unknown or "
        f"of no width. {several if len(summary['methods']) > 1 else ''}The base has no seeds."
        f"{governed if len(settings) > 1 else ''}"
    )


def study_tables(summary: dict) -> list[Table]:
    """II to VI, numbered as in the paper, and the learning rates, as far as there are figures for them."""
    rows, cell = rows_of(summary), marking(summary)
    tables = []
    for table in result_tables(rows, cell):
        title = table.title.partition(":")[0]
        tables.append(replace(table, title=f"Table {NUMBERS[title]}. {title}"))
    return [*tables, *governance(summary), *footprint(rows, cell), *rates(summary)]


def governance(summary: dict) -> list[Table]:
    """What each setting keeps, and what training on that gives."""
    if len(summary["governance"]) < 2:
        return []
    metric = main_metric(rows_of(summary))
    lines = []
    for name in summary["governance"]:
        rows, cell = rows_of(summary, name), marking(summary, "governed", name)
        counts = counted(summary["governed"][name])
        lines.append((name, *counts, *(cell(rows.get(metric, m)) for m in summary["methods"])))
    note = (
        f"{metric.replace('_', ' ')} after training on what each setting keeps; * differs from "
        f"{summary['governance'][0]} with the same method."
    )
    columns = ("setting", "kept", "planted found", "others lost", *summary["methods"])
    return [Table("Table V. Governance", columns, lines, note)]


def counted(own: dict) -> tuple[str, str, str]:
    """Of all records those kept, of the planted ones and of the others those set aside."""
    kept, found = f"{own['kept']} of {own['records']}", own["planted"] - own["planted_kept"]
    if not own["planted"]:
        return kept, MISSING, MISSING
    lost, others = own["records"] - own["kept"] - found, own["records"] - own["planted"]
    return kept, f"{found} of {own['planted']}", f"{lost} of {others}"


def footprint(rows: Results, cell: Cell) -> list[Table]:
    trained = replace(rows, rows=tuple(row for row in rows.rows if row.model != BASE))
    lines = [(label, metric, ALL, "") for label, metric in FOOTPRINT.items()]
    return pivot("Table VI. Footprint", "", lines, trained, cell, "Every method trains on as many records.")


def rates(summary: dict) -> list[Table]:
    """Every trial, a line a method and batch size; a choice that is still at the end of its grid is said to be one."""
    grid, chosen, batches = summary["grid"], summary["chosen"], summary.get("batches", {})
    if not grid:
        return []
    tried = sorted({row["rate"] for row in grid})
    lines, ends = [], []
    for method in summary["methods"]:
        best, own = (batches.get(method, 0), chosen[method]), {}
        for row in (row for row in grid if row["method"] == method):
            own.setdefault(row.get("batch", 0), {})[row["rate"]] = row["valid_loss_nats_per_token"]
        for batch, losses in sorted(own.items()):
            mark = {rate: " ←" if (batch, rate) == best else "" for rate in losses}
            cells = [f"{losses[rate]:.3f}{mark[rate]}" if rate in losses else MISSING for rate in tried]
            lines.append((f"{method}, batches of {batch}" if batch else method, *cells))
        beside = own[best[0]]
        if len(beside) > 1 and best[1] in (min(beside), max(beside)):
            ends.append(method)
    trials = len(grid) // len(summary["methods"])
    note = (
        f"Validation loss in nats per token of one seed, {trials} trials a method; ← is chosen. The test set is not "
        "looked at, and a grid grows past an end that is chosen."
    )
    if ends:
        note += f" Still at an end: {', '.join(ends)}; a wider --lrs may do better."
    return [Table("Learning rates", ("method", *(f"{rate:g}" for rate in tried)), lines, note)]
