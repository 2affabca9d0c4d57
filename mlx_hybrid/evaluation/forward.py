"""Log-likelihoods of chosen tokens, without ever making the logits of the others."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_hybrid.models.head import split_head
from mlx_hybrid.training.packing import keeps_keys_alone

LOGITS_AT_ONCE = 1 << 25  # floats of one (positions, vocabulary) block: 128 MB


class Forward:
    """A model as a body, which gives hidden states, and a head, which turns chosen ones into logits.

    Where the two do not give the model's own logits, to the bit, whole logits are computed and picked from, in
    smaller batches.
    """

    def __init__(self, model):
        self.body, self.head = split_head(model, tolerance=0.0) or (model, _as_is)
        logits = self.head(self.body(mx.array([[0]])))
        self.positions, self.exact = max(1, LOGITS_AT_ONCE // logits.shape[-1]), logits.dtype == mx.float32
        self.most_tokens = self.positions if self.head is _as_is else float("inf")

    def log_likelihoods(
        self, tokens: np.ndarray, rows: np.ndarray, columns: np.ndarray, targets: np.ndarray, cache=None
    ) -> np.ndarray:
        """log p(targets[i] | tokens[rows[i], : columns[i] + 1]), (n,), from tokens (batch, length)."""
        picked = self.body(mx.array(tokens), cache=cache)[mx.array(rows), mx.array(columns)]
        wanted = mx.array(targets)[:, None]
        out = []
        for start in range(0, len(targets), self.positions):
            block = slice(start, start + self.positions)
            logits = self.head(picked[block]).astype(mx.float32)
            chosen = mx.take_along_axis(logits, wanted[block], axis=1)[:, 0]
            out.append(np.array(chosen - mx.logsumexp(logits, axis=1)))
        return np.concatenate(out)


def _as_is(logits: mx.array) -> mx.array:
    return logits


class PrefixCache:
    """One layer's keys and values of right-padded prompts, then of several continuations of each.

    mlx-lm asks a cache for its `offset`, for `update_and_fetch` and for `make_mask`. In the first pass this
    one only remembers; `branch` then repeats the rows, each continuing where its own prompt ends, so that the
    pads in between are neither seen nor counted as positions.
    """

    def __init__(self):
        self.keys = self.values = None
        self.offset: int | mx.array = 0

    def branch(self, rows: np.ndarray, lengths: np.ndarray) -> "PrefixCache":
        """A cache of len(rows) rows: row i continues prompt rows[i], of lengths[i] tokens."""
        other, index, longest = PrefixCache(), mx.array(rows), int(lengths.max())
        other.keys, other.values = self.keys[index, :, :longest], self.values[index, :, :longest]
        other.offset = mx.array(lengths)
        return other

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.keys is None:
            self.keys, self.values = keys, values
            return keys, values
        return mx.concatenate([self.keys, keys], 2), mx.concatenate([self.values, values], 2)

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None):
        """Causal over the prompt and the continuation; (rows, 1, count, keys) once branched."""
        if self.keys is not None:
            return _branch_mask(self.offset, self.keys.shape[2], count, window_size)
        if not return_array and not (window_size and count > window_size):
            return "causal"
        distance = mx.arange(count)[:, None] - mx.arange(count)[None]
        return (distance >= 0) & (distance < (window_size or count))


def _branch_mask(ends: mx.array, prompt: int, count: int, window_size: int | None) -> mx.array:
    """Which of `prompt` + `count` keys each of `count` queries sees, where row i's prompt ends at ends[i]."""
    ends, places, steps = ends[:, None], mx.arange(prompt)[None], mx.arange(count)[None]
    real = mx.concatenate([places < ends, mx.ones((len(ends), count), mx.bool_)], 1)
    keys = mx.concatenate([mx.broadcast_to(places, (len(ends), prompt)), ends + steps], 1)
    distance = (ends + steps)[:, :, None] - keys[:, None]
    mask = (distance >= 0) & real[:, None]
    if window_size:
        mask = mask & (distance < window_size)
    return mask[:, None]


def prefix_caches(model) -> list[PrefixCache] | None:
    """One PrefixCache a layer, or None for a model whose layers keep more than keys and values."""
    return [PrefixCache() for _ in model.layers] if keeps_keys_alone(model) else None


def pad_right(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """(n, longest) token ids, zeros after each sequence: a causal model never looks at them."""
    padded = np.zeros((len(sequences), max(len(s) for s in sequences)), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded


def batches_by_length(lengths: Sequence[int], batch_tokens: float) -> list[np.ndarray]:
    """Indices in batches of like length, each at most `batch_tokens` with its padding, or one sequence."""
    order = np.argsort(np.asarray(lengths), kind="stable")[::-1]
    batches, start = [], 0
    while start < len(order):
        size = max(1, int(batch_tokens // max(1, lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches
