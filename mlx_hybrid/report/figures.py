"""Figures, drawn by matplotlib without a display. Every mean is drawn with its 95 % interval."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlx_hybrid.adapters.targets import layer_index
from mlx_hybrid.evaluation.results import BASE, Results, Row

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#7f7f7f")
"""Okabe and Ito's, told apart by most colour-blind readers. https://jfly.uni-koeln.de/color/"""
GREY = "#7f7f7f"
MARKERS = "osD^vPXh"
BESIDE = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}  # a legend to the right of the figure
STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.grid": True, "grid.color": "#e3e3e6"}
STYLE |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
STYLE |= {"axes.axisbelow": True, "figure.facecolor": "white"}
STYLE |= {"svg.fonttype": "path", "svg.hashsalt": "mlx-hybrid"}
styled = matplotlib.rc_context(STYLE)


@styled
def image(figure: Figure, kind: str = "svg") -> bytes:
    """`svg` or `png` bytes; the same figure gives the same SVG."""
    stream = BytesIO()
    figure.savefig(stream, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def new_axes(height: float, x_name: str, y_name: str = "") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    return figure, figure.subplots(subplot_kw={"xlabel": x_name, "ylabel": y_name})


def look(number: int) -> dict[str, Any]:
    """Colour and marker of one of several."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def reach(*rows: Row) -> list[list[float]]:
    """Lengths of the error bars below and above each; none where the interval is not known."""
    bounds = [(row.value, row.value) if row.low is None else (row.low, row.high) for row in rows]
    below = [max(0.0, row.value - low) for row, (low, _) in zip(rows, bounds)]
    return [below, [max(0.0, high - row.value) for row, (_, high) in zip(rows, bounds)]]


@styled
def frontier(points: Mapping[str, tuple[Row, Row]], base: Row | None, x_name: str, y_name: str) -> Figure:
    """Quality against cost, name → (cost, quality); the base is a band, or without one both are changes from it."""
    figure, axes = new_axes(4.2, x_name, y_name)
    for number, (name, (cost, quality)) in enumerate(points.items()):
        bars = {"xerr": reach(cost), "yerr": reach(quality), "capsize": 2, "lw": 1, "ms": 6, "ls": "none"}
        axes.errorbar(cost.value, quality.value, label=name, **bars, **look(number))
    if base:
        axes.axhspan(base.low, base.high, color=GREY, alpha=0.15, lw=0)
        axes.axhline(base.value, color=GREY, lw=1, ls="--", label="base")
        most = max(cost.value for cost, _ in points.values())
        axes.set_xlim(0, min(axes.get_xlim()[1], 2 * most))  # bars of few seeds would squeeze the points
    else:
        axes.axhline(0, color=GREY, lw=1)
        axes.axvline(0, color=GREY, lw=1)
    if axes.get_xlim()[1] >= 10_000:
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
    axes.legend(**BESIDE)
    return figure


@styled
def by_language(results: Results, metric: str, name: str) -> Figure:
    """A row a language and a mark a model."""
    languages, models = sorted(results.languages(metric)), results.models
    figure, axes = new_axes(0.8 + 0.13 * len(languages) * (len(models) + 2), name)
    for number, model in enumerate(models):
        rows = {place: results.get(metric, model, own) for place, own in enumerate(languages)}
        rows = {place - 0.4 + 0.8 / len(models) * (number + 0.5): row for place, row in rows.items() if row}
        # A method has one colour in every figure.
        own = {"color": GREY, "marker": "|"} if model == BASE else look(number - (BASE in models))
        bars = {"xerr": reach(*rows.values()), "lw": 1, "ms": 4, "ls": "none"}
        axes.errorbar([row.value for row in rows.values()], list(rows), label=model, **bars, **own)
    axes.set_yticks(range(len(languages)), languages)
    left = max(0.0, axes.get_xlim()[0])  # no measure is below zero, though an interval may be
    axes.set(xlim=(left, None), ylim=(len(languages) - 0.5, -0.5))
    axes.legend(**BESIDE)
    return figure


@styled
def lines(table: Mapping[str, Sequence[Sequence[tuple[float, float]]]], x_name: str, y_name: str) -> Figure:
    """Name → lines of one colour, one a seed."""
    figure, axes = new_axes(3.6, x_name, y_name)
    for number, (name, several) in enumerate(table.items()):
        for place, line in enumerate(several):
            label = {} if place else {"label": name}
            axes.plot(*np.reshape(line, (-1, 2)).T, lw=1.3, ms=3, alpha=0.85, **label, **look(number))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(table) > 1:
        axes.legend(**BESIDE)
    return figure


@styled
def reliability(table: Mapping[str, Sequence[dict]]) -> Figure:
    """Accuracy against confidence by bin, one panel a model; a dot's area is its share of the examples."""
    wide = min(4, len(table))
    high = -(-len(table) // wide)
    limits = {"xlim": (0, 1), "ylim": (0, 1), "xticks": (0, 0.5, 1), "yticks": (0, 0.5, 1)}
    figure = Figure(figsize=(1.9 * wide + 0.4, 1.9 * high + 0.4), layout="constrained")
    for number, (name, bins) in enumerate(table.items(), 1):
        panel, columns = figure.add_subplot(high, wide, number), ("confidence", "accuracy", "count")
        sure, right, counts = (np.array([row[key] for row in bins]) for key in columns)
        panel.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
        panel.plot(sure, right, color=COLOURS[0], lw=1)
        panel.scatter(sure, right, color=COLOURS[0], s=6 + 150 * counts / counts.sum(), alpha=0.8)
        panel.set(title=name, aspect="equal", **limits)
        panel.tick_params(labelleft=number % wide == 1 or wide == 1, labelbottom=number > len(table) - wide)
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return figure


def by_layer(modules: Sequence[str], value: Sequence[float]) -> list[tuple[int, float]]:
    """(transformer layer, mean of its modules' values), by layer; -1 for modules outside the layers."""
    index = [layer_index(name) for name in modules]
    places, values = np.array([-1 if own is None else own for own in index]), np.asarray(value)
    return [(int(layer), float(values[places == layer].mean())) for layer in np.unique(places)]
