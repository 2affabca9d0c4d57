"""A comparison as text and pages: tables of means with half their 95 % interval, report.html, results.csv, figures."""

import csv
from collections.abc import Iterator
from dataclasses import fields, replace
from io import StringIO
from itertools import product
from pathlib import Path

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import ALL, BASE, RETENTION, Results, Row
from mlx_hybrid.files import read_json, write_text
from mlx_hybrid.report import figures
from mlx_hybrid.report.result_tables import TITLES, main_metric, result_tables
from mlx_hybrid.report.tables import DIGITS, MISSING, Cell, Picture, Table, joined, page, pivot
from mlx_hybrid.study.summary import FORMAT, SUMMARY_FILE, VALIDATION, row_key

LEVEL = 0.05
NUMBERS = {"Quality": "II", "Accuracy": "II b", "Bits": "II b", "Calibration": "II c", "Other": "II d"}
NUMBERS |= {"Parity": "III", "chrF++": "III b", "Balance": "III c", "Robustness": "IV"}
"""By the first word of a table's title, as in the paper."""
FOOTPRINT = {"trainable": "trainable", "peak memory, GB": "peak_memory_gb", "step, s": "step_seconds"}
FOOTPRINT |= {"tokens/s": "tokens_per_second", "training, s": "train_seconds"}
PLACES = {**DIGITS, "trainable": 0, "peak": 2, "tokens": 0, "train": 1}
ROW = [field.name for field in fields(Row)]
NAMES = {"accuracy": "accuracy", "bits_per_byte": "bits per byte (lower is better)"}
CHANGES = ("difference", "from_base")
CSV_COLUMNS = ["method", "governance", "metric", "language", "variant", "n", "seeds", "value", "low", "high"]
CSV_COLUMNS += [f"{name}{part}" for name in CHANGES for part in ("", "_low", "_high", "_p", "_p_holm")]


def rewrite(directory: Path) -> Path:
    """Make every file of a finished comparison anew, from its summary; the page's path."""
    path = directory / SUMMARY_FILE
    summary = read_json(path) if path.is_file() else {}
    if not summary:
        way = "the command that began it goes on with it"
        raise ConfigError(f"{directory}: its comparison is not finished; {way}.")
    if summary.get("format") != FORMAT:
        way = "the command that made the comparison writes it anew, and does no cell again"
        raise ConfigError(f"{path}: is of an older format; {way}.")
    return write_study(summary, directory)


def write_study(summary: dict, directory: Path) -> Path:
    """Write every file of a comparison from its summary; the page's path."""
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{', '.join(summary['methods'])} on {summary['task']} v{summary['version']}"
    pictures = []
    for name, figure, caption in study_figures(summary):
        pictures.append(Picture(figures.image(figure), caption))
        (folder / f"{name}.svg").write_bytes(pictures[-1].svg)
        (folder / f"{name}.png").write_bytes(figures.image(figure, "png"))
    sections = [("", [reading(summary)]), ("Figures", pictures), ("Tables", study_tables(summary))]
    write_text(directory / "report.html", page(title, sections))
    write_text(directory / "results.csv", csv_text(summary))
    return directory / "report.html"


def as_text(summary: dict) -> str:
    """For a terminal: how to read the figures, and every table."""
    return f"{reading(summary)}\n\n{joined(study_tables(summary))}"


def study_figures(summary: dict) -> Iterator[tuple[str, figures.Figure, str]]:
    """(name, figure, caption), as far as there is something to draw."""
    rows, methods = rows_of(summary), summary["methods"]
    metric = main_metric(rows)
    name = NAMES.get(metric, TITLES[metric])
    points = {m: (rows.get("train_seconds", m), rows.get(metric, m)) for m in methods}
    figure = figures.frontier(points, rows.get(metric, BASE), "training, seconds", name)
    caption = f"Figure 2. Cost and quality: {name} against training time, bars being 95 % intervals."
    yield "frontier", figure, caption
    if metric != "bits_per_byte" and (changes := trade(summary, metric)):
        words = ("forgetting: bits per byte of other text beyond the base's", f"gain in {name} over the base")
        caption = "Gain against forgetting, both from the base; up and to the left is better."
        yield "forgetting", figures.frontier(changes, None, *words), caption
    if rows.languages(metric):
        names = "direction" if metric == "chrf" else "language"
        caption = f"{TITLES[metric]} by {names}, bars being 95 % intervals."
        yield "languages", figures.by_language(rows, metric, name), caption
    if any(len(line) > 1 for lines in summary["curves"].values() for line in lines):
        figure = figures.lines(summary["curves"], "step", "validation loss, nats per token")
        yield "curves", figure, "Validation loss, a line a seed."
    if summary["reliability"]:
        caption = "Reliability without temperature scaling, first seed; a dot's area is its part of examples."
        yield "reliability", figures.reliability(summary["reliability"]), caption
    if summary["mixing"]:
        shares = {method: [figures.by_layer(**own)] for method, own in summary["mixing"].items()}
        figure = figures.lines(shares, "transformer layer", "λ, share of the rotation")
        yield "mixing", figure, "λ of each layer: mean over its projections, training and seeds."


def trade(summary: dict, metric: str) -> dict[str, tuple[Row, Row]]:
    """What each method changes from the base on other text and on the task, as far as both were measured."""
    changes: dict[str, dict] = {}
    for row in summary["rows"]:
        if (row["governance"], row["language"]) == (summary["governance"][0], ALL) and "from_base" in row:
            own = Row(metric, **{key: row["from_base"][key] for key in ("value", "low", "high")})
            changes.setdefault(row["model"], {})[row["metric"], row["variant"]] = own
    keys = ("bits_per_byte", RETENTION), (metric, "")
    return {name: tuple(map(own.get, keys)) for name, own in changes.items() if own.keys() >= {*keys}}


