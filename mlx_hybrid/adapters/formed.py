"""The cores of all layers' reflections, formed together in a training step.

Inverting one layer's core is some fifty operations on a (k, k) matrix, which on a narrow model cost more than the
reflections; chains of one length are inverted as one batch. A butterfly's blocks gain nothing from it.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.attach import rotations
from mlx_hybrid.adapters.householder import Householder, core_of_gram


@contextmanager
def formed(model: nn.Module) -> Iterator[None]:
    """Within it the layers' forward passes use cores formed together, and gradients flow through them."""
    chains = chains_to_form(model)
    try:
        form_cores(chains)
        yield
    finally:
        for chain in chains:
            chain.unsettle()


def chains_to_form(model: nn.Module) -> list[Householder]:
    """None where activations are recomputed: what runs again in the backward pass gets gradients for what it is given,
    not for what it finds formed."""
    if any(getattr(type(layer), "recomputes", False) for layer in model.layers):
        return []
    return [r for r in rotations(model) if isinstance(r, Householder) and not r.settled]


def form_cores(chains: list[Householder]) -> None:
    """T of every chain of reflections."""
    by_length = defaultdict(list)
    for chain in chains:
        by_length[chain.house_u.shape[1]].append(chain)
    for group in by_length.values():
        cores = core_of_gram(mx.stack([chain.house_u.T @ chain.house_u for chain in group]))
        for chain, core in zip(group, cores, strict=True):
            chain.settle(core)
