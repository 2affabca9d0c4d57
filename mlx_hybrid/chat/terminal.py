"""What a terminal takes and shows: lines with editing and history, and model output made safe, as it streams."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mlx_hybrid.errors import ConfigError

QUOTES = '"""'
UNSAFE = re.compile(
    r"(?:\x1b\[|\x9b)[ -?]*[@-~]?"  # control sequences (ECMA-48, 5.4)
    # OSC, DCS, SOS, PM, APC (5.6): to BEL or ST; a newline ends one too, or it would swallow the rest of an answer
    r"|(?:\x1b[]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x18\x1a\x1b\x9c\n]*(?:\x1b\\|[\x07\x18\x1a\x9c])?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[^\t\n -~\xa0-\u2027\u202a-\U0010ffff]"  # the rest of C0 and C1, DEL, and separators that end a line
)


class Lines:
    """Messages one by one; a block between triple quotes is one message."""

    def __init__(self, commands: Sequence[str] = ()) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if self.interactive:
            with suppress(ImportError):  # some Pythons have no readline: lines can then be typed, not edited
                use_readline(commands)

    def __iter__(self) -> Iterator[str]:
        while (line := self.read("> ")) is not None:
            yield self.block(line) if line.lstrip().startswith(QUOTES) else line

    def block(self, line: str) -> str:
        """A message of several lines, up to the closing quotes or the end of input."""
        text, more = line.lstrip()[len(QUOTES) :], ""
        while not text.rstrip().endswith(QUOTES) and (more := self.read("… ")) is not None:
            text += "\n" + more
        return text.rstrip().removesuffix(QUOTES).strip("\n")

    def read(self, prompt: str) -> str | None:
        """The next line; None at the end of input. Ctrl-C in a terminal only drops the line."""
        while self.interactive:
            try:
                return input(prompt)
            except EOFError:
                print(file=sys.stderr)
                return None
            except KeyboardInterrupt:
                print("\nCtrl-D or /exit leaves.", file=sys.stderr)
        try:
            line = sys.stdin.readline()
            line.encode()  # bytes that are no UTF-8 come in as lone surrogates where the locale lets them
        except UnicodeError:
            raise ConfigError("The input is not UTF-8 text.") from None
        return line.rstrip("\r\n") if line else None


def use_readline(commands: Sequence[str]) -> None:
    """Line editing, completion of commands, and a history that only this user can read, in `MLX_HYBRID_HISTORY`, empty
    for nowhere, else in the user's state folder."""
    import atexit
    import readline

    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, i: [*(c for c in commands if text and c.startswith(text)), None][i])
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    if not (name := os.environ.get("MLX_HYBRID_HISTORY", f"{state}/mlx-hybrid/chat-history")):
        return
    path = Path(name).expanduser()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)

    @atexit.register
    def write() -> None:
        with suppress(OSError):
            readline.set_history_length(1000)
            readline.write_history_file(path)


class Printable:
    """Takes escape sequences and control characters out of text, piece by piece."""

    def __init__(self) -> None:
        self.held = ""

    def __call__(self, piece: str) -> str:
        text = self.held + piece
        *_, last = [None, *UNSAFE.finditer(text)]
        whole = last.start() if last and last.end() == len(text) else len(text)
        self.held = text[whole:]
        return UNSAFE.sub("", text[:whole])
