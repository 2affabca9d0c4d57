"""Lines that a person types, with editing and history, or lines from a pipe."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from mlx_hybrid.errors import ConfigError

QUOTES = '"""'
PROMPT, MORE = "> ", "… "
KEPT_LINES = 1000


class Lines:
    """Messages one by one; a block between triple quotes is one message."""

    def __init__(self, commands: Sequence[str] = ()) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if self.interactive:
            use_readline(commands)

    def __iter__(self) -> Iterator[str]:
        while (line := self.read(PROMPT)) is not None:
            yield self.block(line) if line.lstrip().startswith(QUOTES) else line

    def block(self, line: str) -> str:
        """A message of several lines, up to the closing quotes or the end of input."""
        text = line.lstrip()[len(QUOTES) :]
        while not text.rstrip().endswith(QUOTES):
            more = self.read(MORE)
            if more is None:
                return text.strip("\n")
            text += "\n" + more
        return text.rstrip()[: -len(QUOTES)].strip("\n")

    def read(self, prompt: str) -> str | None:
        """The next line; None at the end of input. Ctrl-C in a terminal only drops the line."""
        if not self.interactive:
            try:
                line = sys.stdin.readline()
                line.encode()  # bytes that are no UTF-8 come in as lone surrogates where the locale lets them
            except UnicodeError:
                raise ConfigError("The input is not UTF-8 text.") from None
            return line.rstrip("\r\n") if line else None
        while True:
            try:
                return input(prompt)
            except EOFError:
                print(file=sys.stderr)
                return None
            except KeyboardInterrupt:
                print("\nCtrl-D or /exit leaves.", file=sys.stderr)
                prompt = PROMPT if prompt == PROMPT else MORE


def use_readline(commands: Sequence[str]) -> None:
    """Line editing, completion of commands, and a history that only this user can read.

    It is kept in `MLX_HYBRID_HISTORY`, empty for nowhere, else in the user's state folder.
    """
    try:
        import readline
    except ImportError:  # some Pythons are built without it: lines can then be typed, not edited
        return
    import atexit

    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, i: [*(c for c in commands if text and c.startswith(text)), None][i])
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = os.environ.get("MLX_HYBRID_HISTORY", str(state / "mlx-hybrid" / "chat-history"))
    if not name:
        return
    with suppress(OSError):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
        readline.set_history_length(KEPT_LINES)
        atexit.register(write_history, readline, path)


def write_history(readline: ModuleType, path: Path) -> None:
    with suppress(OSError):
        readline.write_history_file(path)
        path.chmod(0o600)
