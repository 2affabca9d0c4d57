"""The chat page in a real browser, driven over Chromium's debugging pipe."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_server import serving

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


class Browser:
    """One tab. https://chromedevtools.github.io/devtools-protocol/"""

    def __init__(self, profile: Path) -> None:
        to_child, self.write = os.pipe()
        self.read, from_child = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_child, from_child)]
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-pipe",
        ]
        self.program = subprocess.Popen(
            [CHROMIUM, *flags, f"--user-data-dir={profile}", "--window-size=1200,800", "about:blank"],
            preexec_fn=lambda: [os.dup2(end, fd) for end, fd in zip(ends, (3, 4))], pass_fds=(3, 4),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in ends:
            os.close(end)
        os.close(to_child)
        os.close(from_child)
        self.number, self.buffer, self.session, self.problems = 0, b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self.next()
            if reply.get("id") == self.number:
                assert "error" not in reply, reply
                return reply["result"]
            entry = reply.get("params", {}).get("entry", {})
            if reply.get("method") == "Runtime.exceptionThrown" or entry.get("level") in ("warning", "error"):
                self.problems.append(reply["params"])

    def next(self):
        while b"\0" not in self.buffer:
            data = os.read(self.read, 1 << 16)
            assert data, "the browser went away"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def see(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression, seconds=30):
        end = time.monotonic() + seconds
        while not (value := self.see(expression)):
            assert time.monotonic() < end, (expression, self.see("document.body.innerText"))
            time.sleep(0.05)
        return value

    def type(self, text):
        self.see("document.getElementById('text').focus()")
        self.call("Input.insertText", text=text)
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13
            )

    def shoot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browsing(tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        yield browser
    finally:
        browser.program.terminate()
        browser.program.wait(10)
        os.close(browser.read)
        os.close(browser.write)


ANSWERS = "[...document.querySelectorAll('.assistant:not(.busy)')].map(turn => turn.textContent)"


@pytest.mark.slow
def test_base_and_adapted_answer_side_by_side(pair, tmp_path):
    """With MLX_HYBRID_SCREENSHOT set, the page is also photographed there."""
    with serving(pair) as server, browsing(tmp_path) as browser:
        browser.call("Page.navigate", url=server.url + "/")
        browser.until("document.querySelectorAll('section').length === 2")
        assert "adapter on 14 modules" in browser.see("document.querySelector('h2').innerText")
        browser.type("hello <b>you</b>")
        browser.until(f"{ANSWERS}.length === 2")
        first = browser.see(ANSWERS)
        assert first[0] != first[1]
        assert browser.see("document.querySelector('.user').textContent") == "hello <b>you</b>"
        assert browser.see("document.querySelectorAll('.turn b').length") == 0
        browser.type("مرحبا، كيف الحال؟")
        browser.until(f"{ANSWERS}.length === 4")
        facts = browser.see("[...document.querySelectorAll('.facts')].map(f => f.textContent)")
        assert all(" tokens, " in line for line in facts)
        assert len(facts) == 4
        if named := os.environ.get("MLX_HYBRID_SCREENSHOT"):
            browser.shoot(Path(named))
        browser.see("document.getElementById('both').click()")
        browser.type("alone")
        browser.until(f"{ANSWERS}.length === 5")
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=390, height=500, deviceScaleFactor=1, mobile=True
        )
        whole = "[...document.querySelectorAll('.turn')].every(turn => turn.scrollHeight <= turn.clientHeight + 1)"
        assert browser.see(whole)
        browser.see("document.getElementById('clear').click()")
        browser.until("document.querySelectorAll('.turn').length === 0")
        assert browser.problems == []


@pytest.mark.slow
def test_the_page_asks_for_the_key(pair, tmp_path):
    with serving(pair, api_key="secret-key-123") as server, browsing(tmp_path) as browser:
        browser.call("Page.navigate", url=server.url + "/")
        browser.until("document.body?.innerText.includes('asks for an API key')")
        browser.see("document.getElementById('key').value = 'secret-key-123'")
        browser.see("document.getElementById('key').dispatchEvent(new Event('change'))")
        browser.until("document.querySelectorAll('section').length === 2")
