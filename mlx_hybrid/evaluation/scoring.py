"""How likely a model finds each of several continuations, and whole texts.

Each distinct position meets the head once: what several options begin with is one position, and so is the end of the
prompt. Beginnings that prompts share run once too. Sums are of natural logarithms, in float64, so that a score depends
on what else was in its batch only by the rounding of the matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import numpy as np

from mlx_hybrid.errors import DataError, MlxHybridError
from mlx_hybrid.evaluation.forward import Forward, Sums, batches_by_length, pad_right
from mlx_hybrid.evaluation.prefix import LEAST_SHARED, branch, common_length, run_sequences, shared_beginnings
from mlx_hybrid.models.head import evaluating

KEYS_AT_ONCE = 1 << 15  # keys of one layer that options continue in one pass

TRIAL_TOKENS, TRIAL_ENTRIES = 1024, 64  # all of the trial in one pass, and little of the head

Prefix = Literal["auto", "shared", "plain"]


@dataclass(frozen=True)
class OptionItem:
    """A prompt and its continuations as token ids."""

    prompt: list[int]
    options: list[list[int]]


def score_options(
    model, items: Sequence[OptionItem], *, batch_tokens: int = 8192, prefix: Prefix = "auto"
) -> list[np.ndarray]:
    """For each item an array (options,): the summed log-likelihood of each option.

    Σₜ log p(oₜ | prompt, o₁ … oₜ₋₁). `shared` runs each prompt once, and once what many prompts begin with, and
    lets the options branch from the cached keys and values; `plain` runs every option with its prompt; `auto` is
    `shared` where a small trial gives the same scores. Raises DataError on an item without prompt or option,
    MlxHybridError on a score that is not finite.
    """
    items = list(items)
    for number, item in enumerate(items):
        if not item.prompt or not item.options or not all(item.options):
            raise DataError(f"Item {number} needs a prompt and options of at least one token each.")
    if not items:
        return []
    with evaluating(model):
        forward = Forward(model)
        branching = prefix != "plain" and _can_share(forward)
        if prefix == "shared" and not branching:
            raise MlxHybridError(
                "This model's options cannot branch from a cached prompt; leave prefix at auto."
            )
        score = _score_shared if branching else _score_plain
        sums = score(forward, items, min(batch_tokens, forward.most_tokens))
    scores = np.split(sums, np.cumsum([len(item.options) for item in items])[:-1])
    for number, own in enumerate(scores):
        if not np.all(np.isfinite(own)):
            told = "is not finite: the weights hold NaN or inf."
            raise MlxHybridError(f"The log-likelihood of item {number} {told}")
    return scores


def sequence_nll(
    model,
    token_lists: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]] | None = None,
    *,
    batch_tokens: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed −log p of each sequence's masked tokens, in nats, and how many there are; both (n,).

    `masks` marks the tokens to predict; None marks all. The first token follows nothing and never counts.
    """
    masks = [None] * len(token_lists) if masks is None else masks
    wanted = [_columns(tokens, mask) for tokens, mask in zip(token_lists, masks)]
    counts = np.array([len(columns) for columns in wanted], np.int64)
    if not counts.any():
        return np.zeros(len(counts)), counts
    with evaluating(model):
        forward = Forward(model)
        sums = _sequence_sums(
            forward, token_lists, wanted, min(batch_tokens, forward.most_tokens), share=True
        )
    return -sums, counts


def _columns(tokens: Sequence[int], mask: Sequence[int] | None) -> np.ndarray:
    marked = np.ones(len(tokens), bool) if mask is None else np.asarray(mask, bool)
    if len(marked) != len(tokens):
        raise DataError(f"A mask of {len(marked)} marks for {len(tokens)} tokens.")
    return np.flatnonzero(marked[1:]) + 1


