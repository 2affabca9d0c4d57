"""How likely a model finds each of several continuations, and whole texts.

Sums are of natural logarithms, in float64 from float32 terms, so that a score depends on what else was in its
batch only by the rounding of the matrix products.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlx_hybrid.errors import DataError, MlxHybridError
from mlx_hybrid.evaluation.forward import Forward, batches_by_length, pad_right, prefix_caches
from mlx_hybrid.models.head import evaluating


@dataclass(frozen=True)
class OptionItem:
    """A prompt and its continuations as token ids."""

    prompt: list[int]
    options: list[list[int]]


def tokenise_options(tokenizer, prompt: str, options: Sequence[str]) -> OptionItem:
    """Prompt and option tokenised jointly, split at the longest token prefix they all share with the prompt.

    Where an option merges with the end of the prompt into one token, that token belongs to the option. The
    split never reaches into the options, so their lengths stay comparable. Raises DataError on an empty option or
    prompt.
    """
    joint = [_encode(tokenizer, prompt + option) for option in options]
    shared = _common_prefix([_encode(tokenizer, prompt), *joint])
    if shared == 0:
        raise DataError("The prompt has no token to start from; give it text or a beginning-of-text token.")
    for option, tokens in zip(options, joint):
        if len(tokens) == shared:
            raise DataError(f'Option "{option}" adds no token to its prompt.')
    return OptionItem(joint[0][:shared] if joint else [], [tokens[shared:] for tokens in joint])


def score_options(
    model,
    items: Sequence[OptionItem],
    *,
    batch_tokens: int = 8192,
    prefix: Literal["auto", "shared", "plain"] = "auto",
) -> list[np.ndarray]:
    """For each item an array (options, 2): summed log-likelihood and token count of each option.

    Σₜ log p(oₜ | prompt, o₁ … oₜ₋₁). `shared` runs each prompt once and lets its options branch from the
    cached keys and values; `plain` runs every option with its prompt; `auto` is `shared` where a small trial
    gives the same scores. Raises DataError on an item without prompt or option, MlxHybridError on a score
    that is not finite.
    """
    items = list(items)
    for number, item in enumerate(items):
        if not item.prompt or not item.options or not all(item.options):
            raise DataError(f"Item {number} needs a prompt and options of at least one token each.")
    if not items:
        return []
    with evaluating(model):
        forward = Forward(model)
        branching = prefix != "plain" and _can_share(forward, model)
        if prefix == "shared" and not branching:
            raise MlxHybridError(
                "This model's options cannot branch from a cached prompt; leave prefix at auto."
            )
        score = _score_shared if branching else _score_plain
        terms = score(forward, model, items, min(batch_tokens, forward.most_tokens))
    return [_sums(number, item, sums) for number, (item, sums) in enumerate(zip(items, terms))]


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
    sums, counts = np.zeros(len(token_lists)), np.zeros(len(token_lists), np.int64)
    masks = [None] * len(token_lists) if masks is None else masks
    wanted = [_columns(tokens, mask) for tokens, mask in zip(token_lists, masks)]
    if not len(token_lists):
        return sums, counts
    with evaluating(model):
        forward = Forward(model)
        for batch in batches_by_length([len(t) for t in token_lists], min(batch_tokens, forward.most_tokens)):
            rows = np.repeat(np.arange(len(batch)), [len(wanted[i]) for i in batch])
            if not len(rows):
                continue
            columns = np.concatenate([wanted[i] for i in batch])
            tokens = pad_right([token_lists[i] for i in batch])
            terms = forward.log_likelihoods(tokens[:, :-1], rows, columns - 1, tokens[rows, columns])
            np.subtract.at(sums, batch[rows], terms.astype(np.float64))
            np.add.at(counts, batch[rows], 1)
    return sums, counts


def bits_per_byte(nll: np.ndarray, byte_counts: np.ndarray) -> float:
    """Σ nll / (ln 2 · Σ bytes): comparable across tokenizers. Raises DataError when there is no byte."""
    total = float(np.sum(byte_counts))
    if total <= 0:
        raise DataError("Bits per byte need at least one byte of text.")
    return float(np.sum(nll)) / (math.log(2) * total)


def _encode(tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    length = 0
    for column in zip(*sequences):
        if len(set(column)) > 1:
            break
        length += 1
    return length


def _columns(tokens: Sequence[int], mask: Sequence[int] | None) -> np.ndarray:
    marked = np.ones(len(tokens), bool) if mask is None else np.asarray(mask, bool)
    if len(marked) != len(tokens):
        raise DataError(f"A mask of {len(marked)} marks for {len(tokens)} tokens.")
    return np.flatnonzero(marked[1:]) + 1


def _can_share(forward: Forward, model) -> bool:
    """Whether branching from cached prompts of unequal length scores two options as running them whole does.

    Not where layers keep more than keys and values (state-space models), or take no mask per row.
    """
    if prefix_caches(model) is None:
        return False
    items = [OptionItem([0, 1, 2], [[1, 2], [2, 0, 1]]), OptionItem([2], [[1, 1]])]
    try:
        shared = _score_shared(forward, model, items, 64)
    except (ValueError, TypeError, AttributeError, IndexError):
        return False
    plain = _score_plain(forward, model, items, 64)
    tolerance = 1e-3 if forward.exact else 0.1
    return bool(np.allclose(np.concatenate(shared), np.concatenate(plain), rtol=0, atol=tolerance))


def _score_plain(forward: Forward, model, items: list[OptionItem], batch_tokens: float) -> list[list[float]]:
    """Summed log-likelihoods per item and option, every option run with its prompt."""
    pairs = [(i, o) for i, item in enumerate(items) for o in range(len(item.options))]
    sequences = [items[i].prompt + items[i].options[o] for i, o in pairs]
    masks = [[0] * len(items[i].prompt) + [1] * len(items[i].options[o]) for i, o in pairs]
    sums, _ = sequence_nll(model, sequences, masks, batch_tokens=batch_tokens)
    scores = [[0.0] * len(item.options) for item in items]
    for (i, o), value in zip(pairs, sums):
        scores[i][o] = -value
    return scores


def _score_shared(forward: Forward, model, items: list[OptionItem], batch_tokens: float) -> list[list[float]]:
    """As `_score_plain`, each prompt run once."""
    scores: list[list[float]] = [[]] * len(items)
    for batch in batches_by_length([len(item.prompt) for item in items], batch_tokens):
        for i, values in zip(batch, _score_batch(forward, model, [items[i] for i in batch], batch_tokens)):
            scores[i] = values
    return scores


def _score_batch(forward: Forward, model, items: list[OptionItem], batch_tokens: float) -> list[list[float]]:
    """First tokens from the prompts' last hidden states, the rest from branches of their caches."""
    caches = prefix_caches(model)
    prompts = pad_right([item.prompt for item in items])
    rows = np.array([i for i, item in enumerate(items) for _ in item.options])
    options = [option for item in items for option in item.options]
    lengths = np.array([len(item.prompt) for item in items])
    firsts = np.array([option[0] for option in options])
    sums = forward.log_likelihoods(prompts, rows, lengths[rows] - 1, firsts, caches).astype(np.float64)
    longer = [i for i, option in enumerate(options) if len(option) > 1]
    size = max(1, int(batch_tokens // (prompts.shape[1] + max(len(option) for option in options))))
    for start in range(0, len(longer), size):
        part = longer[start : start + size]
        branches = [cache.branch(rows[part], lengths[rows[part]]) for cache in caches]
        sums[part] += _continue(forward, branches, [options[i] for i in part])
    ends = np.cumsum([len(item.options) for item in items])[:-1]
    return [list(part) for part in np.split(sums, ends)]


def _continue(forward: Forward, branches: list, options: list[list[int]]) -> np.ndarray:
    """Summed log-likelihood of each option's tokens after its first."""
    tokens = pad_right(options)
    counts = [len(option) - 1 for option in options]
    rows = np.repeat(np.arange(len(options)), counts)
    columns = np.concatenate([np.arange(count) for count in counts])
    terms = forward.log_likelihoods(tokens[:, :-1], rows, columns, tokens[rows, columns + 1], branches)
    return np.bincount(rows, weights=terms.astype(np.float64), minlength=len(options))


def _sums(number: int, item: OptionItem, values: list[float]) -> np.ndarray:
    if not np.all(np.isfinite(values)):
        raise MlxHybridError(
            f"The log-likelihood of item {number} is not finite: the weights hold NaN or inf."
        )
    return np.array([(value, len(option)) for value, option in zip(values, item.options)])
