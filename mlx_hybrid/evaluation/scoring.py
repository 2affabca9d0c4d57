"""How likely a model finds each of several continuations, and whole texts: what they share is computed once."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import count

import mlx.core as mx
import numpy as np

from mlx_hybrid.errors import DataError, MlxHybridError
from mlx_hybrid.evaluation.forward import ROWS_AT_ONCE, Forward, PrefixCache, batches_by_length, pad_right
from mlx_hybrid.models.head import evaluating

BATCH_TOKENS = 8192
LEAST_SHARED = 16  # tokens that are worth a cache
DEEPEST = 16  # branchings between the first token and the end of what is shared
TRIAL_ENTRIES = 64  # of the head


@dataclass(frozen=True)
class OptionItem:
    """A prompt and its continuations as token ids."""

    prompt: list[int]
    options: list[list[int]]


@dataclass(frozen=True)
class Node:
    """Tokens that follow a parent's; `asked` has (place of a token, token after it, slot of the sum it adds to)."""

    tokens: list[int]
    asked: list[tuple[int, int, int]]
    children: list["Node"] = field(default_factory=list)


def score_options(model, items: Sequence[OptionItem], *, share: bool = True) -> list[np.ndarray]:
    """For each item an array (options,): Σₜ log p(oₜ | prompt, o₁ … oₜ₋₁) of each option, in float64.

    With `share`, and where a small trial gives the same scores, what many prompts begin with runs once, and options
    branch from the cached keys and values of their prompt; else every option runs with its prompt. Raises DataError on
    an item without prompt or option, MlxHybridError on a score that is not finite.
    """
    for number, item in enumerate(items):
        if not item.prompt or not item.options or not all(item.options):
            raise DataError(f"Item {number} needs a prompt and options of at least one token each.")
    if not items:
        return []
    with evaluating(model):
        forward, ends = Forward(model), np.cumsum([len(item.options) for item in items])
        nodes = shared_options(items) if share and can_share(forward) else single_options(items)
        scores = np.split(Sums(forward, ends[-1]).of(nodes)[:, 0], ends[:-1])
    for number, own in enumerate(scores):
        if not np.all(np.isfinite(own)):
            raise MlxHybridError(f"A score of item {number} is not finite: the weights hold NaN or inf.")
    return scores


def sequence_nll(
    model, token_lists: Sequence[Sequence[int]], masks: Sequence[Sequence[int]] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed −log p of each sequence's masked tokens in nats, how many there are, and how many are not the likeliest,
    all (n,). `masks` marks the tokens to predict, None all; the first token follows nothing and never counts."""
    masks = [np.ones(len(tokens)) for tokens in token_lists] if masks is None else masks
    wanted = [(np.flatnonzero(mask[1:]) + 1).tolist() for mask in masks]
    counts = np.array([len(columns) for columns in wanted], np.int64)
    if not counts.any():
        return np.zeros(len(counts)), counts, counts
    nodes = [sequence(*own) for own in zip(token_lists, wanted, count()) if own[1]]
    with evaluating(model):
        forward, shared = Forward(model), rooted(nodes)
        if any(node.children for node in shared) and can_share(forward):
            nodes = shared
        sums = Sums(forward, len(counts)).of(nodes)
    return -sums[:, 0], counts, sums[:, 1].astype(np.int64)


def can_share(forward: Forward) -> bool:
    """Whether branching from cached prompts, themselves branched from what they share, scores options as running them
    whole does: not where layers keep more than keys and values, or take no mask for each row."""
    if not forward.prefix_layers:
        return False
    if hasattr(forward.body, "_shares"):  # tried before; an adapter changes neither caches nor masks
        return forward.body._shares
    start = [0, 1, 2, 0] * (LEAST_SHARED // 4)
    prompts = ([0, 1, 2], [2], [1, 0], [1], [0, 2, 2], [2, 0])  # enough rows for quick products
    items = [OptionItem([*start, *own], [[1, 2], [2, 0, 1]]) for own in prompts] + [OptionItem([2], [[0, 2]])]
    forward, slots = copy(forward), sum(len(item.options) for item in items)
    if forward.part is not None:
        forward.vocabulary = min(TRIAL_ENTRIES, forward.vocabulary)
    try:
        shared = Sums(forward, slots).of(shared_options(items))
        single = Sums(forward, slots).of(single_options(items))
        alike = bool(np.allclose(shared[:, 0], single[:, 0], rtol=0, atol=1e-3 if forward.exact else 0.1))
    except (ValueError, TypeError, AttributeError, IndexError):
        alike = False
    forward.body._shares = alike
    return alike


def sequence(tokens: Sequence[int], columns: Sequence[int], slot: int) -> Node:
    return Node(list(tokens[: columns[-1]]), [(column - 1, tokens[column], slot) for column in columns])


def single_options(items: Sequence[OptionItem]) -> list[Node]:
    """Every option after its own copy of the prompt."""
    pairs = [(item.prompt, option) for item in items for option in item.options]
    return [sequence(p + o, range(len(p), len(p) + len(o)), slot) for (p, o), slot in zip(pairs, count())]


def shared_options(items: Sequence[OptionItem]) -> list[Node]:
    """Every prompt with what its options begin with, and the rest of these after it."""
    slots, nodes = count(), []
    for item in items:
        fed = sorted({tuple(option[:-1]) for option in item.options})
        stem = fed[0][: common_length(fed)]
        node, start = Node([*item.prompt, *stem], []), len(item.prompt) - 1
        reached = {stem[:depth]: (node, start + depth) for depth in range(len(stem) + 1)}
        for own, after in zip(fed, [*fed[1:], ()]):
            if len(own) > len(stem) and after[: len(own)] != own:  # else the next one begins with it
                node.children.append(Node(list(own[len(stem) :]), []))
                for depth in range(len(stem) + 1, len(own) + 1):
                    reached.setdefault(own[:depth], (node.children[-1], depth - len(stem) - 1))
        for option, slot in zip(item.options, slots):
            for depth, token in enumerate(option):
                holder, place = reached[tuple(option[:depth])]
                holder.asked.append((place, token, slot))
        nodes.append(node)
    return rooted(nodes)


def rooted(nodes: list[Node], depth: int = DEEPEST) -> list[Node]:
    """The same under nodes of what several begin with, before anything is asked, where that is worth a cache."""
    if len(nodes) < 2 or not depth:
        return nodes
    length = common_length([node.tokens[: node.asked[0][0]] for node in nodes])
    if length >= LEAST_SHARED:
        moved = [[(place - length, *to) for place, *to in node.asked] for node in nodes]
        rest = [Node(node.tokens[length:], to, node.children) for node, to in zip(nodes, moved)]
        return [Node(nodes[0].tokens[:length], [], rooted(rest, depth - 1))]
    branches: dict[int, list[Node]] = {}
    for number, node in enumerate(nodes):
        after = node.tokens[length] if node.asked[0][0] > length else -1 - number
        branches.setdefault(after, []).append(node)
    return [root for own in branches.values() for root in rooted(own, depth - 1)]


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all sequences share: those that the least and the greatest do."""
    low, high = min(sequences), max(sequences)
    return next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))


