"""Figures, drawn by matplotlib without a display. Every mean is drawn with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#7f7f7f")
"""Okabe and Ito's, told apart by most colour-blind readers. https://jfly.uni-koeln.de/color/"""
MARKERS = "osD^vPXh"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e3e3e6", "axes.axisbelow": True, "legend.frameon": False, "svg.fonttype": "path",
    "svg.hashsalt": "mlx-hybrid", "figure.facecolor": "white",
}  # fmt: skip


@contextmanager
def drawing() -> Iterator[Callable[..., Figure]]:
    """Our style, and the class of figures."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield lambda width, height: Figure(figsize=(width, height), layout="constrained")


def image(figure: Figure, kind: str = "svg") -> bytes:
    """`svg` or `png` bytes; the same figure gives the same SVG."""
    import matplotlib

    stream = BytesIO()
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(stream, format=kind, dpi=160, metadata=metadata)
    return stream.getvalue()


def frontier(points: Mapping[str, tuple[dict, dict]], base: dict | None, x_name: str, y_name: str) -> Figure:
    """Quality against cost, name → (cost, quality), each with value, low and high; the base is a band."""
    with drawing() as make:
        figure = make(6.4, 4.2)
        axes = figure.subplots()
        if base:
            axes.axhspan(base["low"], base["high"], color="#7f7f7f", alpha=0.15, lw=0)
            axes.axhline(base["value"], color="#7f7f7f", lw=1, ls="--", label="base")
        for (name, (cost, quality)), colour, marker in zip(points.items(), COLOURS, MARKERS):
            axes.errorbar(
                cost["value"], quality["value"], xerr=reach(cost), yerr=reach(quality), fmt=marker, color=colour,
                capsize=2, lw=1, ms=6, label=name,
            )  # fmt: skip
        axes.set(xlabel=x_name, ylabel=y_name)
        most = max(cost["value"] for cost, _ in points.values())
        axes.set_xlim(
            0, min(axes.get_xlim()[1], 2 * most)
        )  # few seeds have bars that would squeeze the points
        if axes.get_xlim()[1] >= 10_000:
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.locator_params(axis="x", nbins=5)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def reach(row: dict) -> list[list[float]]:
    """Lengths of the error bars below and above."""
    return [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]]


def by_language(table: Mapping[str, Mapping[str, dict]], name: str) -> Figure:
    """A row a language and a mark a model: model → language → value, low, high."""
    languages = sorted({language for own in table.values() for language in own})
    with drawing() as make:
        figure = make(6.4, 0.8 + 0.13 * len(languages) * (len(table) + 2))
        axes = figure.subplots()
        step = 0.8 / len(table)
        for number, (model, own) in enumerate(table.items()):
            place_in_cycle = number - ("base" in table)  # so that a method has one colour in every figure
            colour = "#7f7f7f" if model == "base" else COLOURS[place_in_cycle % len(COLOURS)]
            marker = "|" if model == "base" else MARKERS[place_in_cycle % len(MARKERS)]
            for place, language in enumerate(languages):
                if language in own:
                    row = own[language]
                    axes.errorbar(
                        row["value"], place - 0.4 + step * (number + 0.5), xerr=reach(row), color=colour, lw=1,
                        fmt=marker, ms=4, label=model if place == 0 else None,
                    )  # fmt: skip
        axes.set_yticks(range(len(languages)), languages)
        axes.set_ylim(len(languages) - 0.5, -0.5)
        axes.set_xlabel(name)
        left, _ = axes.get_xlim()
        axes.set_xlim(left=max(0.0, left))  # no measure is below zero, though an interval may be
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def lines(table: Mapping[str, Sequence[Sequence[tuple[float, float]]]], x_name: str, y_name: str) -> Figure:
    """Name → lines of one colour, one a seed."""
    with drawing() as make:
        figure = make(6.4, 3.6)
        axes = figure.subplots()
        for number, (name, several) in enumerate(table.items()):
            for place, line in enumerate(several):
                x, y = zip(*line) if line else ((), ())
                axes.plot(
                    x, y, color=COLOURS[number % len(COLOURS)], lw=1.3, marker=MARKERS[number % len(MARKERS)], ms=3,
                    alpha=0.85, label=name if place == 0 else None,
                )  # fmt: skip
        axes.set(xlabel=x_name, ylabel=y_name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(table) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def reliability(table: Mapping[str, Sequence[dict]]) -> Figure:
    """Accuracy against confidence by bin, one panel a model; a dot's area is its share of the examples."""
    with drawing() as make:
        columns = min(4, len(table))
        rows = -(-len(table) // columns)
        figure = make(1.9 * columns + 0.4, 1.9 * rows + 0.4)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for panel in panels.flat[len(table) :]:
            panel.set_visible(False)
        for panel, (name, bins) in zip(panels.flat, table.items()):
            total = sum(row["count"] for row in bins)
            panel.plot([0, 1], [0, 1], color="#7f7f7f", lw=1, ls="--")
            panel.plot([r["confidence"] for r in bins], [r["accuracy"] for r in bins], color=COLOURS[0], lw=1)
            panel.scatter(
                [r["confidence"] for r in bins], [r["accuracy"] for r in bins], color=COLOURS[0],
                s=[6 + 150 * r["count"] / total for r in bins], alpha=0.8,
            )  # fmt: skip
            panel.set(
                title=name, xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1)
            )
        for panel in panels.flat[max(0, len(table) - columns) : len(table)]:
            panel.tick_params(labelbottom=True)  # the lowest of its column
        figure.supxlabel("confidence", fontsize=9)
        figure.supylabel("accuracy", fontsize=9)
        return figure


