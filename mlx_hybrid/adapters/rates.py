"""What one step of Adam does to each layer's output, so that one rate moves every method, layer and model alike.

Adam's first step moves each number of a leaf θ by the rate η against the sign of its gradient g. How far that moves the
layer's output y depends on the activations, the start and the branch; on a pretrained model it differs a hundredfold:

    gain = √ mean over positions of (‖y(θ − ε sign g) − y(θ)‖ / (ε ‖y(θ)‖))²

With rates divided by their gain, η is a share of the output and carries over.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.layer import LOW_RANK_LEAVES, MAGNITUDE_LEAVES, ORTHOGONAL_LEAVES, HybridLinear

BRANCHES = {"rotation": ORTHOGONAL_LEAVES, "low_rank": (*LOW_RANK_LEAVES, *MAGNITUDE_LEAVES)}
"""The leaves that step together."""
USUAL_GAIN = 10.0
"""About that of LoRA's B on a pretrained model (14 on Gemma 3 270M, median of 126 modules): rates keep the size that
LoRA's have, and a step at rate η moves an output by 10 η of its norm."""
SMALL_STEP = 1e-3
RANGE = 10.0  # a gain further than this from its branch's median is taken for that: it is of a layer that hardly acts


def branches(layer: HybridLinear) -> list[str]:
    """The branches that a layer has."""
    return [branch for branch in BRANCHES if getattr(layer, branch) is not None]


class StepWatch(nn.Module):
    """An adapted layer that measures, at each call, how far a small step of each branch moves its output."""

    def __init__(self, layer: HybridLinear, stepped: dict[str, dict[str, mx.array]]):
        super().__init__()
        self.layer = layer
        self._stepped = stepped
        self._squares = {branch: mx.array(0.0) for branch in stepped}
        self._positions = 0

    def __call__(self, x: mx.array, *rest: mx.array, **named: object) -> mx.array:
        exact = x.astype(mx.float32)
        y = self.layer(exact, *rest, **named).astype(mx.float32)
        size = mx.maximum(mx.sum(mx.square(y), axis=-1), 1e-12)
        at_rest = self.layer.leaves()
        for branch, leaves in self._stepped.items():
            self.layer.put_leaves(leaves)
            moved = self.layer(exact, *rest, **named).astype(mx.float32) - y
            self._squares[branch] = self._squares[branch] + mx.sum(mx.sum(mx.square(moved), axis=-1) / size)
            self.layer.put_leaves({leaf: at_rest[leaf] for leaf in leaves})
        self._positions += size.size
        mx.eval(self._squares)
        return y.astype(x.dtype)

    def gains(self) -> dict[str, float]:
        """By branch."""
        return {
            branch: (square.item() / max(1, self._positions)) ** 0.5 / SMALL_STEP
            for branch, square in self._squares.items()
        }


def step_gains(
    model: nn.Module, make_loss: Callable[[nn.Module], Callable], batches: Sequence[tuple]
) -> dict[str, dict[str, float]]:
    """Gains of every adapted layer, by name and branch (`rotation`, `low_rank`), on some batches.

    `make_loss(model)` gives a summed loss of one batch. One gradient pass and one forward pass with a second product a
    branch; the model is as it was afterwards.
    """
    layers = hybrid_layers(model)
    gradient = total_gradient(model, make_loss, batches)
    stepped = {name: small_steps(layer, name, gradient) for name, layer in layers.items()}
    watched = {name: StepWatch(layer, stepped[name]) for name, layer in layers.items()}
    model.update_modules(tree_unflatten(list(watched.items())))
    try:
        loss = make_loss(model)
        for batch in batches:
            mx.eval(loss(*batch))
    finally:
        model.update_modules(tree_unflatten(list(layers.items())))
    return {name: watch.gains() for name, watch in watched.items()}


def total_gradient(
    model: nn.Module, make_loss: Callable[[nn.Module], Callable], batches: Sequence[tuple]
) -> dict[str, mx.array]:
    """∂L/∂θ of the trained leaves, by their paths, summed over the batches."""
    model.train()
    gradient, total = nn.value_and_grad(model, make_loss(model)), None
    for batch in batches:
        _, part = gradient(*batch)
        total = part if total is None else tree_map(mx.add, total, part)
        mx.eval(total)
    return dict(tree_flatten(total))


def small_steps(
    layer: HybridLinear, name: str, gradient: dict[str, mx.array]
) -> dict[str, dict[str, mx.array]]:
    """θ − ε sign g of the layer's leaves, by branch."""
    owners = {"rotation": f"{name}.rotation.", "low_rank": f"{name}.low_rank."}
    stepped: dict[str, dict[str, mx.array]] = {}
    for leaf, value in layer.leaves().items():
        for branch, leaves in BRANCHES.items():
            path = f"{name}.{leaf}" if leaf in MAGNITUDE_LEAVES else owners[branch] + leaf
            if leaf in leaves and path in gradient:
                stepped.setdefault(branch, {})[leaf] = value - SMALL_STEP * mx.sign(gradient[path])
    return stepped


def rate_factors(gains: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What each layer's rate is multiplied by, by name and branch: USUAL_GAIN / gain."""
    factors: dict[str, dict[str, float]] = {name: {} for name in gains}
    for branch in BRANCHES:
        found = {name: of[branch] for name, of in gains.items() if of.get(branch)}
        middle = sorted(found.values())[len(found) // 2] if found else 0.0
        for name, gain in found.items():
            bounded = min(max(gain, middle / RANGE), middle * RANGE)
            factors[name][branch] = USUAL_GAIN / bounded
    return factors
