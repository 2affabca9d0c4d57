"""The chat page in a real browser."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import OVERFLOWING, needs_chromium
from test_server import local, serving
from tiny_model import write_base, write_run

from mlx_hybrid.models.adapted import open_pair

pytestmark = [pytest.mark.slow, needs_chromium]

TURNS = "[...document.querySelectorAll('.{}')].map(turn => turn.dataset.said ?? turn.textContent)"
ANSWERS, FACTS = TURNS.format("assistant:not(.busy)"), TURNS.format("facts")
SHOWN = "[...document.querySelectorAll('section')].filter(one => one.checkVisibility()).length"
CLIPPED = """[...document.querySelectorAll('.turn')].filter(
    turn => turn.scrollHeight > turn.clientHeight + 1).map(turn => turn.textContent)"""


@contextmanager
def page(browser, pair, **policy):
    """The chat page of a server for `pair`; at its end nothing has gone wrong, and nobody else was asked."""
    with serving(pair, **policy) as server:
        browser.open(server.url + "/")
        yield server
        browser.see("null")
        assert browser.problems == []
        assert browser.asked
        assert all(address.startswith((server.url + "/", "data:")) for address in browser.asked)


def endless(folder, context):
    """A pair whose answers end only with the context."""
    base = write_base(folder / "base", context=context, endless=True)
    return open_pair(str(write_run(folder / "run", base).path))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Minutes of answer."""
    return endless(tmp_path_factory.mktemp("long"), 4096)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Soon full: 128 tokens."""
    return endless(tmp_path_factory.mktemp("short"), 128)


def test_base_and_adapted_answer_side_by_side(browser, pair):
    """With MLX_HYBRID_SCREENSHOT set, the page is also photographed there."""
    with page(browser, pair):
        browser.until(f"{SHOWN} === 2")
        assert "adapter on 14 modules" in browser.see("document.querySelector('h2').innerText")
        browser.set("max_tokens", "20")
        browser.type("hello <b>you</b>")
        browser.until(f"{ANSWERS}.length === 2")
        tokens = pair.tokenizer.ask([{"role": "user", "content": "hello <b>you</b>"}])
        expected = [local(model, pair, tokens, max_tokens=20) for model in (pair.model, pair.base)]
        assert browser.see(ANSWERS) == expected
        assert expected[0] != expected[1]
        assert browser.see("document.querySelector('.user').textContent") == "hello <b>you</b>"
        assert browser.see("document.querySelectorAll('.turn b').length") == 0

        browser.type("مرحبا، كيف الحال؟")
        browser.until(f"{ANSWERS}.length === 4")
        facts = browser.see(FACTS)
        assert len(facts) == 4
        assert all(" tokens, " in line for line in facts)
        assert browser.see(OVERFLOWING) == []
        if named := os.environ.get("MLX_HYBRID_SCREENSHOT"):
            browser.shoot(Path(named))

        browser.click("again")
        browser.until(f"{ANSWERS}.length === 4 && document.querySelectorAll('.facts').length === 4")
        assert browser.see("document.querySelectorAll('.user').length") == 4
        browser.click("edit")
        assert browser.see("document.getElementById('text').value") == "مرحبا، كيف الحال؟"
        assert browser.see(ANSWERS) == expected
        browser.set("text", "")
        browser.type("again")
        browser.until(f"{ANSWERS}.length === 4")

        browser.click("both")
        assert browser.see(SHOWN) == 1
        browser.type("alone")
        browser.until(f"{ANSWERS}.length === 5")
        browser.click("both")
        assert browser.see(SHOWN) == 2
        browser.click("clear")
        browser.until("document.querySelectorAll('.turn').length === 0")


def test_an_answer_comes_piece_by_piece_and_can_be_stopped(browser, long):
    with page(browser, long) as server:
        browser.until(f"{SHOWN} === 2")
        browser.see("""window.lengths = new Set(); new MutationObserver(() => window.lengths.add(
            document.querySelector('.assistant')?.textContent.length)).observe(
            document.body, { childList: true, subtree: true, characterData: true })""")
        browser.type("hello")
        browser.until(f"{TURNS.format('busy')}.filter(text => text.length > 4).length === 2")
        browser.click("stop")
        browser.until("document.querySelectorAll('.busy').length === 0")
        assert browser.see("window.lengths.size") > 3
        answers = browser.see(ANSWERS)
        assert len(answers) == 2
        assert all(0 < len(answer) < 2000 for answer in answers)
        assert browser.see(FACTS) == ["stopped", "stopped"]

        browser.set("max_tokens", "5")  # and what was said before it was stopped is part of the conversation
        browser.type("more")
        browser.until(f"{FACTS}.filter(line => line.startsWith('5 tokens')).length === 2")
        talk = [
            {"role": "user", "content": "hello"}, {"role": "assistant", "content": answers[0]},
            {"role": "user", "content": "more"},
        ]  # fmt: skip
        read = len(long.tokenizer.ask(talk))
        assert any(f" {read} + 5 tokens" in line for line in server.lines)


def test_a_full_context_leaves_out_the_oldest(browser, short):
    """As `chat` does, a quarter of the context being kept free for the answer."""
    with page(browser, short):
        browser.until(f"{SHOWN} === 2")
        browser.set("max_tokens", "30")
        for count in range(1, 5):
            browser.type("x" * 20)
            browser.until(f"{FACTS}.length === {2 * count}")
        assert browser.problems == []  # nothing was asked for that did not fit
        last = browser.see(FACTS)[3]
        assert last.startswith("30 tokens, ")
        assert "of the oldest questions left out" in last
        browser.click("clear")
        for count, letters in ((1, "x" * 20), (2, "y" * 75)):  # the second alone has room, the server says
            browser.until(f"{FACTS}.length === {2 * count - 2}")
            browser.type(letters)
        browser.until(f"{FACTS}.length === 4")
        assert "1 of the oldest questions left out" in browser.see(FACTS)[1]
        assert all("status of 400" in problem["entry"]["text"] for problem in browser.problems)
        browser.problems.clear()


def test_it_fits_a_phone(browser, long):
    with page(browser, long):
        browser.size(390, 500, mobile=True)
        browser.until(f"{SHOWN} === 2")
        browser.set("max_tokens", "50")
        for count in (1, 2):
            browser.type("y" * 40)
            browser.until(f"{ANSWERS}.length === {2 * count}")
        browser.see("document.getElementById('more').open = true")
        assert browser.see(OVERFLOWING) == []
        assert browser.see(CLIPPED) == []
        assert browser.see("document.documentElement.scrollHeight <= innerHeight")


def test_the_page_asks_for_the_key(browser, pair):
    with serving(pair, api_key="secret-key-123") as server:
        browser.open(server.url + "/")
        browser.until("document.body?.innerText.includes('asks for an API key')")
        browser.set("key", "secret-key-123")
        browser.until(f"{SHOWN} === 2")
