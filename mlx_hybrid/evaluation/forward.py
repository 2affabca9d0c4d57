"""Log-likelihoods of chosen tokens, without ever keeping the logits of the others."""

import copy
import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.frozen import on_cpu
from mlx_hybrid.models.head import keeps_keys_alone, split_head

LOGITS_AT_ONCE = 1 << 25  # floats of one block of whole logits: 128 MB
# floats of one block where a head comes in parts: 16 MB, which the cache of a CPU holds
ENTRIES_AT_ONCE = 1 << 22
# hidden states of one head product: enough for a product's full speed, and 4 MB at 1024 wide
ROWS_AT_ONCE = 1024
SUMMED_AT_ONCE = 1 << 18  # floats of one sum of exponentials: 1 MB


class Forward:
    """A model as a body, which gives hidden states, and a head, which turns chosen ones into logits.

    Where the two do not give the model's own logits, to the bit, whole logits are computed and picked from, in
    smaller batches.
    """

    def __init__(self, model: nn.Module):
        self.body, self.head = split_head(model, tolerance=0.0) or (model, _as_is)
        hidden = self.body(mx.array([[0]]))[0]
        logits = self.head(hidden)
        self.vocabulary, self.exact = logits.shape[-1], logits.dtype == mx.float32
        self.positions = max(1, LOGITS_AT_ONCE // self.vocabulary)
        self.most_tokens = self.positions if self.head is _as_is else math.inf
        self.least_tokens = least_tokens(model)
        apart = self.head is not _as_is and self.head.comes_apart(hidden, logits)
        self.part = self.head.part if apart else None
        self.prefix_layers = len(model.layers) if keeps_keys_alone(model) else 0

    def narrow(self, entries: int) -> "Forward":
        """The same with the first entries alone, where the head comes in parts: for trials."""
        other = copy.copy(self)
        if self.part is not None:
            other.vocabulary = min(entries, self.vocabulary)
        return other

    def log_likelihoods(self, hidden: mx.array, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """log p(targets[i]) after the hidden state rows[i] of `hidden` (m, d); (n,) in float64, one product a row."""
        out = np.empty(len(targets))
        size = self.positions if self.part is None else ROWS_AT_ONCE
        for start in range(0, hidden.shape[0], size):
            block = hidden[start : start + size]
            own = np.flatnonzero((rows >= start) & (rows < start + size))
            out[own] = self._block(block, rows[own] - start, targets[own])
        return out

    def _block(self, hidden: mx.array, rows: np.ndarray, targets: np.ndarray) -> np.ndarray:
        total, chosen = np.full(hidden.shape[0], -np.inf), np.full(len(targets), np.nan)
        width = self.vocabulary if self.part is None else max(1, ENTRIES_AT_ONCE // hidden.shape[0])
        for first in range(0, self.vocabulary, width):
            last = min(first + width, self.vocabulary)
            head = self.head if self.part is None else self.part(first, last)
            logits = head(hidden).astype(mx.float32)
            own = np.flatnonzero((targets >= first) & (targets < last))
            picked = logits[mx.array(rows[own]), mx.array(targets[own] - first)] if len(own) else []
            with np.errstate(invalid="ignore"):  # the caller names what is not finite
                total = np.logaddexp(total, log_sum_exp(logits))
            chosen[own] = np.array(picked)
        return chosen - total[rows]


class Sums:
    """Sums of log-likelihoods, whose hidden states wait until there are enough for one product with the head."""

    def __init__(self, forward: Forward, count: int):
        self.forward, self.values, self.waiting, self.held = forward, np.zeros(count), [], 0

    def add(self, hidden: mx.array, rows: Sequence, targets: Sequence, slots: Sequence) -> None:
        """Add log p(targets[i]) after the state rows[i] of `hidden` (m, d) to the sum slots[i]."""
        mx.eval(hidden)
        moved = np.array(rows, np.int64) + self.held
        self.waiting.append((hidden, moved, np.array(targets, np.int64), np.array(slots, np.int64)))
        self.held += hidden.shape[0]
        if self.held >= ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> np.ndarray:
        """The sums so far, nothing waiting any more."""
        if self.waiting:
            hidden, rows, targets, slots = zip(*self.waiting)
            terms = self.forward.log_likelihoods(
                mx.concatenate(hidden), np.concatenate(rows), np.concatenate(targets)
            )
            np.add.at(self.values, np.concatenate(slots), terms)
        self.waiting, self.held = [], 0
        return self.values


def log_sum_exp(logits: mx.array) -> np.ndarray:
    """Over the last axis of (n, V), float64.

    On the CPU by NumPy: MLX's exponential is not vectorised there (12 ns a term, against 1), and its float32 sum of
    262,144 terms is off by 3e-4.
    """
    if not on_cpu():
        return np.array(mx.logsumexp(logits, axis=-1), np.float64)
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
        return tops + np.log(sums)


def least_tokens(model: nn.Module) -> int:
    """How many tokens a batch needs for the products' full speed; a packed weight is unpacked once a batch, in the time
    that 75 tokens take."""
    packed = any(name.endswith(".scales") for name, _ in tree_flatten(model.parameters()))
    return (768 if packed else 512) if on_cpu() else 2048


def _as_is(logits: mx.array) -> mx.array:
    return logits


def pad_right(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """(n, longest) token ids, zeros after each sequence: a causal model never looks at them."""
    padded = np.zeros((len(sequences), max(len(s) for s in sequences)), np.int32)
    for row, sequence in enumerate(sequences):
        padded[row, : len(sequence)] = sequence
    return padded


def batches_by_length(
    lengths: Sequence[int], batch_tokens: float, least: float = math.inf
) -> list[np.ndarray]:
    """Indices in batches of like length, each at most `batch_tokens` with its padding, or one sequence.

    A batch of `least` tokens ends where the next sequence would be over a tenth padding.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")[::-1]
    batches, start = [], 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        end = start + max(1, int(batch_tokens // longest))
        enough = start + math.ceil(least / longest) if least < math.inf else end
        while enough < min(end, len(order)) and lengths[order[enough]] >= 0.9 * longest:
            enough += 1
        end = min(end, enough)
        batches.append(order[start:end])
        start = end
    return batches
