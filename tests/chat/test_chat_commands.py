"""`chat` and `generate` as a person meets them: piped, and in a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from tiny_model import write_base

import mlx_hybrid
from mlx_hybrid.cli import main
from mlx_hybrid.jobs.generate import read_prompts

SHORT = ["--max-tokens", "12"]


def call(*arguments, text=None):
    return CliRunner().invoke(main, [str(a) for a in arguments], input=text)


def test_generate_streams_the_answer_and_says_what_is_on(run, pair):
    done = call("generate", run.path, "hello", *SHORT)
    assert done.exit_code == 0, done.output
    assert re.search(r"trial: adapter on 14 modules, logits change by up to \d", done.stderr)
    assert "Base: tiny. Context: 256 tokens." in done.stderr
    assert len(done.stdout.rstrip("\n")) >= 5
    assert call("generate", run.path, text="hello\n").stdout.startswith(done.stdout[:5])
    assert call("generate", run.path, "-", *SHORT, text="hello").stdout == done.stdout


def test_generate_json_and_base(run):
    adapted = json.loads(call("generate", run.path, "hello", *SHORT, "--json").stdout)
    base = json.loads(call("generate", run.path, "hello", *SHORT, "--json", "--base").stdout)
    assert (adapted["model"], adapted["adapted_modules"]) == ("trial", 14)
    assert (base["model"], base["adapted_modules"]) == ("tiny", 0)
    assert adapted["text"] != base["text"]
    assert adapted["prompt_tokens"] == 9


def test_a_drawn_seed_is_told_and_repeats_the_answer(run):
    arguments = ["generate", run.path, "hello", *SHORT, "--temperature", "1", "--json"]
    first = json.loads(call(*arguments).stdout)
    again = json.loads(call(*arguments, "--seed", first["settings"]["seed"]).stdout)
    assert again == first


def test_a_file_of_prompts_is_answered_side_by_side(run, tmp_path):
    turn = {"role": "user", "content": "hello"}
    rows = [
        {"prompt": "hello"},
        {"messages": [turn, {"role": "assistant", "content": "old"}]},
        {"prompt": "bye"},
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "asked.txt").write_text("hello\n\nhello\nbye\n")
    alone = [
        json.loads(call("generate", run.path, text, *SHORT, "--json").stdout) for text in ("hello", "bye")
    ]
    expected = [(a["text"], a["finish_reason"], a["answer_tokens"]) for a in (alone[0], *alone)]
    for name in ("asked.jsonl", "asked.txt"):
        done = call("generate", run.path, tmp_path / name, *SHORT, "-o", tmp_path / f"{name}.out")
        assert done.exit_code == 0, done.output
        assert "3 of 3 answers" in done.stderr
        lines = [json.loads(line) for line in (tmp_path / f"{name}.out").read_text().splitlines()]
        assert [(a["text"], a["finish_reason"], a["answer_tokens"]) for a in lines] == expected
        assert lines[1]["messages"] == [turn]
    assert mlx_hybrid.generate(run.path, ["hello", "bye"], max_tokens=12) == [a["text"] for a in alone]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("{}\n", [], "asked.jsonl:1: is no JSON object with a text as `prompt` or a list as `messages`"),
        ('{"prompt": 5}\n', [], "a text as `prompt`"),
        ('{"messages": "hello"}\n', [], "a list as `messages`"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', [], "holds no question"),
        ('{"prompt": "a"}\n{"messages": []}\n', [], "asked.jsonl:2: "),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', ["--raw"], "--raw continues a text"),
        ("\n", [], "holds no prompt"),
        ('{"prompt": "' + "x" * 300 + '"}\n', [], "asked.jsonl:1: The prompt has"),
        ('{"prompt": "a"}\n', ["-o", "asked.jsonl"], "exists already"),
        ('{"messages": [7]}\n', [], "asked.jsonl:1: "),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(run, tmp_path, monkeypatch, text, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked.jsonl").write_text(text)
    done = call("generate", run.path, "asked.jsonl", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '\ufeff{"prompt": "one\u2028two"}\n'),
        ("a.ndjson", '{"prompt": "one\u2028two"}\n'),
        ("a.JSON", '[{"prompt": "one\u2028two"}]'),
        ("a.csv", "prompt\none\u2028two\n"),
        ("a.txt", "\ufeffone\u2028two\n"),
    ],
)
def test_prompts_are_read_from_files_of_every_kind(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    ((_, messages),) = read_prompts(tmp_path / name, "Be brief.", False)
    assert [(m["role"], m["content"]) for m in messages] == [
        ("system", "Be brief."),
        ("user", "one\u2028two"),
    ]


def test_a_system_prompt_goes_before_messages_that_have_none(tmp_path):
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "a"}]
    rows = [{"messages": own}, {"messages": own[1:]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [messages for _, messages in read_prompts(tmp_path / "a.jsonl", "Be brief.", False)]
    assert asked == [own, [{"role": "system", "content": "Be brief."}, own[1]]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.jsonl"], "absent.jsonl: no such file"),
        (["--max-tokens", "500", "hello"], "leaves 247 for the answer"),
        (["--max-tokens", "0", "hello"], "at least 1"),
        (["--temperature", "9", "hello"], "temperature must be at most 5"),
        (["--raw", "--system", "x", "hello"], "--system has no place"),
        (["x" * 300], "shorten the prompt"),
        ([" "], "prompt is empty"),
    ],
)
def test_what_cannot_be_honoured_is_refused(run, arguments, said):
    done = call("generate", run.path, *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_base_needs_an_adapter_and_chat_a_template(base_folder, tmp_path):
    done = call("generate", base_folder, "hello", "--base")
    assert done.exit_code == 2
    assert "no adapter, so --base changes nothing" in done.stderr
    bare = write_base(tmp_path / "bare", template=None)
    done = call("chat", bare, text="hello\n")
    assert done.exit_code == 2
    assert "`mlx-hybrid generate --raw`" in done.stderr
    assert "--template plain" in done.stderr
    assert call("generate", bare, "hello", "--raw", *SHORT).exit_code == 0


def test_piped_chat_is_one_turn_a_line(run, tmp_path):
    saved = tmp_path / "talk.json"
    text = f'hello\n"""\ntwo\nlines\n"""\n/set max_tokens 5\n//slash\n\n/base\n/save {saved}\n/exit\nnever\n'
    done = call("chat", run.path, *SHORT, text=text)
    assert done.exit_code == 0, done.output
    messages = json.loads(saved.read_text())["messages"]
    assert [m["content"] for m in messages[::2]] == ["hello", "two\nlines", "/slash"]
    assert done.stdout.startswith(messages[1]["content"] + "\n" + messages[3]["content"] + "\n")
    assert "tiny, without the adapter:" in done.stderr
    assert "reached max_tokens (5)" in done.stderr
    again = call("chat", run.path, "--load", saved, text=f"/save {tmp_path / 'again.json'}\n")
    assert again.exit_code == 0
    assert json.loads((tmp_path / "again.json").read_text())["messages"] == messages


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/bse", 'did you mean "/base"'),
        ("/set heat 3", 'unknown key "heat"'),
        ("/set top_p [0.9", "is not a YAML value"),
        ("/set temperature", "needs a value"),
        ("/base perhaps", "on, off or nothing"),
        ("/base", "no question yet"),
        ("/load nothing.json", "cannot be read"),
        ("/save", "needs a file"),
        ("/clear all", "stands alone"),
    ],
)
def test_a_wrong_command_ends_a_pipe_with_one_sentence(run, line, said):
    done = call("chat", run.path, text=line + "\nhello\n")
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_file_that_exists_is_not_overwritten(run, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    done = call("chat", run.path, text=f"/save {tmp_path / 'mine.txt'}\n")
    assert done.exit_code == 2
    assert (tmp_path / "mine.txt").read_text() == "precious"


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments, **environment):
        self.fd, child = pty.openpty()
        self.program = subprocess.Popen(
            [sys.executable, "-m", "mlx_hybrid", *arguments],
            stdin=child, stdout=child, stderr=child, start_new_session=True,
            env={**os.environ, "TERM": "xterm", **environment},
        )  # fmt: skip
        os.close(child)
        self.text, self.seen = "", 0

    def until(self, wanted, nudge=lambda: None, seconds=60):
        """Read until `wanted` comes after what was seen before; everything up to its end. Silence calls `nudge`."""
        end = time.monotonic() + seconds
        while (found := self.text.find(wanted, self.seen)) < 0:
            assert time.monotonic() < end, self.text
            if select.select([self.fd], [], [], 0.3)[0]:
                self.text += os.read(self.fd, 4096).decode(errors="replace")
            else:
                nudge()
        start, self.seen = self.seen, found + len(wanted)
        return self.text[start : self.seen]

    def type(self, text):
        os.write(self.fd, text.encode())

    def close(self):
        self.program.kill()
        self.program.wait()
        os.close(self.fd)


def test_in_a_terminal_control_c_stops_the_answer_and_control_d_leaves(tmp_path, default_install):
    base, history = write_base(tmp_path / "endless", context=1 << 16, endless=True), tmp_path / "history"
    terminal = Terminal("chat", str(base), "--max-tokens", "60000", MLX_HYBRID_HISTORY=str(history))
    try:
        terminal.until("/help for the commands")
        terminal.until("> ")
        terminal.type("hello\r")
        terminal.until("hello\r\n")
        time.sleep(0.5)
        os.kill(terminal.program.pid, signal.SIGINT)
        assert len(terminal.until("Stopped.")) > 20
        # readline prints the prompt a moment before it listens
        terminal.until("Ctrl-D or /exit leaves.", lambda: os.kill(terminal.program.pid, signal.SIGINT))
        terminal.until("> ")
        terminal.type("/cle\t\r")
        terminal.until("Forgotten.")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.program.wait(10) == 0
        assert "hello" in history.read_text()
        assert history.stat().st_mode & 0o077 == 0
    finally:
        terminal.close()
