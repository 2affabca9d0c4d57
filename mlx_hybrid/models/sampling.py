"""How tokens are chosen: the settings, and the functions of mlx-lm's hooks made from them."""

import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import mlx.core as mx

from mlx_hybrid.config.convert import Bounded, bounded, build
from mlx_hybrid.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling(Bounded):
    """How tokens are chosen; penalty, temperature, top-k, top-p and min-p act in this order."""

    max_tokens: int = bounded(512, 1)  # the room left in the context may be less
    temperature: float = bounded(0.0, 0, 5)  # 0: the likeliest token; 1: the model's own distribution
    top_p: float = bounded(1.0, 1e-6, 1)  # among the likeliest tokens that have this probability together
    top_k: int = bounded(0, 0)  # among so many of the likeliest tokens; 0: all
    min_p: float = bounded(0.0, 0, 1)  # among tokens with this share of the likeliest one's probability
    repetition_penalty: float = bounded(1.0, 0.01, 10)  # on the logits of all tokens that were read or said
    seed: int | None = None  # same seed, same answer; none draws a fresh one for each answer

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be between 0 and 2^63 − 1, not {self.seed}.")

    def with_seed(self) -> "Sampling":
        """A copy with a seed drawn where none was given, so that the answer can be had again."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(32))

    def with_values(self, values: dict[str, Any], where: str) -> "Sampling":
        """A copy with other values. Raises ConfigError for an unknown name, another kind, and what is out of bounds."""
        return build(Sampling, asdict(self) | values, where, "")


def make_sampler(sampling: Sampling) -> Callable[[Any], Any]:
    """Log-probabilities (1, V) to a token; draws have a key of their own, so that answers do not change each other."""
    if sampling.temperature == 0:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)
    state = [mx.random.key(sampling.with_seed().seed)]

    def sample(logprobs: Any) -> Any:
        state[0], key = mx.random.split(state[0])
        logits = logprobs.astype(mx.float32) / sampling.temperature
        return mx.random.categorical(cut(logits, sampling), key=key)

    return sample


def cut(logits: Any, sampling: Sampling) -> Any:
    """−∞ for every token that is not among the `top_k` likeliest, nor in the smallest set of those whose probability
    reaches `top_p` (Holtzman et al. 2020, arXiv 1904.09751), or is below `min_p` of the likeliest one's."""
    if not 0 < sampling.top_k < logits.shape[-1] and sampling.top_p == 1 and sampling.min_p == 0:
        return logits
    ordered = mx.sort(logits, axis=-1)[..., ::-1][..., : sampling.top_k or None]
    probabilities = mx.softmax(ordered, axis=-1)
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    kept = (before < sampling.top_p) & (probabilities >= sampling.min_p * probabilities[..., :1])
    least = mx.min(mx.where(kept, ordered, float("inf")), axis=-1, keepdims=True)
    return mx.where(logits < least, -float("inf"), logits)


def make_processors(sampling: Sampling, read: list[int]) -> list[Callable[[Any, Any], Any]]:
    """What mlx-lm changes logits with: the penalty on every token once, those `read` from a cache with them."""
    from mlx_lm.sample_utils import make_repetition_penalty

    if sampling.repetition_penalty == 1:
        return []
    before, penalise = mx.array(read, mx.int32), make_repetition_penalty(sampling.repetition_penalty, 1 << 30)
    return [lambda tokens, logits: penalise(mx.concatenate([before, tokens.astype(mx.int32)]), logits)]
