"""The report of a governed folder: what was taken, why, in whose words, and how to keep it."""

import html
import re

import pytest
from browser import OVERFLOWING, needs_chromium
from governance.conftest import SENTENCES, write_jsonl

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.folder.reports import differing, shortened, visible
from mlx_hybrid.governance.govern import govern_files
from mlx_hybrid.governance.rules import RULES

MAIL = "jane.roe@example.org"
PROSE = (
    "The old ferry crosses the wide bay twice a day. Its captain knows every rock, every current and most of the seals "
    "by name, and he tells stories of storms to anyone who stays on deck. In winter few people travel, so the crew "
    "repairs nets, paints the rails, and waits for spring. Children wave from the pier whenever the horn sounds."
)
ROWS = [
    *({"text": text, "language": code} for code, text in SENTENCES.items()),
    {"text": SENTENCES["eng_Latn"].replace("nine", "ten"), "language": "en"},
    {"text": SENTENCES["zho_Hans"].replace("九", "八"), "language": "zh"},
    *({"text": f"{SENTENCES['eng_Latn']} {n}, {MAIL} <b>!</b>", "language": "sw"} for n in range(5)),
    {"text": "Home | About us | Contact | Log in | Subscribe to our newsletter\n" + PROSE, "language": "en"},
    {"text": "It says\u0000 nothing\u200b at all in this place, or does it?", "language": "en"},
    '{"text": "<script>alert(1)</script>',
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    raw = write_jsonl(place / "raw.jsonl", ROWS)
    govern_files([raw], place / "out", GovernanceConfig(max_reject_share=1.0))
    return place / "out"


@pytest.fixture(scope="module")
def sections(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = re.findall(
        r"<section><h3>(\w+) <span[^>]*>([\d,]+) records?</span></h3>(.*?)</section>", page, re.DOTALL
    )
    return {name: (int(count), body) for name, count, body in found}


def texts(body):
    found = re.findall(r'dir="auto">(.*?)</p>', body, re.DOTALL)
    return [html.unescape(re.sub(r"</?mark>", "", text)) for text in found]


def test_each_reason_has_its_sentence_three_examples_and_the_way_to_keep_them(sections):
    assert {name: count for name, (count, _) in sections.items() if name != "pii_email"} == {
        "lang_mismatch": 5, "near_dup": 2, "menu": 1, "control_chars": 1, "bad_json": 1,
    }  # fmt: skip
    for name in ("lang_mismatch", "near_dup", "menu", "control_chars"):
        assert html.escape(RULES[name].catches) in sections[name][1]
        assert f"mlx-hybrid rescue DIR --reason {name}" in sections[name][1]
        assert f"--rule {name}=off" in sections[name][1]
    assert "mend the lines" in sections["bad_json"][1]
    assert len(texts(sections["lang_mismatch"][1])) == 3
    assert texts(sections["near_dup"][1])[:2] == [ROWS[len(SENTENCES)]["text"], SENTENCES["eng_Latn"]]


def test_texts_are_shortened_escaped_and_redacted(folder, sections):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert MAIL not in page
    assert "[EMAIL] &lt;b&gt;" in sections["lang_mismatch"][1]
    assert "<script" not in page
    assert "says\\u0000 nothing\\u200b at" in sections["control_chars"][1]
    (menu,) = texts(sections["menu"][1])
    assert menu.startswith("Home | About")
    assert " … " in menu
    assert len(menu) < 400


def test_pairs_stand_side_by_side_with_what_differs(sections):
    marked = re.findall(r"<mark>(.*?)</mark>", sections["near_dup"][1])
    assert marked == ["ten", "nine", "八", "九"]
    left, right = differing("a b c", "a x c d")
    assert "".join(text for text, _ in left) == "a b c"
    assert [text for text, differs in right if differs] == ["x", " d"]
    assert shortened("x" * 9, 9) == "x" * 9
    assert visible("a\u202eb\n") == "a\\u202eb\n"


@needs_chromium
@pytest.mark.parametrize("width", [400, 1200])
def test_it_fits_a_window(browser, folder, width):
    browser.open(f"file://{folder / 'report.html'}")
    browser.until("document.querySelectorAll('.sample').length > 3")
    browser.size(width, 900)
    assert browser.see(OVERFLOWING) == []
    pair = "[...document.querySelectorAll('.sample')].find(one => one.children.length == 2)"
    tops = browser.see(f"[...{pair}.children].map(one => Math.round(one.getBoundingClientRect().top))")
    assert (tops[0] == tops[1]) == (width == 1200)
