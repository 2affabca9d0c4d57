"""Summed next-token loss over the trained targets, without logits of the whole batch."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float, Int

from mlx_hybrid.adapters.attach import formed, switched_off
from mlx_hybrid.models.head import split_head
from mlx_hybrid.training.batches import Batch, chunk_size

Leaves = dict[str, mx.array]
LogitsOf = Callable[[mx.array, Leaves], mx.array]
Losses = tuple[mx.array, mx.array]  # of all, of the answers
LogitsOfBase = Callable[[slice], mx.array]  # of some of the targets
States = Float[mx.array, "p d"]
Ids, Reals = Int[mx.array, " p"], Float[mx.array, " p"]
WEIGHTS = 3  # their place in what `arrays` gives


def arrays(batch: Batch, *, to_base: bool = False) -> tuple[mx.array, ...]:
    """(tokens, positions, targets, weights) of what this machine is to compute, and the rows held `to_base`, if any,
    with the places of their targets."""
    batch = batch.part or batch
    held = (batch.held, batch.places) if to_base and len(batch.held) else ()
    return tuple(
        mx.array(part) for part in (batch.tokens, batch.positions, batch.targets, batch.weights, *held)
    )


def cross_entropy(logits: Float[mx.array, "p v"], targets: Ids) -> Float[mx.array, " p"]:
    """−log p(target) (p,) in float32: the sum over a large vocabulary loses digits in half precision."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), targets)


def loss_and_slopes(
    head: LogitsOf, hidden: States, targets: Ids, weights: Reals, leaves: Leaves, plain: mx.array | None
) -> tuple[Float[mx.array, "2"], States, Leaves]:
    """Σ |weight| · −log p(target), of all and of the answers alone, and the first one's gradients for `hidden` and the
    head's leaves: softmax less one at the target, back through the head. One softmax does for all, log Σ exp being the
    largest logit less the log of its share. Where the base's logits `plain` of the first targets are given, a weight
    below zero asks for KL(base ‖ p) in place of it."""
    targets = targets[:, None]

    def softmax_and_normaliser(logits: mx.array) -> tuple[mx.array, mx.array]:
        share = mx.softmax(logits, axis=1)
        return share, mx.max(logits, axis=1) - mx.log(mx.max(share, axis=1))

    def pull(hidden: mx.array, leaves: Leaves) -> tuple[mx.array, mx.array]:
        wide = head(hidden, leaves).astype(mx.float32)
        fixed = mx.stop_gradient(wide)
        share, normaliser = softmax_and_normaliser(fixed)
        losses = normaliser - mx.take_along_axis(fixed, targets, 1)[:, 0]
        told = 1 if plain is None else (weights >= 0)[:, None]  # where the target is what is wanted
        slope = mx.put_along_axis(share, targets, mx.take_along_axis(share, targets, 1) - told, 1)
        if plain is not None:
            count, other = len(plain), plain.astype(mx.float32)
            asks = weights[:count] < 0
            kept, constant = softmax_and_normaliser(other)
            divergence = mx.sum(kept * (other - fixed[:count]), axis=1) - constant + normaliser[:count]
            losses = mx.concatenate([mx.where(asks, divergence, losses[:count]), losses[count:]])
            slope = mx.concatenate([slope[:count] - kept * asks[:, None], slope[count:]])
        sizes = mx.abs(weights)
        sums = mx.sum(losses * mx.stack([sizes, mx.maximum(weights, 0)]), axis=1)
        return mx.sum(mx.sum(wide * slope, axis=1) * sizes), sums

    (_, losses), slopes = mx.value_and_grad(pull, argnums=(0, 1))(hidden, leaves)
    return losses, *slopes


