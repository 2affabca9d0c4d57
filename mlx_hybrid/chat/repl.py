"""The chat loop: reads lines, shows answers as they come, obeys slash commands."""

import dataclasses
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from mlx_hybrid.chat.conversation import Conversation, Turn
from mlx_hybrid.chat.lines import Lines
from mlx_hybrid.chat.printable import Printable
from mlx_hybrid.config.reading import parse_scalar
from mlx_hybrid.errors import INTERRUPTED, ConfigError, MlxHybridError, nearest
from mlx_hybrid.models.generate import Piece

HELP = """\
/base            what the base says to the last question; /base on shows it after every answer, /base off stops
/system TEXT     set the system prompt; /system shows it, /system off takes it away
/set NAME VALUE  how it answers: temperature, top_p, …; /set shows all
/save FILE       write the conversation;  /load FILE goes on with one
/clear           forget the conversation
/help, /exit     this text; leave (as Ctrl-D)
A line that begins with // is sent with one slash. \"\"\" begins and ends a message of several lines.
Ctrl-C stops an answer."""
COMMANDS = ("/base", "/system", "/set", "/save", "/load", "/clear", "/help", "/exit")
ALONE = ("/clear", "/help", "/exit")


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside asks an answer to stop, which the function tells; a second one breaks it off."""
    asked = Event()

    def handle(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    old = signal.signal(signal.SIGINT, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, old)


def printed(pieces: Iterator[Piece], *, waiting: bool = False) -> Iterator[Piece]:
    """The pieces, each printed as it comes, made safe for a terminal; `waiting` shows a sign until the first."""
    safe, sign = Printable(), "… reading" if waiting else ""
    print(sign, end="", file=sys.stderr, flush=True)
    for piece in pieces:
        if sign:
            print("\r" + " " * len(sign) + "\r", end="", file=sys.stderr, flush=True)
            sign = ""
        print(safe(piece.text), end="", flush=True)
        yield piece
    print(flush=True)


class Repl:
    """A conversation in a terminal, or line by line through a pipe, where only answers go to stdout."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation, self.lines = conversation, Lines(COMMANDS)
        self.base_always, self.told = False, 0
        self.saved: set[Path] = set()

    def run(self) -> None:
        """Until the end of input or /exit. Through a pipe, the first error ends it."""
        if self.lines.interactive:
            self.note("/help for the commands, Ctrl-D to leave.")
        for line in self.lines:
            if line.rstrip() == "/exit":
                return
            try:
                self.obey(line)
            except KeyboardInterrupt:
                if not self.lines.interactive:
                    raise
                self.note("\nStopped at once; this turn is not kept.")
            except MlxHybridError as error:
                if not self.lines.interactive:
                    raise
                self.note(f"Error: {error}")

    def obey(self, line: str) -> None:
        """A command, or one turn and the base's answer after it where that is on."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            if name not in COMMANDS:
                raise ConfigError(f'No command "{name}"; {nearest(name, COMMANDS)}')
            if rest.strip() and name in ALONE:
                raise ConfigError(f"{name} stands alone; to send a message with a slash, begin it with two.")
            getattr(self, f"do_{name[1:]}")(rest.strip())
        elif line.strip() and self.show(self.conversation.ask, line.removeprefix("/")) and self.base_always:
            self.base_answer()

    def base_answer(self) -> None:
        self.note(f"{self.conversation.pair.base_name}, without the adapter:")
        self.show(self.conversation.ask_base)

    def show(self, ask: Callable[..., Iterator[Piece]], *arguments: str) -> bool:
        """Print an answer as it comes; whether it came to its end."""
        with interruptible() as stopped:
            for _ in printed(ask(*arguments, stopped), waiting=self.lines.interactive):
                pass
        self.tell(self.conversation.turn)
        return self.conversation.turn.finish != "interrupted"

    def tell(self, turn: Turn) -> None:
        """Notices after an answer."""
        if turn.forgotten > self.told:
            self.note(f"The context is full: the first {turn.forgotten} messages are no longer seen.")
        self.told = turn.forgotten
        if turn.finish == "interrupted":
            self.note("Stopped.")
            if not self.lines.interactive:
                raise SystemExit(INTERRUPTED)
        elif turn.finish == "stop" and turn.answer_tokens == 1:
            self.note("The model ended its answer at once.")
        elif turn.full:
            self.note("The answer ended because the context is full.")
        elif turn.finish == "length":
            self.note(f"The answer reached max_tokens ({self.conversation.sampling.max_tokens}).")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def do_base(self, rest: str) -> None:
        if not self.conversation.pair.adapted:
            raise ConfigError(f"{self.conversation.pair.name} has no adapter, so it is its own base.")
        if rest not in ("", "on", "off"):
            raise ConfigError(f"/base takes on, off or nothing, not {rest!r}.")
        if rest:
            self.base_always = rest == "on"
            self.note(f"The base's answer after every answer: {rest}.")
        else:
            self.base_answer()

    def do_system(self, rest: str) -> None:
        if rest:
            self.conversation.set_system("" if rest == "off" else rest)
        self.note(f"System prompt: {self.conversation.system or 'none'}")

    def do_set(self, rest: str) -> None:
        conversation = self.conversation
        name, *value = rest.split(maxsplit=1) or [""]
        if name and not value:
            raise ConfigError(f"/set {name} needs a value, as: /set {name} 1")
        if name:
            value = None if value[0].lower() in ("none", "off") else parse_scalar(value[0])
            conversation.sampling = conversation.sampling.with_values({name: value}, "/set")
        for key, current in dataclasses.asdict(conversation.sampling).items():
            self.note(f"{key:<19} {'a fresh one each time' if current is None else current}")

    def do_save(self, rest: str) -> None:
        path = path_of(rest, "/save")
        if path.exists() and path not in self.saved:
            raise ConfigError(f"{path}: exists already; choose another name.")
        self.conversation.save(path)
        self.saved.add(path)
        self.note(f"Saved {len(self.conversation.messages)} messages in {path}.")

    def do_load(self, rest: str) -> None:
        self.conversation.load(path_of(rest, "/load"))
        self.note(f"Loaded {len(self.conversation.messages)} messages from {rest}.")

    def do_clear(self, rest: str) -> None:
        self.conversation.clear()
        self.told = 0
        self.note("Forgotten.")

    def do_help(self, rest: str) -> None:
        """Each command's meaning stays in its column where the terminal is narrow."""
        width = shutil.get_terminal_size().columns - 1
        for line in HELP.splitlines():
            column = 17 if line.startswith("/") else 0
            told = textwrap.wrap(line, max(width, 40), subsequent_indent=" " * column, drop_whitespace=True)
            self.note("\n".join(told))


def path_of(text: str, command: str) -> Path:
    if not text:
        raise ConfigError(f"{command} needs a file, as: {command} talk.json")
    return Path(text).expanduser()
