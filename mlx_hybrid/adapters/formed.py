"""The cores of all layers' reflections, formed together in a training step.

Inverting one layer's core is some fifty operations on a (k, k) matrix, which on a narrow model cost more than the
reflections; chains of one length are inverted as one batch. A butterfly's blocks gain nothing from it.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.butterfly import core_of_gram
from mlx_hybrid.adapters.layer import HybridLinear


@contextmanager
def formed(model: nn.Module) -> Iterator[None]:
    """Within it the layers' forward passes use cores formed together, and gradients flow through them."""
    layers = layers_to_form(model)
    try:
        form_cores(layers)
        yield
    finally:
        for layer in layers:
            layer.unsettle()


def layers_to_form(model: nn.Module) -> list[HybridLinear]:
    """None where activations are recomputed: what runs again in the backward pass gets gradients for what it is given,
    not for what it finds formed."""
    if any(getattr(type(layer), "recomputes", False) for layer in model.layers):
        return []
    layers = hybrid_layers(model).values()
    return [layer for layer in layers if layer.plan.orthogonal == "householder" and not layer.settled]


def form_cores(layers: list[HybridLinear]) -> None:
    """T of every chain of reflections."""
    by_length = defaultdict(list)
    for layer in layers:
        by_length[layer.plan.reflections].append(layer)
    for group in by_length.values():
        cores = core_of_gram(mx.stack([layer.house_u.T @ layer.house_u for layer in group]))
        for layer, core in zip(group, cores, strict=True):
            layer.settle(core)
