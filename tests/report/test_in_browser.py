"""The pages in a real browser: whole on a phone, legible, and without anything from elsewhere."""

import pytest
from browser import needs_chromium

from mlx_hybrid.report.tables import Picture, Table, page

pytestmark = needs_chromium

WIDE = Table(
    "Figures", ("language", *(f"method-{n}" for n in range(12))), [("eng_Latn", *["0.123 ± 0.456"] * 12)]
)
FACTS = Table(
    "Facts", ("", ""), [("versions", ", ".join(f"library-{n} 1.2.3" for n in range(9)))], words=True
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="300"/>'


@pytest.fixture
def opened(browser, tmp_path):
    path = tmp_path / "a page.html"
    path.write_text(page("a run", [("One", [FACTS, Picture(SVG, "A figure."), WIDE])]))
    browser.open(path.as_uri())
    browser.until("document.querySelector('img')?.complete")
    yield browser
    assert browser.problems == []
    assert all(address.startswith((path.as_uri(), "data:")) for address in browser.asked)


def test_on_a_phone_boxes_scroll_and_the_page_does_not(opened):
    opened.size(390, 700, mobile=True)
    assert opened.see("document.documentElement.scrollWidth <= innerWidth")
    boxes = "[...document.querySelectorAll('.wide')].map(box => box.scrollWidth > box.clientWidth)"
    assert opened.see(boxes) == [False, True, True]  # words wrap; a figure and numbers keep their size
    assert opened.see("document.querySelector('img').width") == 640


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(opened, scheme):
    """At least 4.5 : 1. https://www.w3.org/TR/WCAG21/#contrast-minimum"""
    opened.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    colours = opened.see("""[getComputedStyle(document.body).backgroundColor, ...new Set([...document.querySelectorAll(
        'h1,h2,h3,td,th,figcaption')].map(one => getComputedStyle(one).color))]""")
    ground, *inks = (luminance(colour) for colour in colours)
    assert (ground < 0.5) == (scheme == "dark")
    for ink in inks:
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`. https://www.w3.org/TR/WCAG21/#dfn-relative-luminance"""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