class Sums:
    """Sums of log-likelihoods, whose hidden states wait until there are enough for one product with the head."""

    def __init__(self, forward: Forward, slots: int):
        self.forward, self.batch_tokens = forward, min(BATCH_TOKENS, forward.most_tokens)
        self.values, self.waiting, self.held = np.zeros((slots, 2)), [], 0

    def of(self, nodes: list[Node]) -> np.ndarray:
        """Of every slot the sum, and how many of its tokens are not the likeliest, (slots, 2)."""
        self.run(nodes)
        self.flush()
        return self.values

    def run(self, nodes: list[Node], before: Sequence[PrefixCache] = (), rows: Sequence[int] = ()) -> None:
        """The nodes through the body, node i after row rows[i] of what `before` holds, and then their children."""
        lengths, rows = np.array([len(node.tokens) for node in nodes]), np.array(rows)
        held = before[0].places.whole.shape[1] if before else 0
        for batch in batches_by_length(lengths, self.batch_tokens, self.forward.least_tokens, held):
            own, caches = [nodes[n] for n in batch], None
            later = [(child, row) for row, node in enumerate(own) for child in node.children]
            if before or later:
                parents = rows[batch] if before else rows
                caches = self.forward.caches(lengths[batch], before, parents, kept=bool(later))
            hidden = self.forward.body(mx.array(pad_right([node.tokens for node in own])), cache=caches)
            self.add(hidden, own)
            if later:
                mx.eval([[cache.keys, cache.values] for cache in caches])
                self.run([child for child, _ in later], caches, [row for _, row in later])

    def add(self, hidden: mx.array, nodes: Sequence[Node]) -> None:
        """What is asked of nodes, after their hidden states (nodes, longest, d); each state is kept once."""
        numbers: dict[tuple[int, int], int] = {}
        terms = [
            (numbers.setdefault((row, place), len(numbers)) + self.held, token, slot)
            for row, node in enumerate(nodes)
            for place, token, slot in node.asked
        ]
        if not terms:
            return
        rows, places = np.array(list(numbers)).T
        states = hidden[mx.array(rows), mx.array(places)]
        mx.eval(states)
        self.waiting.append((states, np.array(terms)))
        self.held += len(numbers)
        if self.held >= ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            states, terms = zip(*self.waiting)
            rows, targets, slots = np.concatenate(terms).T
            np.add.at(self.values, slots, self.forward.log_likelihoods(mx.concatenate(states), rows, targets))
        self.waiting, self.held = [], 0
