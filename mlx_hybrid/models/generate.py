"""Answers: one as a stream of text, or many side by side, with what was read before taken up where it fits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from typing import Any, Literal

import mlx.core as mx
import mlx_lm
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.sampling import Sampling, make_processors, make_sampler

Finish = Literal["stop", "length", "interrupted"]
ROWS = 64  # answers of a file that are made side by side: on a CPU a row costs half of what it does in 16
PREFILL = 512  # tokens of prompts that are read between two tokens of the answers that are under way
KEPT_PROMPTS = 8
WORTH_SHARING = 8  # tokens that prompts begin with, from which on they are read once


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer as it comes; the last one says why it ended."""

    text: str
    token: int
    count: int
    finish: Finish | None = None


def prompt_tokens(tokenizer: Any, text: str, *, system: str | None = None, raw: bool = False) -> list[int]:
    """One prompt as tokens: a user's message in the template, or with `raw` text to be continued."""
    turns = [*system_turn(system), {"role": "user", "content": text}]
    return tokenizer.continued(text) if raw else tokenizer.ask(turns)


def system_turn(text: str | None) -> list[dict]:
    return [{"role": "system", "content": text}] if text else []


def room_for_answer(prompt_tokens: int, context: int, asked: int, *, exact: bool = False) -> int:
    """Tokens the answer may have. Raises ConfigError where the prompt leaves none, or fewer than an `exact` wish."""
    room = context - prompt_tokens
    if room < 1 or (exact and room < asked):
        told = f"has {prompt_tokens:,} tokens, so the context of {context:,} leaves {max(0, room)} for the answer"
        raise ConfigError(f"The prompt {told}; {'ask for no more' if room > 0 else 'shorten the prompt'}.")
    return min(asked, room)


class Prompts:
    """What a model has read, found again by the longest common beginning."""

    def __init__(self, model: Any) -> None:
        self.model, self.store = model, LRUPromptCache(max_size=KEPT_PROMPTS)

    def take(self, tokens: list[int]) -> tuple[list[Any], list[int]]:
        """A copy of the best cache, and the tokens still to read, of which there is at least one."""
        layers, rest = self.store.fetch_nearest_cache("", tokens[:-1])
        return (make_prompt_cache(self.model), tokens) if layers is None else (layers, [*rest, tokens[-1]])

    def keep(self, layers: list[Any], tokens: list[int]) -> None:
        mx.eval([layer.state for layer in layers])  # one that waits to be copied holds its whole batch
        self.store.insert_cache("", tokens, layers)


class Stopped(Exception):
    """Asked to stop while the prompt was being read."""


def stream(
    model: Any,
    tokenizer: Any,
    tokens: list[int],
    sampling: Sampling,
    *,
    prompts: Prompts | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Piece]:
    """Answer a prompt piece by piece; `stopped` is asked between tokens and between stretches of the prompt."""
    prompts = prompts or Prompts(model)
    (layers, rest), read = prompts.take(tokens), list(tokens)

    def progress(done: int, total: int) -> None:
        if done < total and stopped():
            raise Stopped

    how = {"sampler": make_sampler(sampling), "max_tokens": sampling.max_tokens, "prompt_cache": layers}
    how["logits_processors"] = make_processors(sampling, tokens[: -len(rest)])
    try:
        for piece in mlx_lm.stream_generate(model, tokenizer, rest, prompt_progress_callback=progress, **how):
            read.append(piece.token)
            finish = piece.finish_reason or ("interrupted" if stopped() else None)
            yield Piece(whole_letters(piece.text, finish), piece.token, piece.generation_tokens, finish)
            if finish == "interrupted":
                break
        prompts.keep(layers, read)
    except Stopped:
        yield Piece("", -1, 0, "interrupted")


def whole_letters(text: str, finish: Finish | None) -> str:
    return text.rstrip("\ufffd") if finish == "length" else text  # bytes of a cut character


