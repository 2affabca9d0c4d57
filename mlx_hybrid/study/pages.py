"""A comparison's files: report.html, report.md, results.csv and figures as SVG and PNG."""

import csv
from io import StringIO
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import read_json, write_text
from mlx_hybrid.report import figures
from mlx_hybrid.report.page import Picture, page
from mlx_hybrid.report.tables import joined, markdown
from mlx_hybrid.study.summary import SUMMARY_FILE
from mlx_hybrid.study.tables import BASE, Rows, main_metric, reading, study_tables

NAMES = {"accuracy": "accuracy", "bits_per_byte": "bits per byte (lower is better)", "chrf": "chrF++"}
TITLES = {"accuracy": "Accuracy", "bits_per_byte": "Bits per byte", "chrf": "chrF++"}
CSV_COLUMNS = (
    "method", "governance", "metric", "of", "seeds", "value", "low", "high", "difference", "difference_low",
    "difference_high", "p", "p_holm", "from_base", "from_base_low", "from_base_high", "from_base_p_holm",
)  # fmt: skip


def rewrite(directory: Path) -> Path:
    """Make every file of a finished comparison anew, from its summary; the page's path."""
    if not (directory / SUMMARY_FILE).is_file():
        raise ConfigError(
            f"{directory}: its comparison is not finished; the command that began it goes on with it."
        )
    return write_study(read_json(directory / SUMMARY_FILE), directory)


def write_study(summary: dict, directory: Path) -> Path:
    """Write every file of a comparison from its summary; the page's path."""
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, (figure, caption) in study_figures(summary).items():
        pictures[name] = Picture(figures.image(figure), caption)
        (folder / f"{name}.svg").write_bytes(pictures[name].svg)
        (folder / f"{name}.png").write_bytes(figures.image(figure, "png"))
    tables = study_tables(summary)
    sections = [("", [reading(summary)]), ("Figures", list(pictures.values())), ("Tables", tables)]
    write_text(directory / "report.html", page(title(summary), sections))
    parts = [f"# {title(summary)}\n", reading(summary) + "\n", *map(markdown, tables)]
    parts += [f"![{p.caption}](figures/{name}.svg)\n\n{p.caption}\n" for name, p in pictures.items()]
    write_text(directory / "report.md", "\n".join(parts))
    write_text(directory / "results.csv", csv_text(summary))
    return directory / "report.html"


def as_text(summary: dict) -> str:
    """For a terminal: how to read the figures, and every table."""
    return f"{reading(summary)}\n\n{joined(study_tables(summary))}"


def title(summary: dict) -> str:
    return f"{', '.join(summary['methods'])} on {summary['task']} v{summary['version']}"


def study_figures(summary: dict) -> dict[str, tuple[Any, str]]:
    """Name → (figure, caption), as far as there is something to draw."""
    rows = Rows(summary)
    metric = main_metric(rows)
    name = NAMES[metric]
    drawn: dict[str, tuple[Any, str]] = {
        "frontier": (
            figures.frontier(
                points(rows, "train_seconds", metric), rows.get(BASE, metric), "training, seconds", name
            ),
            f"Figure 2. Cost and quality: {name} against training time, bars being 95 % intervals.",
        ),
        "parameters": (
            figures.frontier(
                points(rows, "trainable", metric), rows.get(BASE, metric), "trainable parameters", name
            ),
            f"{TITLES[metric]} against trainable parameters.",
        ),
    }
    if rows.names(metric):
        drawn["languages"] = (
            figures.by_language(language_table(rows, metric), name),
            f"{TITLES[metric]} by {'direction' if metric == 'chrf' else 'language'}, bars being 95 % intervals.",
        )
    if any(len(line) > 1 for own in summary["curves"].values() for line in own["valid_loss"]):
        curves = {method: own["valid_loss"] for method, own in summary["curves"].items()}
        drawn["curves"] = (
            figures.lines(curves, "step", "validation loss, nats per token"), "Validation loss, a line a seed.",
        )  # fmt: skip
    if summary["reliability"]:
        drawn["reliability"] = (
            figures.reliability(summary["reliability"]),
            "Reliability without temperature scaling, first seed; a dot's area is its share of the examples.",
        )
    if summary["mixing"]:
        drawn["mixing"] = (
            figures.mixing_by_layer(summary["mixing"]),
            "λ of each layer, the share of its step that the rotation takes: mean over training and seeds.",
        )
    return drawn


def points(rows: Rows, cost: str, metric: str) -> dict[str, tuple[dict, dict]]:
    return {m: (rows.get(m, cost), rows.get(m, metric)) for m in rows.summary["methods"]}


def language_table(rows: Rows, metric: str) -> dict[str, dict[str, dict]]:
    names = rows.names(metric)
    return {
        model: {n: row for n in names if (row := rows.get(model, f"{metric}@{n}")) is not None}
        for model in rows.models
    }


def csv_text(summary: dict) -> str:
    """Every figure as numbers, one row each: `of` is the language, variant or direction it is of."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in summary["rows"]:
        metric, _, of = row["metric"].partition("@")
        change, base = row.get("difference", {}), row.get("from_base", {})
        writer.writerow(
            [
                row["method"], row["governance"], metric, of, row["seeds"], row["value"], row["low"], row["high"],
                *(change.get(key, "") for key in ("value", "low", "high", "p", "p_holm")),
                *(base.get(key, "") for key in ("value", "low", "high", "p_holm")),
            ]
        )  # fmt: skip
    return stream.getvalue()