def csv_text(summary: dict) -> str:
    """Every figure as numbers, one row each, with its differences from the reference and from the base."""
    stream = StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in summary["rows"]:
        changes = {f"{name}_{key}": v for name in CHANGES for key, v in row.get(name, {}).items()}
        flat = {key.removesuffix("_value"): value for key, value in changes.items()}
        writer.writerow(row | flat | {"method": row["model"]})
    return stream.getvalue()


def rows_of(summary: dict, governance: str = "") -> Results:
    """The base and the methods under one governance setting, by default the first, as rows."""
    setting = governance or summary["governance"][0]
    own = [row for row in summary["rows"] if row["governance"] in ("", setting)]
    return Results(summary, tuple(Row(**{name: row[name] for name in ROW}) for row in own))


def marking(summary: dict, governance: str = "") -> Cell:
    """Writes `0.712 ± 0.013 *`, the value alone where its interval is unknown or of no width; the mark is by the
    difference from the reference, or under a setting that is named from the first one."""
    name, setting = ("governed", governance) if governance else ("difference", summary["governance"][0])
    own = [row for row in summary["rows"] if row["governance"] == setting]
    marked = {(r["model"], *row_key(r)) for r in own if r.get(name, {}).get("p_holm", 1.0) < LEVEL}

    def cell(row: Row | None) -> str:
        if row is None:
            return MISSING
        places = PLACES.get(row.metric.partition("_")[0], 3)
        spread = f" ± {(row.high - row.low) / 2:,.{places}f}" if row.high > row.low else ""
        return f"{row.value:,.{places}f}{spread}{' *' if (row.model, *row.key) in marked else ''}"

    return cell


def reading(summary: dict) -> str:
    """How every figure is to be read."""
    count, settings = len(summary["seeds"]), summary["governance"]
    lead = f"Means over {count} seeds," if count > 1 else "One seed, so no variation of training is measured;"
    over = f"{'seeds and ' if count > 1 else ''}{summary['records']} test records"
    over += f"; at most {summary['limit']} records a language" if summary["limit"] else ""
    told = f"{lead} ± half the 95 % interval over {over}, and no ± where that is unknown or of no width."
    if len(summary["methods"]) > 1:
        told += f" * differs from {summary['reference']} (p < {LEVEL:g}, Holm over the methods)."
    governed = f" All but Table V is of the first governance setting, {settings[0]}."
    return f"{told} The base has no seeds.{governed if len(settings) > 1 else ''}"


def study_tables(summary: dict) -> list[Table]:
    """II to VI, numbered as in the paper, and the learning rates, as far as there are figures for them."""
    rows, cell = rows_of(summary), marking(summary)
    tables = [replace(own, title=own.title.partition(":")[0]) for own in result_tables(rows, cell)]
    numbered = [replace(t, title=f"Table {NUMBERS[t.title.split()[0]]}. {t.title}") for t in tables]
    trained = replace(rows, rows=tuple(row for row in rows.rows if row.model != BASE))
    lines = [(label, metric, ALL, "") for label, metric in FOOTPRINT.items()]
    note = "Every method trains on as many records."
    footprint = pivot("Table VI. Footprint", "", lines, trained, cell, note)
    return [*numbered, *governance(summary), *footprint, *rates(summary)]


def governance(summary: dict) -> list[Table]:
    """What each setting keeps of all records, sets aside of the planted and of the others, and what training gives."""
    settings, methods, lines = summary["governance"], summary["methods"], []
    metric = main_metric(rows_of(summary))
    for name in settings if len(settings) > 1 else ():
        rows, cell, own = rows_of(summary, name), marking(summary, name), summary["governed"][name]
        found, others = own["planted"] - own["planted_kept"], own["records"] - own["planted"]
        told = (f"{found} of {own['planted']}", f"{own['records'] - own['kept'] - found} of {others}")
        counts = (f"{own['kept']} of {own['records']}", *(told if own["planted"] else (MISSING, MISSING)))
        lines.append((name, *counts, *(cell(rows.get(metric, method)) for method in methods)))
    word = metric.replace("_", " ")
    note = f"{word} after training on what each setting keeps; * differs from {settings[0]} with the same method."
    columns = ("setting", "kept", "planted found", "others lost", *methods)
    return [Table("Table V. Governance", columns, lines, note)] if lines else []


def rates(summary: dict) -> list[Table]:
    """Every trial, a line a method and batch size; a choice still at the end of its grid is said to be one."""
    if not summary["grid"]:
        return []
    losses = {(row["method"], row["batch"], row["rate"]): row[VALIDATION] for row in summary["grid"]}
    tried = sorted({rate for *_, rate in losses})
    chosen = {(method, summary["batches"][method], rate) for method, rate in summary["chosen"].items()}
    cells = {key: f"{loss:.3f}{' ←' * (key in chosen)}" for key, loss in losses.items()}
    rows = [
        (f"{name}, batches of {batch}" if batch else name, *(cells[name, batch, rate] for rate in tried))
        for name, batch in product(summary["methods"], sorted({batch for _, batch, _ in losses}))
    ]
    note = "Validation loss in nats per token of one seed at each rate; ← is chosen. The test set is not looked at, "
    note += "and a grid grows past an end that is chosen."
    if ends := [method for method, _, rate in sorted(chosen) if rate in (tried[0], tried[-1])]:
        note += f" Still at an end: {', '.join(ends)}; a wider --lrs may do better."
    return [Table("Learning rates", ("method", *(f"{rate:g}" for rate in tried)), rows, note)]