def _can_share(forward: Forward) -> bool:
    """Whether branching from cached prompts of unequal length, themselves branched from a beginning that they share,
    scores options as running them whole does.

    Not where layers keep more than keys and values (state-space models), or take no mask per row.
    """
    if not forward.prefix_layers:
        return False
    start = [0, 1, 2, 0] * (LEAST_SHARED // 4)
    prompts = ([0, 1, 2], [2], [1, 0], [1], [0, 2, 2], [2, 0])  # enough rows for quick products
    items = [OptionItem([*start, *own], [[1, 2], [2, 0, 1]]) for own in prompts] + [OptionItem([2], [[0, 2]])]
    forward = forward.narrow(TRIAL_ENTRIES)
    try:
        shared = _score_shared(forward, items, TRIAL_TOKENS)
    except (ValueError, TypeError, AttributeError, IndexError):
        return False
    tolerance = 1e-3 if forward.exact else 0.1
    return bool(np.allclose(shared, _score_plain(forward, items, TRIAL_TOKENS), rtol=0, atol=tolerance))


def _score_plain(forward: Forward, items: list[OptionItem], batch_tokens: float) -> np.ndarray:
    """Summed log-likelihood of every option of every item, each run with its prompt."""
    pairs = [(item.prompt, option) for item in items for option in item.options]
    wanted = [len(prompt) + np.arange(len(option)) for prompt, option in pairs]
    return _sequence_sums(forward, [p + o for p, o in pairs], wanted, batch_tokens, share=False)


def _sequence_sums(
    forward: Forward, sequences: Sequence, wanted: list[np.ndarray], batch_tokens: float, *, share: bool
) -> np.ndarray:
    """Summed log-likelihood of the tokens at the wanted columns of each sequence."""
    asked = np.array([i for i, columns in enumerate(wanted) if len(columns)])
    fed = [list(sequences[i][: wanted[i][-1]]) for i in asked]
    apart = [(0, list(range(len(fed))))]
    groups = shared_beginnings(fed, [int(wanted[i][0]) - 1 for i in asked]) if share else apart
    if groups[0][0] and not _can_share(forward):
        groups = apart
    sums = Sums(forward, len(sequences))
    for run in run_sequences(forward, fed, groups, batch_tokens):
        own = asked[run.members]
        counts = [len(wanted[i]) for i in own]
        rows = np.repeat(np.arange(len(own)), counts)
        places = np.concatenate([wanted[i] - 1 - skipped for i, skipped in zip(own, run.skipped)])
        targets = np.concatenate([np.asarray(sequences[i])[wanted[i]] for i in own])
        hidden = run.hidden[mx.array(rows), mx.array(places)]
        sums.add(hidden, np.arange(len(rows)), targets, own[rows])
    return sums.flush()


def _score_shared(forward: Forward, items: list[OptionItem], batch_tokens: float) -> np.ndarray:
    """As `_score_plain`, what prompts and options share run once."""
    slots = np.cumsum([0, *(len(item.options) for item in items)])
    sums = Sums(forward, slots[-1])
    stems = [_stem(item.options) for item in items]
    fed = [item.prompt + stem for item, stem in zip(items, stems)]
    ends = [len(item.prompt) - 1 for item in items]
    for run in run_sequences(forward, fed, shared_beginnings(fed, ends), batch_tokens, kept=True):
        own = [items[i] for i in run.members]
        nodes, passes = _Nodes(own, slots[run.members]), []
        for row, i in enumerate(run.members):
            reach = range(len(stems[i]) + 1)
            nodes.reached(row, [tuple(stems[i][:depth]) for depth in reach])
            start = len(items[i].prompt) - 1 - run.skipped[row]
            passes += [(row, start + depth) for depth in reach]
        rows, columns = np.array(passes).T
        hidden = [run.hidden[mx.array(rows), mx.array(columns)]]
        lengths = np.array([len(fed[i]) for i in run.members]) - run.skipped
        hidden += _continue(
            forward, run.caches, nodes, [stems[i] for i in run.members], lengths, batch_tokens
        )
        sums.add(mx.concatenate(hidden), *nodes.terms())
    return sums.flush()


def _continue(
    forward: Forward, caches: list, nodes: "_Nodes", stems: list, lengths: np.ndarray, batch_tokens: float
) -> list[mx.array]:
    """Hidden states of the beginnings of options that the prompts' pass did not reach, in the order of `nodes`."""
    paths = [(row, tail) for row, item in enumerate(nodes.items) for tail in _tails(item.options, stems[row])]
    lengths_of_tails = [len(tail) for _, tail in paths]
    longest = max(lengths_of_tails, default=0)
    size = max(1, int(min(batch_tokens, KEYS_AT_ONCE) // (caches[0].keys.shape[2] + longest)))
    alike = batches_by_length(lengths_of_tails, longest * len(paths), forward.least_tokens // 8)
    hidden = []
    for batch in (own[start : start + size] for own in alike for start in range(0, len(own), size)):
        part = [paths[n] for n in batch]
        owners = np.array([row for row, _ in part])
        states = forward.body(
            mx.array(pad_right([tail for _, tail in part])), cache=branch(caches, owners, lengths[owners])
        )
        places = []
        for place, (row, tail) in enumerate(part):
            fresh = nodes.reached(row, [(*stems[row], *tail[:depth]) for depth in range(1, len(tail) + 1)])
            places += [(place, depth) for depth in fresh]
        rows, columns = np.array(places).T
        hidden.append(states[mx.array(rows), mx.array(columns)])
        mx.eval(hidden[-1])
    return hidden


class _Nodes:
    """The distinct beginnings of each item's options, numbered as their hidden states come."""

    def __init__(self, items: list[OptionItem], slots: np.ndarray):
        self.items, self.slots = items, slots
        self.numbers: dict[tuple, int] = {}

    def reached(self, row: int, beginnings: list[tuple]) -> list[int]:
        """Number those that are new; their places in `beginnings`."""
        fresh = [place for place, own in enumerate(beginnings) if (row, own) not in self.numbers]
        for place in fresh:
            self.numbers[row, beginnings[place]] = len(self.numbers)
        return fresh

    def terms(self) -> tuple[list[int], list[int], list[int]]:
        """(number of the beginning, token after it, slot of its option) of every token of every option."""
        found = [
            (self.numbers[row, tuple(option[:depth])], token, self.slots[row] + place)
            for row, item in enumerate(self.items)
            for place, option in enumerate(item.options)
            for depth, token in enumerate(option)
        ]
        return tuple(zip(*found))


def _stem(options: Sequence[list[int]]) -> list[int]:
    """What all options begin with, the last token of each left out."""
    return options[0][: common_length([option[:-1] for option in options])]


def _tails(options: Sequence[list[int]], stem: list[int]) -> list[list[int]]:
    """What is fed after the stem, so that every token of every option is predicted: the options without their last
    token, none that another one begins with."""
    tails = sorted({tuple(option[len(stem) : -1]) for option in options} - {()})
    follows = [*tails[1:], ()]
    return [list(tail) for tail, after in zip(tails, follows) if after[: len(tail)] != tail]
