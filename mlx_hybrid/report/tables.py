"""A table of text once, shown as plain text, and by page.html as HTML; and how a figure is written."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from mlx_hybrid.evaluation.results import DIFFERENCE, Results, Row

MISSING = "–"
DIGITS = {"chrf": 1, "balance": 1}
"""Of measures from 0 to 100; others have three."""
SIGNED = ("drop", "balance")

Cell = Callable[[Row | None], str]
Line = tuple[str, str, str, str]
"""Label, metric, language, variant."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; `note` says how to read them. The first column names the row; the others are
    figures, unless they are `words`."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    words: bool = False


def interval(row: Row | None) -> str:
    """A value with its bounds, as `0.712 [0.690, 0.731]`."""
    if row is None:
        return MISSING
    sign = "+" if row.model == DIFFERENCE or row.metric in SIGNED else ""
    bounds = [] if row.low is None else [row.low, row.high]
    value, *bounds = (f"{one:{sign}.{digits(row.metric)}f}" for one in (row.value, *bounds))
    return f"{value} [{', '.join(bounds)}]" if bounds else value


def digits(metric: str) -> int:
    return DIGITS.get(metric.partition("_")[0], 3)


def pivot(
    title: str, first: str, lines: Iterable[Line], results: Results, cell: Cell = interval, note: str = ""
) -> list[Table]:
    """The table of these lines against the models measured; lines without a figure are left out, and so is a table
    without a line."""
    found = [(label, [results.get(m, model, l, v) for model in results.columns]) for label, m, l, v in lines]
    rows = [(label, *map(cell, own)) for label, own in found if any(own)]
    return [Table(title, (first, *results.columns), rows, note)] if rows else []


def by_language(metric: str, results: Results) -> list[Line]:
    """A line a language, or direction."""
    return [(name, metric, name, "") for name in results.languages(metric)]


def plain(table: Table) -> str:
    """Columns of even width for a terminal or a pipe, whatever the script."""
    rows = (table.columns, *table.rows)
    widths = [max(map(cell_len, column)) for column in zip(*rows)]
    lines = [table.title]
    for first, *others in rows:
        cells = [set_cell_size(first, widths[0])]
        cells += [" " * (size - cell_len(cell)) + cell for cell, size in zip(others, widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *([table.note] if table.note else [])])


def joined(tables: Sequence[Table]) -> str:
    return "\n\n".join(plain(table) for table in tables)
