"""Several records in one row, each blind to the others: the same loss and gradients with less padding.

Packing changes how a batch is laid out, not which records it holds. A stand-in cache gives every layer a
block-diagonal causal mask; positions run on from one record to the next, which rotary embeddings do not notice, since
they are relative.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_hybrid.records.template import Example
from mlx_hybrid.training.batches import LONGEST_ROW, Batch, length_bucket, target_bucket

PADDING = -1  # the segment of pad tokens
WORTH = 0.97  # a longer row must leave at most so much of the tokens
SAME_LOGITS = {
    mx.float32: 1e-4,
    mx.float16: 1e-2,
    mx.bfloat16: 5e-2,
}  # rounding of two orders of the same sums


class PackedCache:
    """What a layer takes for its key–value cache: nothing stored, and the mask (n, 1, t, t) of packed rows."""

    offset = 0

    def __init__(self, segments: mx.array):
        self.segments = segments

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """True where a token (row) may look at another: of the same record, not later, within the window."""
        place = mx.arange(length)
        seen = place[:, None] >= place[None, :]
        if window_size:
            seen = seen & (place[:, None] < place[None, :] + window_size)
        same = self.segments[:, :, None] == self.segments[:, None, :]
        return (seen & same)[:, None]


def packed_caches(model: nn.Module, segments: mx.array) -> list[PackedCache]:
    """One stand-in cache for each layer, for segments (n, t): which record each token belongs to."""
    return [PackedCache(segments)] * len(model.layers)


def fill_rows(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of the records in each row of `room` tokens, by first fit from the longest."""
    rows: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, free in enumerate(left):
            if lengths[index] <= free:
                rows[row].append(index)
                left[row] -= lengths[index]
                break
        else:
            rows.append([index])
            left.append(room - lengths[index])
    return rows


def choose_rows(
    lengths: Sequence[int], bucket: Callable[[int], int] = length_bucket
) -> tuple[list[list[int]], int]:
    """(rows, width): the fewest tokens of any width up to LONGEST_ROW times the longest record; short rows first."""
    best: tuple[list[list[int]], int] | None = None
    for times in range(1, LONGEST_ROW + 1):
        rows = fill_rows(lengths, times * bucket(max(lengths)))
        width = bucket(max(sum(lengths[i] for i in row) for row in rows))
        if best is None or len(rows) * width < WORTH * len(best[0]) * best[1]:
            best = rows, width
    return best


def make_packed_batch(examples: list[Example], bucket: Callable[[int], int] = length_bucket) -> Batch:
    """The batch of `make_batch`, laid out in as few tokens as there is room for."""
    rows, width = choose_rows([len(e.tokens) - 1 for e in examples], bucket)
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    segments = np.full((len(rows), width), PADDING, dtype=np.int32)
    positions, targets, owners = [], [], []
    for row, members in enumerate(rows):
        begin = 0
        for member in members:
            example = examples[member]
            end = begin + len(example.tokens) - 1
            tokens[row, begin:end] = example.tokens[:-1]
            segments[row, begin:end] = member
            learnt = np.flatnonzero(example.trained[1:])
            positions += (row * width + begin + learnt).tolist()
            targets += [example.tokens[index + 1] for index in learnt]
            owners += [member] * len(learnt)
            begin = end
    size = target_bucket(len(targets))
    padding = [0] * (size - len(targets))
    weights = np.concatenate([np.ones(len(targets)), np.zeros(len(padding))]).astype(np.float32)
    return Batch(
        tokens,
        np.array(positions + padding, dtype=np.int32),
        np.array(targets + padding, dtype=np.int32),
        weights,
        tuple(e.where for e in examples),
        tuple(e.language for e in examples),
        np.array(owners, dtype=np.int32),
        segments,
    )


def may_pack(model: nn.Module) -> bool:
    """Whether nothing in the model's make, weights unread, is against packing: a state that runs on from record to
    record (SSM, convolution, linear attention), attention in chunks of a row, a rotary base that follows its length."""
    dynamic = any("Dynamic" in type(module).__name__ for module in model.modules())
    return not dynamic and keeps_keys_alone(model)


def keeps_keys_alone(model: nn.Module) -> bool:
    """Whether each layer remembers nothing but the keys and values of the tokens before, or of a window of them."""
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    caches = make_prompt_cache(model)
    return all(type(c) is KVCache or (type(c) is RotatingKVCache and c.keep == 0) for c in caches)


def packs_exactly(model: nn.Module) -> bool:
    """Whether packed records give the model's own logits, tried on three short ones.

    They do not where positions are absolute, nor where `may_pack` says so, which sees further than the trial reaches.
    """
    if not may_pack(model):
        return False
    records = [mx.arange(2, 11), mx.arange(12, 17), mx.arange(3, 15)]
    segments = mx.concatenate([mx.full(r.shape, i) for i, r in enumerate(records)])[None]
    training = model.training
    model.eval()
    try:
        packed = model(mx.concatenate(records)[None], cache=packed_caches(model, segments))
        alone = mx.concatenate([model(record[None]) for record in records], axis=1)
        gap, size = mx.max(mx.abs(packed - alone)), mx.max(mx.abs(alone))
        mx.eval(gap, size)
    except Exception:  # whatever a model does with a cache that is not of its kind
        return False
    finally:
        model.train(training)
    return gap.item() <= SAME_LOGITS.get(alone.dtype, 0.0) * max(1.0, size.item())
