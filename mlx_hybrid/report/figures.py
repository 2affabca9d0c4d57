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
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "mlx-hybrid",
    "figure.facecolor": "white",
}
styled = matplotlib.rc_context(STYLE)


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


@styled
def image(figure: Figure, kind: str = "svg") -> bytes:
    """`svg` or `png` bytes; the same figure gives the same SVG."""
    stream = BytesIO()
    figure.savefig(stream, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


@styled
def frontier(
    points: Mapping[str, tuple[Row, Row]],
    base: Row | None,
    x_name: str,
    y_name: str,
    *,
    from_zero: bool = True,
) -> Figure:
    """Quality against cost, name → (cost, quality); the base is a band, or where there is none the lines at zero."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    if base:
        axes.axhspan(base.low, base.high, color=GREY, alpha=0.15, lw=0)
        axes.axhline(base.value, color=GREY, lw=1, ls="--", label="base")
    for number, (name, (cost, quality)) in enumerate(points.items()):
        bars = {"xerr": reach(cost), "yerr": reach(quality), "capsize": 2, "lw": 1, "ms": 6, "ls": "none"}
        axes.errorbar(cost.value, quality.value, label=name, **bars, **look(number))
    axes.set(xlabel=x_name, ylabel=y_name)
    if from_zero:  # few seeds have bars that would squeeze the points
        most = max(cost.value for cost, _ in points.values())
        axes.set_xlim(0, min(axes.get_xlim()[1], 2 * most))
    else:
        axes.axhline(0, color=GREY, lw=1)
        axes.axvline(0, color=GREY, lw=1)
    if axes.get_xlim()[1] >= 10_000:
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
    beside(axes)
    return figure


def look(number: int) -> dict[str, Any]:
    """Colour and marker of one of several."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def beside(axes: Axes) -> None:
    """A legend to the right of the figure."""
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def reach(*rows: Row) -> list[list[float]]:
    """Lengths of the error bars below and above each; none where the interval is not known."""
    bounds = [(row.value, row.value) if row.low is None else (row.low, row.high) for row in rows]
    below = [max(0.0, row.value - low) for row, (low, _) in zip(rows, bounds)]
    return [below, [max(0.0, high - row.value) for row, (_, high) in zip(rows, bounds)]]


@styled
def by_language(results: Results, metric: str, name: str) -> Figure:
    """A row a language and a mark a model."""
    languages, models = sorted(results.languages(metric)), results.models
    figure = new_figure(6.4, 0.8 + 0.13 * len(languages) * (len(models) + 2))
    axes = figure.subplots()
    for number, model in enumerate(models):
        rows = {place: results.get(metric, model, own) for place, own in enumerate(languages)}
        rows = {place - 0.4 + 0.8 / len(models) * (number + 0.5): row for place, row in rows.items() if row}
        # A method has one colour in every figure.
        own = {"color": GREY, "marker": "|"} if model == BASE else look(number - (BASE in models))
        bars = {"xerr": reach(*rows.values()), "lw": 1, "ms": 4, "ls": "none"}
        axes.errorbar([row.value for row in rows.values()], list(rows), label=model, **bars, **own)
    axes.set_yticks(range(len(languages)), languages)
    axes.set_ylim(len(languages) - 0.5, -0.5)
    axes.set_xlabel(name)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))  # no measure is below zero, though an interval may be
    beside(axes)
    return figure


@styled
def lines(table: Mapping[str, Sequence[Sequence[tuple[float, float]]]], x_name: str, y_name: str) -> Figure:
    """Name → lines of one colour, one a seed."""
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    for number, (name, several) in enumerate(table.items()):
        for place, line in enumerate(several):
            label = {} if place else {"label": name}
            axes.plot(*np.reshape(line, (-1, 2)).T, lw=1.3, ms=3, alpha=0.85, **label, **look(number))
    axes.set(xlabel=x_name, ylabel=y_name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(table) > 1:
        beside(axes)
    return figure


@styled
def reliability(table: Mapping[str, Sequence[dict]]) -> Figure:
    """Accuracy against confidence by bin, one panel a model; a dot's area is its share of the examples."""
    columns = min(4, len(table))
    rows = -(-len(table) // columns)
    figure = new_figure(1.9 * columns + 0.4, 1.9 * rows + 0.4)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(table) :]:
        panel.set_visible(False)
    for panel, (name, bins) in zip(panels, table.items()):
        sure, right, counts = (
            np.array([row[key] for row in bins]) for key in ("confidence", "accuracy", "count")
        )
        panel.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
        panel.plot(sure, right, color=COLOURS[0], lw=1)
        panel.scatter(sure, right, color=COLOURS[0], s=6 + 150 * counts / counts.sum(), alpha=0.8)
        ticks = {"xlim": (0, 1), "ylim": (0, 1), "xticks": (0, 0.5, 1), "yticks": (0, 0.5, 1)}
        panel.set(title=name, aspect="equal", **ticks)
    for panel in panels[max(0, len(table) - columns) : len(table)]:
        panel.tick_params(labelbottom=True)  # the lowest of its column
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return figure


def by_layer(modules: Sequence[str], value: Sequence[float]) -> list[tuple[int, float]]:
    """(transformer layer, mean of its modules' values), by layer; -1 for modules outside the layers."""
    index = [layer_index(name) for name in modules]
    places, values = np.array([-1 if own is None else own for own in index]), np.asarray(value)
    return [(int(layer), values[places == layer].mean(0)) for layer in np.unique(places)]


@styled
def mixing(modules: Sequence[str], steps: Sequence[int], values: np.ndarray) -> Figure:
    """λ over training, values (modules, steps): a row a transformer layer, the mean of its modules."""
    layers, shares = zip(*by_layer(modules, values))
    figure = new_figure(6.4, 1.5 + 0.2 * len(layers))
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="PuOr", vmin=0.1, vmax=0.9, aspect="auto", interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="λ, share of the rotation")
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(10, len(steps))).round().astype(int))
    axes.set_xticks(ticks, [str(steps[place]) for place in ticks])
    axes.set_yticks(range(len(layers)), map(str, layers), fontsize=7)
    axes.set(xlabel="step", ylabel="transformer layer")
    axes.grid(visible=False)
    return figure
