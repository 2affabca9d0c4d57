"""Summed next-token loss over the trained targets, without logits of the whole batch."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Int

from mlx_hybrid.adapters.rotations import formed
from mlx_hybrid.training.packing import packed_caches

CHUNK = 1024
"""Targets whose logits are alive at once, in the forward and in the backward pass."""
SAME_LOGITS = 1e-4  # float32 rounding of two orders of the same products

HiddenStates = Callable[[mx.array], mx.array]


def split_head(model: nn.Module) -> tuple[HiddenStates, Callable[[mx.array], mx.array]] | None:
    """(body, head) of a causal model, such that head(body(tokens)) is model(tokens); None where that does not hold.

    It does not for families that cap or scale logits after the head; they are compared on a few tokens, and whole
    logits are used instead.
    """
    body = getattr(model, "model", None)
    if body is None:
        return None
    head = find_head(model, body)
    if head is None:
        return None
    tokens, training = mx.array([list(range(2, 10))]), model.training
    model.eval()  # dropout would draw twice
    try:
        split, whole = head(body(tokens)), model(tokens)
    except (TypeError, ValueError, AttributeError):
        return None
    finally:
        model.train(training)
    if split.shape != whole.shape:
        return None
    gap = mx.max(mx.abs(split.astype(mx.float32) - whole.astype(mx.float32)))
    size = mx.max(mx.abs(whole.astype(mx.float32)))
    return (body, head) if float(gap) <= SAME_LOGITS * max(1.0, float(size)) else None


def find_head(model: nn.Module, body: nn.Module) -> Callable[[mx.array], mx.array] | None:
    if getattr(model, "lm_head", None) is not None:
        return model.lm_head
    embedding = getattr(body, "embed_tokens", None)
    return embedding.as_linear if hasattr(embedding, "as_linear") else None


def target_losses(
    head: Callable, hidden: Float[mx.array, "p d"], targets: Int[mx.array, " p"]
) -> Float[mx.array, " p"]:
    """−log p(target) (p,) in float32, from hidden states (p, d)."""
    logits = head(hidden).astype(mx.float32)  # the sum over a large vocabulary loses digits in half precision
    return nn.losses.cross_entropy(logits, targets)


def make_loss(model: nn.Module) -> Callable[..., mx.array]:
    """loss_sum(tokens, positions, targets, weights, segments=None): Σ weight · −log p(target).

    Not the mean: sums add across micro-batches of unequal length, means do not. Only the hidden states of trained
    targets meet the head, in chunks recomputed in the backward pass: (batch, tokens, vocabulary) never exists.
    With `segments`, rows hold several records (packing.py).
    """
    split = split_head(model)

    def whole_logits(
        tokens: mx.array, positions: mx.array, targets: mx.array, weights: mx.array,
        segments: mx.array | None = None,
    ) -> mx.array:  # fmt: skip
        logits = outputs(model, model, tokens, segments)
        picked = logits.reshape(-1, logits.shape[-1])[positions].astype(mx.float32)
        return mx.sum(nn.losses.cross_entropy(picked, targets) * weights)

    if split is None:
        return whole_logits
    body, head = split

    def chunk_loss(hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        return mx.sum(target_losses(head, hidden, targets) * weights)

    def recomputed(targets: mx.array, weights: mx.array) -> Callable[[mx.array], mx.array]:
        """Of the hidden states alone: targets are indices, and have no gradient."""
        return mx.checkpoint(lambda hidden: chunk_loss(hidden, targets, weights))

    def chunked(
        tokens: mx.array, positions: mx.array, targets: mx.array, weights: mx.array,
        segments: mx.array | None = None,
    ) -> mx.array:  # fmt: skip
        hidden = outputs(model, body, tokens, segments)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        if len(targets) <= CHUNK or head_trains(model):
            return chunk_loss(hidden, targets, weights)
        parts = [slice(begin, begin + CHUNK) for begin in range(0, len(targets), CHUNK)]
        return sum(recomputed(targets[part], weights[part])(hidden[part]) for part in parts)

    return chunked


def outputs(
    model: nn.Module, part: Callable[..., mx.array], tokens: mx.array, segments: mx.array | None
) -> mx.array:
    """What the model, or its body, makes of tokens (n, t); the records of a row see only themselves."""
    cache = {} if segments is None else {"cache": packed_caches(model, segments)}
    with formed(model):
        return part(tokens, **cache)


def make_target_losses(model: nn.Module) -> Callable[..., mx.array]:
    """losses(tokens, positions, targets): −log p of each target (p,), without gradients, to be told apart."""
    split = split_head(model)

    def whole_logits(tokens: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
        logits = model(tokens)
        return target_losses(lambda hidden: hidden, logits.reshape(-1, logits.shape[-1])[positions], targets)

    if split is None:
        return whole_logits
    body, head = split

    def chunked(tokens: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
        hidden = body(tokens)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        losses = []
        for begin in range(0, len(targets), CHUNK):
            part = slice(begin, begin + CHUNK)
            losses.append(target_losses(head, hidden[part], targets[part]))
            mx.eval(losses[-1])
        return mx.concatenate(losses)

    return chunked


def head_trains(model: nn.Module) -> bool:
    """Whether the head has trainable leaves: `mx.checkpoint` gives no gradient to what it captures."""
    head = getattr(model, "lm_head", None)
    head = head if head is not None else getattr(model.model, "embed_tokens", None)
    return bool(head is not None and head.trainable_parameters())