def loss_in_chunks(
    head: LogitsOf,
    hidden: States,
    targets: Ids,
    weights: Reals,
    size: int,
    leaves: Leaves,
    held: int = 0,
    base: LogitsOfBase | None = None,
) -> Losses:
    """Σ |weight| · −log p(target), of all and of the answers alone, the first one's gradients for `hidden` and for the
    head's `leaves` taken in the forward pass, `size` targets at a time, beside the `base` for the first `held` of them.

    A chunk waits for the loss and the gradients of the one before, so the logits of a few chunks are all that is alive,
    and they are formed once. The leaves' gradients add up in float32. Hsu et al. 2024 (Liger), arXiv 2410.10989.
    """
    names = list(leaves)

    @mx.custom_function
    def chunks(given: list[mx.array]) -> tuple[mx.array, mx.array, list[mx.array]]:
        hidden, own = given[0], dict(zip(names, given[1:], strict=True))
        losses, slopes, sums = mx.zeros(2), [], []
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            states = mx.depends([hidden[part]], [losses, slopes[-1], *sums])[0] if slopes else hidden[part]
            plain = base(slice(begin, min(begin + size, held))) if begin < held else None
            more, slope, pulls = loss_and_slopes(head, states, targets[part], weights[part], own, plain)
            losses, slopes = losses + more, [*slopes, slope]
            pulls = [pulls[name].astype(mx.float32) for name in names]
            sums = [a + b for a, b in zip(sums, pulls, strict=True)] if sums else pulls
        sums = [total.astype(leaf.dtype) for total, leaf in zip(sums, given[1:], strict=True)]
        return losses[0], losses[1], [mx.concatenate(slopes), *sums]

    @chunks.vjp
    def _(_: list, cotangents: tuple, outputs: tuple[mx.array, mx.array, list[mx.array]]) -> list[mx.array]:
        return [(cotangents[0] * slope).astype(slope.dtype) for slope in outputs[2]]

    return chunks([hidden, *leaves.values()])[:2]


def make_loss(model: nn.Module) -> Callable[..., mx.array]:
    """The first of what `make_losses` gives."""
    losses = make_losses(model)
    return lambda *batch: losses(*batch)[0]


def make_losses(model: nn.Module) -> Callable[..., Losses]:
    """losses(tokens, positions, targets, weights[, held, places]): Σ |weight| · −log p(target), of all and of answers,
    whose weight is above 0. Not the mean: sums add across micro-batches of unequal length, means do not. Only the
    hidden states of trained targets meet the head, in chunks: (batch, tokens, vocabulary) never exists. With `held`,
    targets of weight below 0, in those rows, hold the model to its base, by one more forward pass of those rows with
    the adapter switched off."""
    body, head = split_head(model) or (model, None)

    def base_logits(tokens: mx.array, held: mx.array, places: mx.array) -> LogitsOfBase:
        with switched_off(model):
            states = picked(body(tokens[held]), places)

        def of(part: slice) -> mx.array:
            with switched_off(model):
                return mx.stop_gradient(head(states[part]) if head else states[part])

        return of

    def losses(
        tokens: mx.array, positions: mx.array, targets: mx.array, weights: mx.array, *held: mx.array
    ) -> Losses:
        base = (len(held[1]), base_logits(tokens, *held)) if held else ()
        with formed(model):
            hidden = picked(body(tokens), positions)
        logits_of, leaves = (head.with_leaves, head.leaves()) if head else (lambda logits, _: logits, {})
        size = chunk_size(head.vocabulary if head else hidden.shape[-1])
        return loss_in_chunks(logits_of, hidden, targets, weights, size, leaves, *base)

    return losses


def picked(rows: Float[mx.array, "n t d"], positions: Int[mx.array, " p"]) -> Float[mx.array, "p d"]:
    return rows.reshape(-1, rows.shape[-1])[positions]


def make_target_losses(model: nn.Module) -> Callable[..., mx.array]:
    """losses(tokens, positions, targets): −log p of each target (p,), without gradients, to be told apart."""
    body, head = split_head(model) or (model, None)

    def chunked(tokens: mx.array, positions: mx.array, targets: mx.array) -> mx.array:
        hidden, losses = picked(body(tokens), positions), []
        if head is None:
            return cross_entropy(hidden, targets)
        size = chunk_size(head.vocabulary)
        for begin in range(0, len(targets), size):
            losses.append(cross_entropy(head(hidden[begin : begin + size]), targets[begin : begin + size]))
            mx.eval(losses[-1])
        return mx.concatenate(losses)

    return chunked
