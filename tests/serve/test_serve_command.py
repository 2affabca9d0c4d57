"""`serve` as a command: what it refuses, what it prints, how it ends."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner

from mlx_hybrid.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "open to others, so it needs a key"),
        (["--cors", "*"], "not one origin"),
        (["--cors", "https://a.example/page"], "not one origin"),
        (["--api-key-file", "nothing.txt"], "cannot be read"),
        (["--context", "100000"], "16 to 256"),
        (["--max-tokens", "0"], "at least 1"),
        (["--port", "99999"], "65535"),
        (["--api-key-file", "key"], "at least 8"),
    ],
)
def test_what_cannot_be_honoured_is_refused(run, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("short\n")
    done = CliRunner().invoke(main, ["serve", str(run.path), *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert "short" not in done.stderr


@pytest.mark.slow
def test_it_says_where_it_is_and_ends_when_told(run, default_install):
    program = subprocess.Popen(
        [sys.executable, "-m", "mlx_hybrid", "serve", str(run.path), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    try:
        url = program.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
        with urllib.request.urlopen(url + "/models") as reply:
            assert reply.status == 200
        program.send_signal(signal.SIGTERM)
        _, talk = program.communicate(timeout=20)
    finally:
        program.kill()
    assert program.returncode == 0
    assert "adapter on 14 modules" in talk
    assert "Models: trial, tiny." in talk
    assert "Traceback" not in talk
