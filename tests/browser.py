"""A real browser, driven over Chromium's debugging pipe."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
APPLICATION = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
CHROMIUM = next((found for name in (*NAMES, APPLICATION) if (found := shutil.which(name))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=f"no {', '.join(NAMES)} here")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--remote-debugging-pipe",
)  # fmt: skip
OVERFLOWING = """[...document.querySelectorAll('body *')].filter(
    one => one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"""


class Browser:
    """One Chromium, and the tab that is open. https://chromedevtools.github.io/devtools-protocol/"""

    def __init__(self, profile: Path) -> None:
        to_child, self.write = os.pipe()
        self.read, from_child = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_child, from_child)]
        self.program = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=lambda: [os.dup2(end, fd) for end, fd in zip(ends, (3, 4))], pass_fds=(3, 4),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (*ends, to_child, from_child):
            os.close(end)
        self.number, self.buffer, self.session = 0, b"", None

    def open(self, address):
        """A tab with nothing stored; problems and addresses asked for are kept."""
        self.leave()
        self.problems, self.asked = [], []
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(1200, 800)
        self.call("Page.navigate", url=address)

    def leave(self):
        """Close the tab that is open, so that nothing it still waits for is heard of."""
        if self.session:
            self.call("Page.close")
        self.session = None

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
            if reply.get("sessionId") == self.session:
                self.note(reply.get("method"), reply.get("params", {}))

    def note(self, event, facts):
        entry = facts.get("entry", {})
        if event == "Runtime.exceptionThrown" or entry.get("level") in ("warning", "error"):
            self.problems.append(facts)
        if event == "Network.requestWillBeSent":
            self.asked.append(facts["request"]["url"])

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

    def until(self, expression, seconds=90):
        end = time.monotonic() + seconds
        while not (value := self.see(expression)):
            assert time.monotonic() < end, (expression, self.see("document.body.innerText"))
            time.sleep(0.05)
        return value

    def set(self, name, value):
        self.see(f"document.getElementById({name!r}).value = {value!r}")
        self.see(f"document.getElementById({name!r}).dispatchEvent(new Event('change'))")

    def click(self, name):
        """With the mouse, so that only what is to be seen can be clicked."""
        place = self.see(f"""(() => {{ const box = document.getElementById({name!r}).getBoundingClientRect();
            return {{ x: box.x + box.width / 2, y: box.y + box.height / 2, width: box.width }} }})()""")
        assert place["width"] > 0, f"{name} is not shown"
        where = {"x": place["x"], "y": place["y"], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **where)

    def type(self, text):
        self.see("document.getElementById('text').focus()")
        self.call("Input.insertText", text=text)
        for kind in ("rawKeyDown", "keyUp"):
            enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
            self.call("Input.dispatchKeyEvent", type=kind, **enter)

    def size(self, width, height, *, mobile=False):
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **sizes)

    def shoot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        self.program.terminate()
        self.program.wait(10)
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()
