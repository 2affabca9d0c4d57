"""One HTML page that needs nothing else: no script, no font, nothing fetched. Its looks are in page.html."""

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_hybrid.files import render
from mlx_hybrid.report.tables import Table

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Picture:
    """A figure with its caption, also for those who cannot see it."""

    svg: bytes
    caption: str


@dataclass(frozen=True)
class Code:
    code: str


Part = str | Table | Picture | Code
"""A string is a paragraph."""
Section = tuple[str, Iterable[Part]]
"""A heading, empty for none, and what stands under it."""


def page(title: str, sections: Iterable[Section]) -> str:
    """A whole page; the same parts give the same bytes."""
    values = {"title": title, "sections": sections}
    return render(TEMPLATE, values, base64=lambda content: b64encode(content).decode())
