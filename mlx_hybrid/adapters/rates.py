"""What one step of Adam does to each layer's output, so that one rate moves every method, layer and model alike.

Adam's first step moves each number of a leaf θ by the rate η against the sign of its gradient g. How far that moves the
layer's output y depends on the activations, the start and the branch; on a pretrained model it differs a hundredfold:

    gain = √ mean over positions of (‖y(θ − ε sign g) − y(θ)‖ / (ε ‖y(θ)‖))²

With rates divided by their gain, η is a share of the output and carries over.
"""

from collections.abc import Callable, Sequence
from statistics import median

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.layer import MAGNITUDE_LEAVES

USUAL_GAIN = 10.0
"""About that of LoRA's B on a pretrained model (14 on Gemma 3 270M, median of 126 modules): rates keep the size that
LoRA's have, and a step at rate η moves an output by 10 η of its norm."""
SMALL_STEP = 1e-3
RANGE = 10.0  # a gain further than this from its kind's median is taken for that: it is of a layer that hardly acts
OTHERS = "others"
"""What belongs to no measured layer: embeddings and norms, where every weight is trained."""

Gains = dict[str, float]
"""By the path of a branch, `….rotation` or `….low_rank`, or of a whole layer where every weight is trained."""


class StepWatch(nn.Module):
    """A layer that measures, at each call, how far a small step of each of its branches moves its output."""

    def __init__(self, layer: nn.Module, gradient: dict[str, mx.array]):
        super().__init__()
        self.layer = layer
        self._stepped = small_steps(layer, gradient)
        self._squares = {branch: mx.array(0.0) for branch in self._stepped}
        self._positions = 0

    def __call__(self, x: mx.array, *rest: mx.array, **named: object) -> mx.array:
        exact = x.astype(mx.float32)
        y = self.layer(exact, *rest, **named).astype(mx.float32)
        size = mx.maximum(mx.sum(mx.square(y), axis=-1), 1e-12)
        at_rest = self.layer.trainable_parameters()
        for branch, leaves in self._stepped.items():
            self.layer.update(tree_unflatten(list(leaves.items())))
            moved = self.layer(exact, *rest, **named).astype(mx.float32) - y
            self._squares[branch] = self._squares[branch] + mx.sum(mx.sum(mx.square(moved), axis=-1) / size)
            self.layer.update(at_rest)
        self._positions += size.size
        mx.eval(self._squares)
        return y.astype(x.dtype)

    def gains(self) -> Gains:
        """By the branch's path within the layer."""
        mean = {branch: square.item() / max(1, self._positions) for branch, square in self._squares.items()}
        return {branch: value**0.5 / SMALL_STEP for branch, value in mean.items()}


def step_gains(
    model: nn.Module, make_loss: Callable[[nn.Module], Callable], batches: Sequence[tuple]
) -> Gains:
    """Gains of every adapted layer's branches on some batches; of the linear layers where all weights are trained.

    `make_loss(model)` gives a summed loss of one batch. One gradient pass and one forward pass with a second product a
    branch; the model is as it was afterwards.
    """
    layers = hybrid_layers(model) or dense_layers(model)
    gradient = total_gradient(model, make_loss, batches)
    watched = {name: StepWatch(layer, under(name, gradient)) for name, layer in layers.items()}
    forward_with(watched, model, make_loss, batches)
    return {
        f"{name}.{branch}".rstrip("."): gain
        for name, watch in watched.items()
        for branch, gain in watch.gains().items()
    }


def forward_with(
    watched: dict[str, nn.Module],
    model: nn.Module,
    make_loss: Callable[[nn.Module], Callable],
    batches: Sequence[tuple],
) -> None:
    """One forward pass of the batches with these modules, each with the `layer` it watches, in their places."""
    model.update_modules(tree_unflatten(list(watched.items())))
    try:
        loss = make_loss(model)
        for batch in batches:
            mx.eval(loss(*batch))
    finally:
        model.update_modules(tree_unflatten([(name, watch.layer) for name, watch in watched.items()]))


def dense_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Plain linear layers with trained weights, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.trainable_parameters()
    }


def under(name: str, flat: dict[str, mx.array]) -> dict[str, mx.array]:
    """What lies under a name, by the rest of its path."""
    return {path[len(name) + 1 :]: value for path, value in flat.items() if path.startswith(f"{name}.")}


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


def small_steps(layer: nn.Module, gradient: dict[str, mx.array]) -> dict[str, dict[str, mx.array]]:
    """θ − ε sign g of a layer's leaves, by branch and path within the layer."""
    stepped: dict[str, dict[str, mx.array]] = {}
    for path, value in tree_flatten(layer.trainable_parameters()):
        if path in gradient:
            step = value - SMALL_STEP * mx.sign(gradient[path])
            stepped.setdefault(branch_of(path), {})[path] = step.astype(value.dtype)
    return stepped


def branch_of(path: str) -> str:
    """The branch that a leaf belongs to, by its path; DoRA's magnitude goes with the low-rank one."""
    owner, _, leaf = path.rpartition(".")
    return f"{owner}.low_rank".lstrip(".") if leaf in MAGNITUDE_LEAVES else owner


def rate_factors(gains: Gains) -> dict[str, float]:
    """What the rate of each branch is multiplied by, by its path: USUAL_GAIN / gain. None where no gradient comes.

    `others` is the median of all: what is trained and was not measured goes with the rest.
    """
    factors: dict[str, float] = {}
    for kind in {kind_of(path) for path in gains}:
        found = {path: gain for path, gain in gains.items() if kind_of(path) == kind and gain}
        middle = median(found.values()) if found else 0.0
        bounded = {path: min(max(gain, middle / RANGE), middle * RANGE) for path, gain in found.items()}
        factors |= {path: USUAL_GAIN / gain for path, gain in bounded.items()}
    return factors | ({OTHERS: median(factors.values())} if factors else {})


def kind_of(path: str) -> str:
    """`rotation`, `low_rank`, or nothing for a whole layer."""
    last = path.rsplit(".", 1)[-1]
    return last if last in ("rotation", "low_rank") else ""