def mixing_by_layer(table: Mapping[str, dict]) -> Figure:
    """λ of every module, a panel a method: transformer layers across, kinds of projection down."""
    with drawing() as make:
        grids = {name: layer_grid(row["modules"], row["value"]) for name, row in table.items()}
        layers = max(len(grid[1]) for grid in grids.values())
        figure = make(max(4.8, 2.2 + 0.52 * layers), 0.7 + sum(0.8 + 0.3 * len(g[0]) for g in grids.values()))
        panels = figure.subplots(len(grids), 1, squeeze=False)
        for panel, (name, (kinds, indices, values)) in zip(panels[:, 0], grids.items()):
            heat(figure, panel, values, "λ, share of the rotation")
            panel.set_yticks(range(len(kinds)), kinds)
            panel.set_xticks(range(len(indices)), [str(index) for index in indices])
            panel.set(title=name, xlabel="transformer layer")
            if len(indices) <= 16:
                write_values(panel, values)
        return figure


def mixing_by_step(modules: Sequence[str], steps: Sequence[int], values: Any) -> Figure:
    """λ of every module over training: values (modules, reports)."""
    import numpy as np

    with drawing() as make:
        figure = make(6.4, 1.2 + 0.09 * max(12, len(modules)))
        panel = figure.subplots()
        heat(figure, panel, np.asarray(values), "λ, share of the rotation")
        every = -(-len(modules) // 40)
        panel.set_yticks(range(0, len(modules), every), modules[::every], fontsize=6)
        places = np.unique(np.linspace(0, len(steps) - 1, min(8, len(steps))).round().astype(int))
        panel.set_xticks(places, [str(steps[place]) for place in places])
        panel.set_xlabel("step")
        return figure


def heat(figure: Figure, panel: Axes, values: Any, name: str) -> None:
    shown = panel.imshow(values, cmap="PuOr", vmin=0.1, vmax=0.9, aspect="auto", interpolation="nearest")
    panel.grid(visible=False)
    figure.colorbar(shown, ax=panel, label=name)


def write_values(panel: Axes, values: Any) -> None:
    for (row, column), value in numbered(values):
        dark = abs(value - 0.5) > 0.28
        panel.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )


def numbered(values: Any) -> list[tuple[tuple[int, int], float]]:
    return [
        ((r, c), value) for r, line in enumerate(values) for c, value in enumerate(line) if value == value
    ]


def layer_grid(modules: Sequence[str], values: Sequence[float]) -> tuple[list[str], list[int], Any]:
    """(kinds of projection, layer numbers, (kinds, layers) values); NaN where a layer lacks a kind."""
    import numpy as np

    places = [
        (name.rsplit(".", 1)[-1], next((int(p) for p in name.split(".") if p.isdigit()), -1))
        for name in modules
    ]
    kinds, layers = list(dict.fromkeys(kind for kind, _ in places)), sorted({layer for _, layer in places})
    grid = np.full((len(kinds), len(layers)), np.nan)
    for (kind, layer), value in zip(places, values, strict=True):
        grid[kinds.index(kind), layers.index(layer)] = value
    return kinds, layers, grid
