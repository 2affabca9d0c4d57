"""What one step of Adam does to each layer's output, so that one rate moves every method, layer and model alike.

Adam's first step moves each number of a leaf θ by the rate η against the sign of its gradient g. How far that moves the
layer's output y depends on the activations, the start and the branch; on a pretrained model it differs a hundredfold:

    gain = √ mean over positions of (‖y(θ − ε sign g) − y(θ)‖ / (ε ‖y(θ)‖))²

With rates divided by their gain, η is a share of the output and carries over.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.layer import MAGNITUDE_LEAVES

USUAL_GAIN = 14.0
"""About that of LoRA's B on a pretrained model (14 on Gemma 3 270M, median of 126 modules): rates keep the size that
LoRA's have, and a step at rate η moves an output by 14 η of its norm."""
SMALL_STEP = 1e-3
OTHERS = "others"  # what belongs to no measured layer: embeddings and norms, where every weight is trained

MakeLoss, Batches = Callable[[nn.Module], Callable], Sequence[tuple]  # model → summed loss of one batch
Gains = dict[str, float]
"""By the path of a branch, `….rotation` or `….low_rank`, or of a whole layer where every weight is trained."""


class Watch(nn.Module):
    """A layer that adds up, over its calls, what `measure(layer, x, …)` gives beside its output."""

    def __init__(self, layer: nn.Module, measure: Callable):
        super().__init__()
        self.layer, self._measure, self._sums = layer, measure, {}

    def __call__(self, *given: mx.array, **named: object) -> mx.array:
        y, found = self._measure(self.layer, *given, **named)
        self._sums = {key: self._sums.get(key, 0.0) + value for key, value in found.items()}
        mx.eval(self._sums)
        return y


def measured(model: nn.Module, make_loss: MakeLoss, batches: Batches, measures: dict[str, Callable]) -> dict:
    """Sums of what is measured at the layers of these names, by key, in one forward pass of the batches."""
    modules = dict(model.named_modules())
    watches = {name: Watch(modules[name], measure) for name, measure in measures.items()}
    model.update_modules(tree_unflatten(list(watches.items())))
    try:
        loss = make_loss(model)
        for batch in batches:
            mx.eval(loss(*batch))
    finally:
        model.update_modules(tree_unflatten([(name, modules[name]) for name in watches]))
    return {name: watch._sums for name, watch in watches.items()}


def step_gains(model: nn.Module, make_loss: MakeLoss, batches: Batches) -> Gains:
    """Gains of every adapted layer's branches on some batches; of the linear layers where all weights are trained. One
    gradient pass and one forward pass with a second product a branch; the model is as it was afterwards."""
    gradient = total_gradient(model, make_loss, batches)
    layers = hybrid_layers(model) or dense_layers(model)
    stepped = {name: small_steps(name, layer, gradient) for name, layer in layers.items()}
    measures = {name: partial(moves, stepped[name]) for name in layers}
    gains = {}
    for name, sums in measured(model, make_loss, batches, measures).items():
        for branch in stepped[name]:
            mean = (sums[branch] / sums["positions"]).item() if sums else 0.0
            gains[f"{name}.{branch}".rstrip(".")] = mean**0.5 / SMALL_STEP
    return gains


def moves(stepped: dict[str, dict], layer: nn.Module, x: mx.array, *rest: mx.array, **named: object) -> tuple:
    """The layer's output y; Σ (‖y′ − y‖/‖y‖)² over positions, y′ with the stepped leaves of each branch."""
    exact = x.astype(mx.float32)
    y = layer(exact, *rest, **named).astype(mx.float32)
    size = mx.maximum(mx.sum(mx.square(y), axis=-1), 1e-12)
    at_rest, sums = layer.trainable_parameters(), {"positions": mx.array(size.size)}
    for branch, leaves in stepped.items():
        layer.update(tree_unflatten(list(leaves.items())))
        moved = layer(exact, *rest, **named).astype(mx.float32) - y
        sums[branch] = mx.sum(mx.sum(mx.square(moved), axis=-1) / size)
        layer.update(at_rest)
    return y.astype(x.dtype), sums


def dense_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Plain linear layers with trained weights, by name."""
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {name: layer for name, layer in linear.items() if layer.trainable_parameters()}


def total_gradient(model: nn.Module, make_loss: MakeLoss, batches: Batches) -> dict[str, mx.array]:
    """∂L/∂θ of the trained leaves, by their paths, summed over the batches."""
    model.train()
    gradient, total = nn.value_and_grad(model, make_loss(model)), None
    for batch in batches:
        _, part = gradient(*batch)
        total = part if total is None else tree_map(mx.add, total, part)
        mx.eval(total)
    return dict(tree_flatten(total))


def small_steps(name: str, layer: nn.Module, gradient: dict[str, mx.array]) -> dict[str, dict[str, mx.array]]:
    """θ − ε sign g of a layer's leaves, by branch and path within the layer."""
    stepped: dict[str, dict[str, mx.array]] = {}
    for path, value in tree_flatten(layer.trainable_parameters()):
        step = value - SMALL_STEP * mx.sign(gradient[f"{name}.{path}"])
        stepped.setdefault(branch_of(path), {})[path] = step.astype(value.dtype)
    return stepped


def branch_of(path: str) -> str:
    """The branch that a leaf belongs to, by its path; DoRA's magnitude goes with the low-rank one."""
    owner, _, leaf = path.rpartition(".")
    return f"{owner}.low_rank".lstrip(".") if leaf in MAGNITUDE_LEAVES else owner


def rate_factors(gains: Gains) -> dict[str, float]:
    """What the rate of each branch is multiplied by, by its path: USUAL_GAIN / the median gain of its kind, so that
    layers keep among themselves the rates that Adam gives them. `others` goes with the rest."""
    kinds: dict[str, list[str]] = {}
    for path in filter(gains.get, gains):  # no gradient comes to the rest
        kinds.setdefault(kind_of(path), []).append(path)
    factors = {}
    for paths in kinds.values():
        factors |= dict.fromkeys(paths, USUAL_GAIN / median(gains[path] for path in paths))
    return factors | ({OTHERS: median(factors.values())} if factors else {})


def kind_of(path: str) -> str:
    """`rotation` or `low_rank` for a branch; nothing for a layer that is trained whole."""
    last = path.rpartition(".")[2]
    return last if last in ("rotation", "low_rank") else ""
