"""A table of text once, shown as Markdown or plain text; as HTML by page.html."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; `note` says how to read them. The first column names the row; the others are
    figures, unless they are `words`."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    words: bool = False


def markdown(table: Table) -> str:
    """A heading, the table and its note."""
    lines = [f"### {table.title}", ""]
    if table.note:
        lines += [table.note, ""]
    lines.append("| " + " | ".join(escape_cell(c) for c in table.columns) + " |")
    lines.append("|" + "|".join("---" if n == 0 else "--:" for n in range(len(table.columns))) + "|")
    lines += ["| " + " | ".join(escape_cell(cell) for cell in row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def escape_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def plain(table: Table) -> str:
    """Columns of even width for a terminal or a pipe."""
    columns = [list(column) for column in zip(table.columns, *table.rows)]
    widths = [max(width(cell) for cell in column) for column in columns]
    lines = [table.title]
    for row in (table.columns, *table.rows):
        cells = [pad(cell, size, right=number > 0) for number, (cell, size) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *([table.note] if table.note else [])])


def width(text: str) -> int:
    """Columns of a terminal that the text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def pad(text: str, size: int, *, right: bool) -> str:
    space = " " * (size - width(text))
    return space + text if right else text + space


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """`value` with its digits, `–` where there is none."""
    if value is None:
        return "–"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def interval(row: dict | None, digits: int = 3, *, signed: bool = False) -> str:
    """A value with its bounds, as `0.712 [0.690, 0.731]`."""
    if not row:
        return "–"
    value, low, high = (number(row[key], digits, signed=signed) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def joined(tables: Sequence[Table]) -> str:
    return "\n\n".join(plain(table) for table in tables)
