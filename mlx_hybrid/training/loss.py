"""Summed next-token loss over the trained targets, without logits of the whole batch."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Int

from mlx_hybrid.adapters.rotations import formed
from mlx_hybrid.training.batches import chunk_size
from mlx_hybrid.training.packing import packed_caches

SAME_LOGITS = 1e-4  # float32 rounding of two orders of the same products

HiddenStates = Callable[[mx.array], mx.array]


def split_head(
    model: nn.Module, tolerance: float = SAME_LOGITS
) -> tuple[HiddenStates, Callable[[mx.array], mx.array]] | None:
    """(body, head) of a causal model, such that head(body(tokens)) is model(tokens), to the bit where `tolerance` is 0;
    None where that does not hold.

    It does not for families that cap or scale logits after the head; they are compared on a few tokens, and whole
    logits are used instead.
    """
    body = getattr(model, "model", None)
    if body is None:
        return None
    head = find_head(model)
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
    return (body, head) if float(gap) <= tolerance * max(1.0, float(size)) else None


def head_module(model: nn.Module) -> nn.Module | None:
    """The module whose weight makes the logits: a head of its own, or the embedding."""
    head = getattr(model, "lm_head", None)
    return head if head is not None else getattr(getattr(model, "model", model), "embed_tokens", None)


def find_head(model: nn.Module) -> Callable[[mx.array], mx.array] | None:
    head = head_module(model)
    return head if getattr(model, "lm_head", None) is not None else getattr(head, "as_linear", None)


def target_losses(
    head: Callable, hidden: Float[mx.array, "p d"], targets: Int[mx.array, " p"]
) -> Float[mx.array, " p"]:
    """−log p(target) (p,) in float32, from hidden states (p, d)."""
    logits = head(hidden).astype(mx.float32)  # the sum over a large vocabulary loses digits in half precision
    return nn.losses.cross_entropy(logits, targets)


def losses_and_slopes(
    head: Callable, hidden: Float[mx.array, "p d"], targets: Int[mx.array, " p"]
) -> tuple[Float[mx.array, " p"], Float[mx.array, "p d"]]:
    """`target_losses` and their gradient for `hidden`: softmax less one at the target, back through the head.

    One softmax does for both, log Σ exp being the largest logit less the log of its share: over a large vocabulary the
    exponentials take longer than the products.
    """
    logits = head(hidden)
    wide, targets = logits.astype(mx.float32), targets[:, None]
    share = mx.softmax(wide, axis=1)
    normaliser = mx.max(wide, axis=1) - mx.log(mx.max(share, axis=1))
    losses = normaliser - mx.take_along_axis(wide, targets, 1)[:, 0]
    slope = mx.put_along_axis(share, targets, mx.take_along_axis(share, targets, 1) - 1, 1)
    _, (back,) = mx.vjp(head, [hidden], [slope.astype(logits.dtype)])
    return losses, back


def loss_in_chunks(
    head: Callable, hidden: Float[mx.array, "p d"], targets: Int[mx.array, " p"],
    weights: Float[mx.array, " p"], size: int,
) -> Float[mx.array, ""]:  # fmt: skip
    """Σ weight · −log p(target), its gradient for `hidden` taken in the forward pass, `size` targets at a time.

    A chunk waits for the loss and the gradient of the one before, so the logits of a few chunks are all that is alive,
    and they are formed once: recomputing them in the backward pass takes a third more products with the head. The head
    gets no gradient. Hsu et al. 2024 (Liger), arXiv 2410.10989, section 3.2.
    """

    @mx.custom_function
    def loss_and_slope(hidden: mx.array) -> tuple[mx.array, mx.array]:
        losses, slopes = [], []
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            own = mx.depends([hidden[part]], [losses[-1], slopes[-1]])[0] if slopes else hidden[part]
            loss, slope = losses_and_slopes(head, own, targets[part])
            losses.append(mx.sum(loss * weights[part]))
            slopes.append(slope * weights[part][:, None].astype(slope.dtype))
        return sum(losses), mx.concatenate(slopes)

    @loss_and_slope.vjp
    def _(_: mx.array, cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]) -> mx.array:
        return (cotangents[0] * outputs[1]).astype(outputs[1].dtype)

    return loss_and_slope(hidden)[0]


def make_loss(model: nn.Module) -> Callable[..., mx.array]:
    """loss_sum(tokens, positions, targets, weights, segments=None): Σ weight · −log p(target).

    Not the mean: sums add across micro-batches of unequal length, means do not. Only the hidden states of trained
    targets meet the head, in chunks: (batch, tokens, vocabulary) never exists.
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
    size = chunk_size(vocabulary(model))

    def chunked(
        tokens: mx.array, positions: mx.array, targets: mx.array, weights: mx.array,
        segments: mx.array | None = None,
    ) -> mx.array:  # fmt: skip
        hidden = outputs(model, body, tokens, segments)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        if head_trains(model):
            return mx.sum(target_losses(head, hidden, targets) * weights)
        return loss_in_chunks(head, hidden, targets, weights, size)

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
    size = chunk_size(vocabulary(model))

    def chunked(tokens: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
        hidden = body(tokens)
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        losses = []
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            losses.append(target_losses(head, hidden[part], targets[part]))
            mx.eval(losses[-1])
        return mx.concatenate(losses)

    return chunked


def vocabulary(model: nn.Module) -> int:
    head = head_module(model)
    return getattr(head, "linear", head).weight.shape[0]


def head_trains(model: nn.Module) -> bool:
    """Whether the head has trainable leaves, to which `loss_in_chunks` gives no gradient."""
    return bool(head_module(model).trainable_parameters())
