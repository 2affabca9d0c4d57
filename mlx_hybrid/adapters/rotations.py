"""The rotations of all layers, formed together in a training step.

One layer's small matrices are a few tens of tiny operations, which on a narrow model cost more than the rotation;
layers of equal size share them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.adapters.orthogonal import cayley, core_of_gram, skew


@contextmanager
def formed(model: nn.Module) -> Iterator[None]:
    """Within it the layers' forward passes use small matrices formed together, and gradients flow through them."""
    layers = layers_to_form(model)
    try:
        form_cores([layer for layer in layers if layer.plan.orthogonal == "householder"])
        form_blocks([layer for layer in layers if layer.plan.orthogonal == "butterfly"])
        yield
    finally:
        for layer in layers:
            layer.unsettle()


def layers_to_form(model: nn.Module) -> list[HybridLinear]:
    """None where activations are recomputed: what runs again in the backward pass gets gradients for what it is given,
    not for what it finds formed."""
    if any(getattr(type(layer), "recomputes", False) for layer in model.layers):
        return []
    return [layer for layer in hybrid_layers(model).values() if not layer.settled]


def by_shape(layers: list[HybridLinear], size: Callable[[HybridLinear], int]) -> list[list[HybridLinear]]:
    groups = defaultdict(list)
    for layer in layers:
        groups[size(layer)].append(layer)
    return list(groups.values())


def form_cores(layers: list[HybridLinear]) -> None:
    """T of every chain of reflections: the chains of one length are inverted as one batch."""
    for group in by_shape(layers, lambda layer: layer.plan.reflections):
        cores = core_of_gram(mx.stack([layer.house_u.T @ layer.house_u for layer in group]))
        for layer, core in zip(group, cores, strict=True):
            layer.settle(core)


def form_blocks(layers: list[HybridLinear]) -> None:
    """R of every butterfly: the Cayley maps of all factors with equal blocks are one batch."""
    for group in by_shape(layers, lambda layer: layer.plan.block_size):
        size = group[0].plan.block_size
        triangles = mx.concatenate([layer.oft_q.reshape(-1, layer.oft_q.shape[-1]) for layer in group])
        bases = mx.concatenate([layer.oft_base.reshape(-1, size, size) for layer in group])
        maps = cayley(skew(triangles, size)) @ bases
        begin = 0
        for layer in group:
            end = begin + layer.oft_base.shape[0] * layer.oft_base.shape[1]
            layer.settle(layer.compose(maps[begin:end].reshape(layer.oft_base.shape)))
            begin = end