class Batch:
    """Answers of one model side by side, through mlx-lm's BatchGenerator: they join and leave between two tokens."""

    def __init__(self, model: Any, tokenizer: Any, rows: int) -> None:
        self.rows: dict[int, tuple[Sampling, Any, count]] = {}  # settings, detokenizer, tokens so far
        self.model, self.tokenizer, self.prompts, self.chosen = model, tokenizer, Prompts(model), None
        ends = [[token] for token in tokenizer.eos_token_ids]
        sizes = {"completion_batch_size": rows, "prefill_step_size": PREFILL}
        self.generator = BatchGenerator(self.logits, stop_tokens=ends, sampler=self.choose, **sizes)

    def logits(self, tokens: Any, cache: Any) -> Any:
        """The model's; where all rows ask for the likeliest token, it is chosen here: BatchGenerator else takes the
        logarithm of the sum over the vocabulary for every row, a quarter of a step of a large vocabulary on a CPU."""
        logits = self.model(tokens, cache=cache)
        if any(how.temperature != 0 or how.repetition_penalty != 1 for how, *_ in self.rows.values()):
            return logits
        self.chosen = mx.argmax(logits[:, -1], axis=-1)
        return mx.zeros((*tokens.shape, 1))

    def choose(self, logprobs: Any) -> Any:
        return self.chosen if logprobs.shape[-1] == 1 else logprobs.argmax(axis=-1)

    def add(self, tokens: list[int], sampling: Sampling) -> int:
        """The number that the pieces of the answer to a prompt come under."""
        layers, rest = self.prompts.take(tokens)
        chosen = None if sampling.temperature == 0 else make_sampler(sampling)
        how = ([layers], [tokens[: -len(rest)]], [chosen], [make_processors(sampling, [])])
        (number,) = self.generator.insert([rest], [sampling.max_tokens], *how)
        self.rows[number] = sampling, self.tokenizer.detokenizer, count(1)
        return number

    def step(self) -> Iterator[tuple[int, Piece]]:
        """The next token of every answer whose prompt is read, after some more of the prompts that are not."""
        for told in self.generator.next()[1]:
            if told.uid not in self.rows:  # dropped meanwhile
                continue
            (_, text, counted), finish = self.rows[told.uid], told.finish_reason
            if finish != "stop":
                text.add_token(told.token)
            if finish:
                text.finalize()
                del self.rows[told.uid]
                self.prompts.keep(told.prompt_cache, told.all_tokens)
            yield told.uid, Piece(whole_letters(text.last_segment, finish), told.token, next(counted), finish)

    def drop(self, number: int) -> None:
        if self.rows.pop(number, None):
            kept = self.generator.remove([number], return_prompt_caches=True).get(number)
            if kept and kept[1]:
                self.prompts.keep(*kept)

    def close(self) -> None:
        self.generator.close()


class Turns:
    """As a Batch, of a model whose caches cannot be joined: its answers get a token each in turn."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.rows, self.numbers, self.prompts = {}, count(), Prompts(model)
        self.answer = partial(stream, model, tokenizer, prompts=self.prompts)

    def add(self, tokens: list[int], sampling: Sampling) -> int:
        self.rows[number := next(self.numbers)] = self.answer(tokens, sampling)
        return number

    def step(self) -> Iterator[tuple[int, Piece]]:
        for number, pieces in list(self.rows.items()):
            piece = next(pieces)
            if piece.finish:
                self.drop(number)
            yield number, piece

    def drop(self, number: int) -> None:
        self.rows.pop(number, None)

    def close(self) -> None:
        self.rows.clear()


def batch_of(model: Any, tokenizer: Any, *, rows: int) -> Batch | Turns:
    joined = all(hasattr(layer, "merge") for layer in make_prompt_cache(model))
    return Batch(model, tokenizer, rows) if joined else Turns(model, tokenizer)


def answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    *,
    rows: int = ROWS,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, list[Piece]]]:
    """(number of the prompt, its answer's pieces), each as it ends; what all prompts begin with is read once."""
    batch = batch_of(model, tokenizer, rows=rows)
    pairs = zip(min(prompts), max(prompts)) if len(prompts) > 1 else ()  # what these share, all do
    shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if len(shared) >= WORTH_SHARING:
        model(mx.array([shared]), cache=(layers := make_prompt_cache(model)))
        batch.prompts.keep(layers, shared)
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike in length: less padding
    under_way: dict[int, tuple[int, list[Piece]]] = {}
    try:
        while not stopped():
            while waiting and len(under_way) < rows:
                number = waiting.pop()
                under_way[batch.add(prompts[number], samplings[number])] = number, []
            if not under_way:
                return
            for row, piece in batch.step():
                under_way[row][1].append(piece)
                if piece.finish:
                    yield under_way.pop(row)
    finally:
        batch.close()
