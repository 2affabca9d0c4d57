"""What a model computes: hidden states, of what was begun before too, and log-likelihoods of chosen tokens."""

import math
from collections.abc import Sequence
from itertools import zip_longest

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_hybrid.adapters.frozen import on_cpu
from mlx_hybrid.models.head import keeps_keys_alone, split_head

LOGITS_AT_ONCE = 1 << 25  # floats of one block of whole logits: 128 MB
ENTRIES_AT_ONCE = 1 << 22  # of one block where a head comes in parts: 16 MB, which the cache of a CPU holds
ROWS_AT_ONCE = 1024  # hidden states of one head product, for its full speed: 4 MB at 1024 wide
SUMMED_AT_ONCE = 1 << 18  # floats of one sum of exponentials: 1 MB


class Forward:
    """A model as a body, which gives hidden states, and a head, which turns chosen ones into logits; where those are
    not the model's own, to the bit, whole logits are computed and picked from, in smaller batches."""

    def __init__(self, model: nn.Module):
        split = split_head(model, tolerance=0.0)
        self.body, self.head = split or (model, lambda logits: logits)
        hidden = self.body(mx.array([[0]]))[0]
        logits = self.head(hidden)
        self.vocabulary, self.exact = logits.shape[-1], logits.dtype == mx.float32
        self.positions = max(1, LOGITS_AT_ONCE // self.vocabulary)
        self.most_tokens = math.inf if split else self.positions
        self.least_tokens = 512 if on_cpu() else 2048  # for the products' full speed
        self.part = self.head.part if split and self.head.comes_apart(hidden, logits) else None
        self.prefix_layers = len(model.layers) if keeps_keys_alone(model) else 0

    def caches(
        self, lengths: np.ndarray, before: Sequence["PrefixCache"], rows: np.ndarray, *, kept: bool
    ) -> list["PrefixCache"]:
        """Of a pass over rows of so many tokens, row i continuing row rows[i] of what `before` holds, if anything."""
        places = Places(lengths, before[0].places if before else None, rows)
        return [PrefixCache(places, old, kept) for old in before or [None] * self.prefix_layers]

    def log_likelihoods(self, hidden: mx.array, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """log p(targets[i]) after row rows[i] of `hidden` (m, d), and 1 where another token is likelier: (n, 2)."""
        out = np.empty((len(targets), 2))
        size = self.positions if self.part is None else ROWS_AT_ONCE
        for start in range(0, hidden.shape[0], size):
            own = np.flatnonzero((rows >= start) & (rows < start + size))
            out[own] = self._block(hidden[start : start + size], rows[own] - start, targets[own])
        return out

    def _block(self, hidden: mx.array, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        chosen, top = np.full(len(targets), np.nan), np.full(hidden.shape[0], -np.inf)
        total, width = top, max(1, ENTRIES_AT_ONCE // len(top)) if self.part else self.vocabulary
        for first in range(0, self.vocabulary, width):
            last = min(first + width, self.vocabulary)
            logits = (self.part(first, last) if self.part else self.head)(hidden).astype(mx.float32)
            own = np.flatnonzero((targets >= first) & (targets < last))
            if len(own):
                chosen[own] = np.array(logits[mx.array(rows[own]), mx.array(targets[own] - first)])
            tops, sums = tops_and_sums(logits)
            with np.errstate(invalid="ignore"):  # the caller names what is not finite
                top, total = np.maximum(top, tops), np.logaddexp(total, sums)
        return np.column_stack([chosen - total[rows], chosen < top[rows]])


def tops_and_sums(logits: mx.array) -> tuple[np.ndarray, np.ndarray]:
    """The greatest and log Σ exp over the last axis of (n, V), float64; on the CPU by NumPy, since MLX's exponential
    takes 12 ns a term there, against 1, and its float32 sum of 262,144 terms is off by 3e-4."""
    if not on_cpu():
        both = mx.max(logits, axis=-1), mx.logsumexp(logits, axis=-1)
        return tuple(np.array(own, np.float64) for own in both)
    values = np.asarray(logits)
    tops = values.max(axis=1)
    sums = np.empty(len(values))
    size = max(1, SUMMED_AT_ONCE // values.shape[1])
    room = np.empty((size, values.shape[1]), np.float32)
    with np.errstate(invalid="ignore"):
        for start in range(0, len(values), size):
            block = values[start : start + size]
            part = np.subtract(block, tops[start : start + size, None], out=room[: len(block)])
            sums[start : start + size] = np.exp(part, out=part).sum(axis=1)
        return tops, tops + np.log(sums)


class PrefixCache:
    """One layer's cache, as mlx-lm asks for it, of rows of tokens or of rows that continue those of the cache `before`.

    For a sliding window nothing is thrown away, but masked. `kept` keeps keys and values to be continued.
    """

    def __init__(self, places: "Places", before: "PrefixCache | None", kept: bool):
        self.places, self.before, self.kept, self.keys, self.values = places, before, kept, None, None
        self.offset = mx.array(places.starts) if before else 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.before:
            index = mx.array(self.places.rows)
            keys = mx.concatenate([self.before.keys[index], keys], 2)
            values = mx.concatenate([self.before.values[index], values], 2)
        if self.kept:
            self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None):
        """Causal over what is continued and `count` tokens after it; (rows, 1, count, keys) where there is a past."""
        if not self.before and not return_array and not (window_size and count > window_size):
            return "causal"
        asking = self.places.starts[:, None] + np.arange(count)
        keys = np.concatenate([self.places.seen, asking], 1)[:, None]
        distance = asking[:, :, None] - keys
        seen = (distance >= 0) & (keys >= 0)
        return mx.array((seen & (distance < window_size) if window_size else seen)[:, None])


class Places:
    """Where the tokens of one pass stand, row i continuing row rows[i] of the pass `before`, where there is one; tokens
    after `lengths` (rows,) are padding, neither seen nor counted by what comes after."""

    def __init__(self, lengths: np.ndarray, before: "Places | None", rows: np.ndarray | None):
        self.rows = rows
        self.seen = np.zeros((1, 0), np.int64) if before is None else before.whole[rows]
        """(rows, keys) positions of earlier keys, −1 for those not seen; `whole` has those of this pass too."""
        self.starts = np.zeros(1, np.int64) if before is None else before.ends[rows]
        steps = np.arange(lengths.max())
        own = np.where(steps < lengths[:, None], self.starts[:, None] + steps, -1)
        self.whole = own if before is None else np.concatenate([self.seen, own], 1)
        self.ends = self.starts + lengths


def pad_right(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """(n, longest) token ids, zeros after each sequence: a causal model never looks at them."""
    return np.array([*zip_longest(*sequences, fillvalue=0)], np.int32).T


def batches_by_length(
    lengths: Sequence[int], batch_tokens: float, least: float = math.inf, held: int = 0
) -> list[np.ndarray]:
    """Indices in batches of like length, each at most `batch_tokens` with padding and the `held` tokens that each row
    continues; one of `least` tokens, or of least / 32 rows, ends where the next would be over a tenth padding."""
    order = np.argsort(np.asarray(lengths), kind="stable")[::-1]
    batches, start = [], 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        end = min(len(order), start + max(1, int(batch_tokens // (held + longest))))
        enough = min(end, start + math.ceil(min(least / longest, least / 32, end)))
        while enough < end and lengths[order[enough]] >= 0.9 * longest:
            enough += 1
        batches.append(order[start:enough])
        start = enough
    return batches
