"""One answer: prompt to tokens, tokens to a stream of text, with a prompt cache that is reused where it fits."""

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from mlx_hybrid.config.bounds import Bounded, bounded
from mlx_hybrid.config.convert import build
from mlx_hybrid.errors import ConfigError

Finish = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Sampling(Bounded):
    """How tokens are chosen."""

    max_tokens: int = bounded(512, 1)
    """Longest answer, in tokens; the room left in the context may be less."""
    temperature: float = bounded(0.0, 0, 5)
    """0 takes the likeliest token each time; 1 samples from the model's own distribution."""
    top_p: float = bounded(1.0, 1e-6, 1)
    """Sample among the likeliest tokens that together have this probability."""
    seed: int | None = None
    """Same seed, same answer; none draws a fresh one for each answer."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of bounds."""
        super().__post_init__()
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be between 0 and 2^63 − 1, not {self.seed}.")

    def with_seed(self) -> "Sampling":
        """A copy with a seed drawn where none was given, so that the answer can be had again."""
        return self if self.seed is not None else dataclasses.replace(self, seed=secrets.randbits(32))

    def with_values(self, values: dict[str, Any], where: str) -> "Sampling":
        """A copy with other values. Raises ConfigError for an unknown name, another kind, and what is out of bounds."""
        return build(Sampling, dataclasses.asdict(self) | values, where, "")


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer as it comes; the last one says why it ended."""

    text: str
    token: int
    count: int
    finish: Finish | None = None


def prompt_tokens(tokenizer: Any, text: str, *, system: str | None = None, raw: bool = False) -> list[int]:
    """One prompt as tokens: a user's message in the template, or with `raw` text to be continued."""
    if raw:
        return tokenizer.continued(text)
    start = [{"role": "system", "content": system}] if system else []
    return tokenizer.ask([*start, {"role": "user", "content": text}])


def room_for_answer(prompt_tokens: int, context: int, asked: int) -> int:
    """Tokens the answer may have. Raises ConfigError where the prompt leaves none."""
    if prompt_tokens >= context:
        told = f"has {prompt_tokens:,} tokens, but the context is {context:,}; shorten the prompt."
        raise ConfigError(f"The prompt {told}")
    return min(asked, context - prompt_tokens)


class PromptCache:
    """Keys and values of tokens a model has read, so that a conversation is not read again at every turn."""

    def __init__(self, model: Any) -> None:
        self.model, self.layers, self.tokens = model, None, []

    def take(self, tokens: list[int]) -> tuple[list[Any], list[int]]:
        """The cache cut back to the longest common prefix, and the tokens still to read.

        The cache is out until `keep`: an answer that breaks off in the middle leaves none behind.
        """
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.tokens, tokens))
        shared = min(len(list(same)), len(tokens) - 1)
        layers, surplus = self.layers, len(self.tokens) - shared
        self.layers, self.tokens = None, []
        if shared and trim_prompt_cache(layers, surplus) == surplus:  # 0 for sliding windows, recurrent state
            return layers, tokens[shared:]
        return make_prompt_cache(self.model), tokens

    def keep(self, layers: list[Any], tokens: list[int]) -> None:
        self.layers, self.tokens = layers, tokens


class Stopped(Exception):
    """Asked to stop while the prompt was being read."""


def stream(
    model: Any,
    tokenizer: Any,
    tokens: list[int],
    sampling: Sampling,
    *,
    cache: PromptCache | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Piece]:
    """Answer a prompt piece by piece; the last piece carries the reason for the end.

    `stopped` is asked between tokens and between stretches of the prompt.
    """
    from mlx_lm import stream_generate

    cache = cache or PromptCache(model)
    layers, rest = cache.take(tokens)
    read, count, piece = list(tokens), 0, None

    def progress(done: int, total: int) -> None:
        if done < total and stopped():
            raise Stopped

    try:
        sampler, most = make_sampler(sampling), sampling.max_tokens
        how = {"prompt_cache": layers, "prompt_progress_callback": progress}
        for piece in stream_generate(model, tokenizer, rest, max_tokens=most, sampler=sampler, **how):
            if piece.generation_tokens > count:
                read.append(piece.token)
            count = piece.generation_tokens
            interrupted = piece.finish_reason is None and stopped()
            text = piece.text
            if piece.finish_reason == "length":
                text = text.rstrip("\ufffd")  # the first bytes of a character that was cut
            yield Piece(text, piece.token, count, "interrupted" if interrupted else piece.finish_reason)
            if interrupted:
                break
    except Stopped:
        yield Piece("", -1, 0, "interrupted")
        return
    cache.keep(layers, read)


def make_sampler(sampling: Sampling) -> Callable[[Any], Any]:
    """Log-probabilities (1, vocabulary) to a token: temperature first, then top-p.

    Random draws have a key of their own, so answers that are made at the same time do not change each other.
    """
    import mlx.core as mx

    if sampling.temperature == 0:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)
    state = [mx.random.key(sampling.with_seed().seed)]

    def sample(logprobs: Any) -> Any:
        logits = logprobs.astype(mx.float32) / sampling.temperature
        if sampling.top_p < 1:
            logits = keep_likeliest(logits, sampling.top_p)
        state[0], key = mx.random.split(state[0])
        return mx.random.categorical(logits, key=key)

    return sample


def keep_likeliest(logits: Any, top_p: float) -> Any:
    """−∞ for every token outside the smallest set whose probability reaches `top_p` (Holtzman et al. 2020,
    arXiv 1904.09751)."""
    import mlx.core as mx

    ordered = mx.sort(logits, axis=-1)[..., ::-1]
    probabilities = mx.softmax(ordered, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    last = (before < top_p).sum(axis=-1, keepdims=True) - 1
    return mx.where(logits < mx.take_along_axis(ordered, last, axis=-1), -float("inf"), logits)
