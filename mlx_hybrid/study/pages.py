"""A comparison's files: report.html, results.csv and figures as SVG and PNG."""

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import ALL, BASE, RETENTION, Row
from mlx_hybrid.files import read_json, write_text
from mlx_hybrid.report import figures
from mlx_hybrid.report.result_tables import TITLES, main_metric
from mlx_hybrid.report.tables import Picture, joined, page
from mlx_hybrid.study.summary import FORMAT, SUMMARY_FILE
from mlx_hybrid.study.tables import reading, rows_of, study_tables

NAMES = {"accuracy": "accuracy", "bits_per_byte": "bits per byte (lower is better)"}
BOUNDS = ("value", "low", "high")
CHANGES = ("", "_low", "_high", "_p", "_p_holm")
CSV_COLUMNS = (
    *("method", "governance", "metric", "language", "variant", "n", "seeds", "value", "low", "high"),
    *(f"{name}{part}" for name in ("difference", "from_base") for part in CHANGES),
)


def rewrite(directory: Path) -> Path:
    """Make every file of a finished comparison anew, from its summary; the page's path."""
    if not (directory / SUMMARY_FILE).is_file():
        raise ConfigError(
            f"{directory}: its comparison is not finished; the command that began it goes on with it."
        )
    summary = read_json(directory / SUMMARY_FILE)
    if summary.get("format") != FORMAT:
        raise ConfigError(
            f"{directory / SUMMARY_FILE}: is of an older format; the command that made the comparison writes it anew, "
            "and does no cell again."
        )
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
    rows = rows_of(summary)
    metric = main_metric(rows)
    word = TITLES[metric]
    name = NAMES.get(metric, word)
    points = {m: (rows.get("train_seconds", m), rows.get(metric, m)) for m in summary["methods"]}
    figure = figures.frontier(points, rows.get(metric, BASE), "training, seconds", name)
    caption = f"Figure 2. Cost and quality: {name} against training time, bars being 95 % intervals."
    yield "frontier", figure, caption
    if metric != "bits_per_byte" and (changes := trade(summary, metric)):
        words = ("forgetting: bits per byte of other text beyond the base's", f"gain in {name} over the base")
        figure = figures.frontier(changes, None, *words)
        yield (
            "forgetting",
            figure,
            "Gain against forgetting, both from the base; up and to the left is better.",
        )
    if rows.languages(metric):
        names = "direction" if metric == "chrf" else "language"
        caption = f"{word} by {names}, bars being 95 % intervals."
        yield "languages", figures.by_language(rows, metric, name), caption
    curves, bins, mixing = summary["curves"], summary["reliability"], summary["mixing"]
    if any(len(line) > 1 for lines in curves.values() for line in lines):
        figure = figures.lines(curves, "step", "validation loss, nats per token")
        yield "curves", figure, "Validation loss, a line a seed."
    if bins:
        caption = (
            "Reliability without temperature scaling, first seed; a dot's area is its share of the examples."
        )
        yield "reliability", figures.reliability(bins), caption
    if mixing:
        shares = {method: [figures.by_layer(**own)] for method, own in mixing.items()}
        figure = figures.lines(shares, "transformer layer", "λ, share of the rotation")
        yield "mixing", figure, "λ of each layer: mean over its projections, training and seeds."


def trade(summary: dict, metric: str) -> dict[str, tuple[Row, Row]]:
    """What each method changes from the base on other text and on the task, as far as both were measured."""
    changes = {
        (row["model"], row["metric"], row["variant"]): Row(metric, **{k: row["from_base"][k] for k in BOUNDS})
        for row in summary["rows"]
        if (row["governance"], row["language"]) == (summary["governance"][0], ALL) and "from_base" in row
    }
    pairs = {m: ((m, "bits_per_byte", RETENTION), (m, metric, "")) for m in summary["methods"]}
    known = {method: own for method, own in pairs.items() if all(key in changes for key in own)}
    return {method: (changes[kept], changes[gain]) for method, (kept, gain) in known.items()}


def csv_text(summary: dict) -> str:
    """Every figure as numbers, one row each, with its differences from the reference and from the base."""
    stream = StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in summary["rows"]:
        flat = row | {"method": row["model"]}
        for name in ("difference", "from_base"):
            change = flat.pop(name, {})
            flat |= {name if key == "value" else f"{name}_{key}": value for key, value in change.items()}
        writer.writerow(flat)
    return stream.getvalue()
