"""Beginnings that several token sequences share, run once: which ones, and the caches that continue them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_hybrid.evaluation.forward import Forward, batches_by_length, pad_right

LEAST_SHARED = 16  # tokens that are worth a cache
DEEPEST = 16  # branchings between the first token and the end of a shared beginning


class PrefixCache:
    """One layer's keys and values of rows of tokens, and of rows that continue those.

    mlx-lm asks a cache for its `offset`, for `update_and_fetch` and for `make_mask`. `branch` gives caches of which
    each row continues one of these, from where it really ends, so that the pads after that are neither seen nor counted
    as positions. Nothing is thrown away for a sliding window: the mask keeps what is out of it from being seen.
    """

    def __init__(self, past: "Past | None" = None, kept: bool = True):
        self.past, self.kept, self.keys, self.values = past, kept, None, None
        self.offset = 0 if past is None else mx.array(past.ends)
        self.before: PrefixCache | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.past is not None:
            index = mx.array(self.past.rows)
            keys = mx.concatenate([self.before.keys[index], keys], 2)
            values = mx.concatenate([self.before.values[index], values], 2)
        if self.kept:
            self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None):
        """Causal over what is continued and `count` tokens after it; (rows, 1, count, keys) where there is a past."""
        if self.past is not None:
            return self.past.mask(count, window_size)
        if not return_array and not (window_size and count > window_size):
            return "causal"
        distance = mx.arange(count)[:, None] - mx.arange(count)[None]
        return (distance >= 0) & (distance < (window_size or count))


class Past:
    """Which rows of earlier keys each row continues: their positions `places` (rows, keys), −1 for those it does not
    see, and the position `ends` (rows,) of its next token."""

    def __init__(self, rows: np.ndarray, places: np.ndarray, ends: np.ndarray):
        self.rows, self.places, self.ends = rows, places, ends

    def mask(self, count: int, window_size: int | None) -> mx.array:
        asking = self.ends[:, None] + np.arange(count)
        keys = np.concatenate([self.places, asking], 1)
        distance = asking[:, :, None] - keys[:, None]
        seen = (distance >= 0) & (keys >= 0)[:, None]
        if window_size:
            seen &= distance < window_size
        return mx.array(seen[:, None])


def branch(
    caches: Sequence[PrefixCache], rows: np.ndarray, lengths: np.ndarray, *, kept: bool = False
) -> list[PrefixCache]:
    """Caches of len(rows) rows: row i continues row rows[i] after its first lengths[i] tokens, those before the last
    pass not counted. `kept` for caches that will be continued themselves."""
    past, fed = caches[0].past, caches[0].keys.shape[2]
    before = np.zeros((len(rows), 0), np.int64) if past is None else past.places[rows]
    ends = np.zeros(len(rows), np.int64) if past is None else past.ends[rows]
    steps = np.arange(fed - before.shape[1])
    own = np.where(steps < lengths[:, None], ends[:, None] + steps, -1)
    joined = Past(rows, np.concatenate([before, own], 1), ends + lengths)
    others = [PrefixCache(joined, kept) for _ in caches]
    for other, cache in zip(others, caches):
        other.before = cache
    return others


def shared_beginnings(
    sequences: Sequence[Sequence[int]], most: Sequence[int], least: int = LEAST_SHARED
) -> list[tuple[int, list[int]]]:
    """(length, members) of groups that share their first `length` tokens, so that together they save the most.

    Sequence i shares at most most[i] tokens; those that share none come last, under length 0.
    """
    groups = _best_groups(sequences, most, list(range(len(sequences))), least, DEEPEST)[1]
    grouped = {i for _, members in groups for i in members}
    alone = [i for i in range(len(sequences)) if i not in grouped]
    return groups + ([(0, alone)] if alone else [])


def _best_groups(
    sequences: Sequence, most: Sequence, members: list[int], least: int, depth: int
) -> tuple[int, list[tuple[int, list[int]]]]:
    """(tokens saved, groups): all members as one group, or each branch after what they share for itself."""
    if len(members) < 2:
        return 0, []
    length = common_length([sequences[i][: most[i]] for i in members])
    together = ((len(members) - 1) * length, [(length, members)]) if length >= least else (0, [])
    branches: dict[int, list[int]] = {}
    for i in members:
        if most[i] > length:
            branches.setdefault(sequences[i][length], []).append(i)
    if not depth:
        return together
    parts = [_best_groups(sequences, most, own, least, depth - 1) for own in branches.values()]
    apart = (sum(saved for saved, _ in parts), [group for _, groups in parts for group in groups])
    return max(together, apart, key=lambda choice: choice[0])


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences share: those that the least and the greatest do."""
    low, high = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))


@dataclass(frozen=True)
class Run:
    """Some of the sequences after a pass of the body: their numbers, how many first tokens of each stood in an earlier
    pass, their hidden states (n, longest, d), and the caches where they were kept."""

    members: np.ndarray
    skipped: np.ndarray
    hidden: mx.array
    caches: list[PrefixCache]


def run_sequences(
    forward: Forward, sequences: list[list[int]], groups: list, batch_tokens: float, *, kept: bool = False
) -> Iterator[Run]:
    """Every sequence through the body, in batches of like length, after one pass over what each of the `groups`
    (length, members) shares."""
    for wave in waves(groups, batch_tokens):
        lengths = [length for length, members in wave for _ in members]
        rows = np.repeat(np.arange(len(wave)), [len(members) for _, members in wave])
        members, skipped = np.array([i for _, own in wave for i in own]), np.array(lengths)
        starts = start_caches(forward, [sequences[own[0]][:length] for length, own in wave])
        rest = [sequences[i][length:] for i, length in zip(members, lengths)]
        for batch in batches_by_length([len(r) for r in rest], batch_tokens, forward.least_tokens):
            caches = branch(starts, rows[batch], skipped[batch], kept=kept) if starts else None
            if kept and not starts:
                caches = [PrefixCache() for _ in range(forward.prefix_layers)]
            hidden = forward.body(mx.array(pad_right([rest[n] for n in batch])), cache=caches)
            yield Run(members[batch], skipped[batch], hidden, caches)


def start_caches(forward: Forward, beginnings: list[list[int]]) -> list[PrefixCache]:
    """Caches of one row a beginning; none where the beginnings are empty."""
    if not any(beginnings):
        return []
    caches = [PrefixCache() for _ in range(forward.prefix_layers)]
    forward.body(mx.array(pad_right(beginnings)), cache=caches)
    mx.eval([[cache.keys, cache.values] for cache in caches])
    return caches


def waves(groups: list[tuple[int, list[int]]], batch_tokens: float) -> list[list[tuple[int, list[int]]]]:
    """Groups whose beginnings run together, at most `batch_tokens` with their padding; those without one apart."""
    waves: list[list] = []
    for length, members in sorted(groups, key=lambda group: -group[0]):
        last = waves[-1] if waves and length else []
        if last and (len(last) + 1) * last[0][0] <= batch_tokens:
            last.append((length, members))
        else:
            waves.append([(length, members)])
    return waves
