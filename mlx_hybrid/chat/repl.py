"""The chat loop: reads lines, shows answers as they come, obeys slash commands."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import SIGINT

import click

from mlx_hybrid.chat.conversation import Conversation, Turn
from mlx_hybrid.chat.terminal import Lines, Printable
from mlx_hybrid.config.reading import parse_scalar
from mlx_hybrid.errors import INTERRUPTED, ConfigError, MlxHybridError, check_known
from mlx_hybrid.models.generate import Piece
from mlx_hybrid.training.stopping import StopRequest

HELP = Path(__file__).with_name("help.txt")
COMMANDS = ("/base", "/system", "/set", "/save", "/load", "/clear", "/help", "/exit")
note = partial(click.echo, err=True)
interruptible = partial(StopRequest, lambda text: None, on=(SIGINT,))
"""Ctrl-C inside asks an answer to stop, in silence; a second one breaks it off."""


def printed(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The pieces, each printed as it comes, made safe for a terminal."""
    safe = Printable()
    for piece in pieces:
        print(safe(piece.text), end="", flush=True)
        yield piece
    print(flush=True)


class Repl:
    """A conversation in a terminal, or line by line through a pipe, where only answers go to stdout."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation, self.lines = conversation, Lines(COMMANDS)
        self.base_always, self.told, self.saved = False, 0, set()

    def run(self) -> None:
        """Until the end of input or /exit. Through a pipe, the first error ends it."""
        if self.lines.interactive:
            note("/help for the commands, Ctrl-D to leave.")
        for line in self.lines:
            if line.rstrip() == "/exit":
                return
            try:
                self.obey(line)
            except (KeyboardInterrupt, MlxHybridError) as error:
                if not self.lines.interactive:
                    raise
                stopped = isinstance(error, KeyboardInterrupt)
                note("\nStopped at once; this turn is not kept." if stopped else f"Error: {error}")

    def obey(self, line: str) -> None:
        """A command, or one turn and the base's answer after it where that is on."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            check_known(name, COMMANDS, "No command")
            if rest.strip() and name in ("/clear", "/help", "/exit"):
                raise ConfigError(f"{name} stands alone; to send a message with a slash, begin it with two.")
            if not rest.strip() and name in ("/save", "/load"):
                raise ConfigError(f"{name} needs a file, as: {name} talk.json")
            getattr(self, f"do_{name[1:]}")(rest.strip())
        elif line.strip() and self.show(self.conversation.ask, line.removeprefix("/")) and self.base_always:
            self.do_base("")

    def show(self, ask: Callable[..., Iterator[Piece]], *arguments: str) -> bool:
        """Print an answer as it comes; whether it came to its end."""
        with interruptible() as stopped:
            for _ in printed(ask(*arguments, stopped)):
                pass
        self.tell(self.conversation.turn)
        return self.conversation.turn.finish != "interrupted"

    def tell(self, turn: Turn) -> None:
        """Notices after an answer."""
        if turn.forgotten > self.told:
            note(f"The context is full: the first {turn.forgotten} messages are no longer seen.")
        self.told, most = turn.forgotten, self.conversation.sampling.max_tokens
        if turn.finish == "interrupted":
            note("Stopped.")
            if not self.lines.interactive:
                raise SystemExit(INTERRUPTED)
        elif turn.finish == "stop" and turn.answer_tokens == 1:
            note("The model ended its answer at once.")
        elif turn.finish == "length":
            full = "ended because the context is full" if turn.full else f"reached max_tokens ({most})"
            note(f"The answer {full}.")

    def do_base(self, rest: str) -> None:
        if not self.conversation.pair.adapted:
            raise ConfigError(f"{self.conversation.pair.name} has no adapter, so it is its own base.")
        if rest not in ("", "on", "off"):
            raise ConfigError(f"/base takes on, off or nothing, not {rest!r}.")
        if rest:
            self.base_always = rest == "on"
            note(f"The base's answer after every answer: {rest}.")
        else:
            note(f"{self.conversation.pair.base_name}, without the adapter:")
            self.show(self.conversation.ask_base)

    def do_system(self, rest: str) -> None:
        if rest:
            self.conversation.set_system("" if rest == "off" else rest)
        note(f"System prompt: {self.conversation.system or 'none'}")

    def do_set(self, rest: str) -> None:
        name, *value = rest.split(maxsplit=1) or [""]
        if name and not value:
            raise ConfigError(f"/set {name} needs a value, as: /set {name} 1")
        if name:
            value = None if value[0].lower() in ("none", "off") else parse_scalar(value[0], "/set")
            self.conversation.sampling = self.conversation.sampling.with_values({name: value}, "/set")
        for key, current in dataclasses.asdict(self.conversation.sampling).items():
            note(f"{key:<19} {'a fresh one each time' if current is None else current}")

    def do_save(self, rest: str) -> None:
        path = Path(rest).expanduser()
        if path.exists() and path not in self.saved:
            raise ConfigError(f"{path}: exists already; choose another name.")
        self.conversation.save(path)
        self.saved.add(path)
        note(f"Saved {len(self.conversation.messages)} messages in {path}.")

    def do_load(self, rest: str) -> None:
        self.conversation.load(Path(rest).expanduser())
        note(f"Loaded {len(self.conversation.messages)} messages from {rest}.")

    def do_clear(self, rest: str) -> None:
        self.conversation.messages, self.told = [], 0
        note("Forgotten.")

    def do_help(self, rest: str) -> None:
        note(HELP.read_text(encoding="utf-8"))
