"""Tables as text for a terminal, and with figures on one HTML page that fetches nothing; its looks are in page.html."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from mlx_hybrid.evaluation.results import DIFFERENCE, Results, Row
from mlx_hybrid.files import render

TEMPLATE = Path(__file__).with_name("page.html")
MISSING = "–"
DIGITS = {"chrf": 1, "balance": 1}  # of measures from 0 to 100; others have three
SIGNED = ("drop", "balance")
SHOWN = 300  # letters of a prompt or an answer

Cell = Callable[[Row | None], str]
Line = tuple[str, str, str, str]  # label, metric, language, variant


@dataclass(frozen=True)
class Table:
    """Rows of text under a title, with a `note`. The first column names the row; others are figures, unless `words`."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    words: bool = False


class Picture(NamedTuple):
    """A figure with its caption, also for those who cannot see it."""

    svg: bytes
    caption: str


Part = str | Table | Picture
"""A string is a paragraph."""
Section = tuple[str, Iterable[Part]]
"""A heading, empty for none, and what stands under it."""


def interval(row: Row | None) -> str:
    """A value with its bounds, as `0.712 [0.690, 0.731]`."""
    if row is None:
        return MISSING
    sign = "+" if row.model == DIFFERENCE or row.metric in SIGNED else ""
    bounds = [] if row.low is None else [row.low, row.high]
    digits = DIGITS.get(row.metric.partition("_")[0], 3)
    value, *bounds = (f"{one:{sign}.{digits}f}" for one in (row.value, *bounds))
    return f"{value} [{', '.join(bounds)}]" if bounds else value


def pivot(
    title: str, first: str, lines: Iterable[Line], results: Results, cell: Cell = interval, note: str = ""
) -> list[Table]:
    """The table of these lines against the models measured; lines without a figure, and a table without lines, go."""
    found = [(label, [results.get(m, model, l, v) for model in results.columns]) for label, m, l, v in lines]
    rows = [(label, *map(cell, own)) for label, own in found if any(own)]
    return [Table(title, (first, *results.columns), rows, note)] if rows else []


def one_line(text: str) -> str:
    """A text as one line that is safe to print."""
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable()) or "(nothing)"
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} …"


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


def page(title: str, sections: Iterable[Section]) -> str:
    """A whole page; the same parts give the same bytes."""
    values = {"title": title, "sections": sections}
    return render(TEMPLATE, values, base64=lambda content: b64encode(content).decode())
