"""A conversation: its turns, what of them still fits the context, and how it is kept in a file."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import read_json, write_json
from mlx_hybrid.models.adapted import Pair
from mlx_hybrid.models.generate import Piece, Prompts, Sampling, room_for_answer, stream, system_turn

ROLES = ("system", "user", "assistant")


@dataclasses.dataclass
class Turn:
    """What happened in one turn: `forgotten` counts the first messages, which no longer fit the context, `full` is that
    the answer ended because the context did."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    finish: str = ""
    forgotten: int = 0
    full: bool = False


class Conversation:
    """Turns with one pair of models; each model keeps what it has read in a cache of its own."""

    def __init__(self, pair: Pair, sampling: Sampling | None = None, system: str = "") -> None:
        self.pair, self.sampling = pair, sampling or Sampling()
        self.messages, self.turn, self._prompts = [], Turn(), {}
        self.set_system(system)

    def set_system(self, text: str) -> None:
        """Put a system prompt first, or take it away. Raises ConfigError where the template takes none."""
        self.pair.tokenizer.ask([*system_turn(text), {"role": "user", "content": "?"}])
        self.system = text

    def ask(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
        """Add a user's message and stream the answer, both then part of the conversation. Raises ConfigError for a
        message that does not fit the context alone."""
        messages = [*self.messages, {"role": "user", "content": text}]
        answer = []
        for piece in self.stream(self.pair.model, messages, stopped):
            answer += [piece.text] if piece.text else []
            yield piece
        if answer or self.turn.finish != "interrupted":
            self.messages = [*messages, {"role": "assistant", "content": "".join(answer)}]

    def ask_base(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[Piece]:
        """The base's answer to the last message, after the same conversation; it is not added."""
        last = [i for i, message in enumerate(self.messages) if message["role"] == "user"][-1:]
        if not last:
            raise ConfigError("There is no question yet for the base to answer.")
        yield from self.stream(self.pair.base, self.messages[: last[0] + 1], stopped)

    def stream(self, model: Any, messages: list[dict], stopped: Callable[[], bool]) -> Iterator[Piece]:
        tokens, forgotten = self.fit(messages)
        room = room_for_answer(len(tokens), self.pair.context, self.sampling.max_tokens)
        turn = self.turn = Turn(len(tokens), forgotten=forgotten)
        prompts = self._prompts.setdefault(id(model), Prompts(model))
        sampling = dataclasses.replace(self.sampling, max_tokens=room)
        for piece in stream(model, self.pair.tokenizer, tokens, sampling, prompts=prompts, stopped=stopped):
            turn.answer_tokens, turn.finish = piece.count, piece.finish or ""
            turn.full = piece.finish == "length" and room < self.sampling.max_tokens
            yield piece

    def fit(self, messages: list[dict]) -> tuple[list[int], int]:
        """Tokens of the newest messages that leave a quarter for an answer, and how many of the oldest had to go."""
        reserve = min(self.sampling.max_tokens, self.pair.context // 4)
        for first in [0, *(i for i, m in enumerate(messages) if i and m["role"] == "user")]:
            tokens = self.pair.tokenizer.ask([*system_turn(self.system), *messages[first:]])
            if len(tokens) + reserve <= self.pair.context:
                return tokens, first
        told = f"{len(tokens):,} tokens, and the context of {self.pair.context:,} needs {reserve:,} for the answer"
        raise ConfigError(f"The message has {told}; shorten it, or lower max_tokens.")

    def save(self, path: Path) -> None:
        """Write the conversation; `messages` is a record that `finetune` reads. Raises ConfigError where it cannot."""
        settings, messages = dataclasses.asdict(self.sampling), system_turn(self.system) + self.messages
        tree = {"format": 1, "model": self.pair.name, "settings": settings, "messages": messages}
        try:
            write_json(path, tree)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror}).") from None

    def load(self, path: Path) -> None:
        """Go on with a saved conversation in place of this one. Raises ConfigError for a file that holds none."""
        tree = read_json(path)
        messages = tree.get("messages") if isinstance(tree, dict) else None
        if not isinstance(messages, list):
            raise ConfigError(f'{path}: not a saved conversation; it has no list under "messages".')
        messages = checked_messages(messages, f"{path}: ")
        first = [m["content"] for m in messages[:1] if m["role"] == "system"]
        self.set_system("".join(first))
        self.messages, self.turn = messages[len(first) :], Turn()


def checked_messages(messages: list, where: str) -> list[dict]:
    """The messages, of text alone. Raises ConfigError that names one that is none."""
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ConfigError(f'{where}message {number} has no text under "content".')
        if message.get("role") not in (ROLES if number == 1 else ROLES[1:]):
            told = f"has the role {message.get('role')!r}; system may come first, then user and assistant."
            raise ConfigError(f"{where}message {number} {told}")
    return [{"role": m["role"], "content": m["content"]} for m in messages]
