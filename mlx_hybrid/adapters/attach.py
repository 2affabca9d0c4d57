"""Put adapters on a loaded model: which modules, what each carries, and how to take the result apart again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_hybrid.adapters.frozen import on_cpu
from mlx_hybrid.adapters.householder import Householder, core_of_gram
from mlx_hybrid.adapters.layer import HybridLinear, Rotation, layer_class
from mlx_hybrid.adapters.targets import find_targets, natural_order, plan_layers
from mlx_hybrid.config import AdapterConfig
from mlx_hybrid.errors import ConfigError


@dataclass(frozen=True)
class Attached:
    """What was put on a model: the modules' names, and how many of all its numbers train."""

    modules: tuple[str, ...]
    trainable: int
    total: int

    def __str__(self) -> str:
        share = f"{100 * self.trainable / max(1, self.total):.2f} %"
        return f"{len(self.modules)} modules, {self.trainable:,} trainable of {self.total:,} ({share})"


def attach(model: nn.Module, config: AdapterConfig, *, seed: int = 0) -> Attached:
    """Freeze the model and wrap its targets in fresh adapters; without branches (`full`), dequantise and unfreeze it.
    Raises ConfigError for a target or unitary name that the model lacks, and for a block size that does not divide."""
    from mlx_lm.utils import get_total_parameters

    total = get_total_parameters(model)
    if hybrid_layers(model):
        way = "load the base afresh, or fuse the adapter first."
        raise ConfigError(f"The model already carries an adapter; {way}")
    if config.full:
        dequantise(model)
        model.unfreeze()
        return Attached(("all",), trainable_count(model), total)
    targets = find_targets(model, config)
    plans = plan_layers(targets, config)
    keys = mx.random.split(mx.random.key(seed), len(targets))
    model.freeze()
    for (name, plan), key in zip(plans.items(), keys, strict=True):
        layer = layer_class(targets[name], plan)(targets[name], plan, key)
        model.update_modules(tree_unflatten([(name, layer)]))
    return Attached(tuple(targets), trainable_count(model), total)


def hybrid_layers(model: nn.Module) -> dict[str, HybridLinear]:
    """Every adapted layer by name, in the model's order."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, HybridLinear)}
    return {name: found[name] for name in sorted(found, key=natural_order)}


def rotations(model: nn.Module) -> list[Rotation]:
    """Every adapted layer's rotation, in the model's order."""
    return [layer.rotation for layer in hybrid_layers(model).values() if layer.rotation is not None]


def refold(model: nn.Module) -> int:
    """Keep every rotation exact between steps, with one look at the device; how many folded."""
    found = rotations(model)
    reaches = mx.stack([rotation.reach() for rotation in found]).tolist() if found else []
    return sum(rotation.refold(reach) for rotation, reach in zip(found, reaches, strict=True))


def settle(model: nn.Module) -> nn.Module:
    """Form every rotation once, for inference."""
    model.eval()
    for rotation in rotations(model):
        rotation.settle()
    return model


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it the model is its base: adapted layers give way to the linear ones that they hold."""
    layers = hybrid_layers(model)
    model.update_modules(tree_unflatten([(name, layer.linear) for name, layer in layers.items()]))
    try:
        yield
    finally:
        model.update_modules(tree_unflatten(list(layers.items())))


@contextmanager
def formed(model: nn.Module) -> Iterator[None]:
    """Within it the cores of all layers' reflections are formed together, and gradients flow through them. Inverting
    one core is some fifty operations on a (k, k) matrix: chains of one length are one batch. Not where activations are
    recomputed: what runs again gets gradients for what it is given, not for what it finds formed."""
    recomputes = any(getattr(type(layer), "recomputes", False) for layer in model.layers)
    chains = [r for r in rotations(model) if isinstance(r, Householder) and not (r.settled or recomputes)]
    lengths: dict[int, list[Householder]] = {}
    for chain in chains:
        lengths.setdefault(chain.house_u.shape[1], []).append(chain)
    try:
        for alike in lengths.values():
            cores = core_of_gram(mx.stack([chain.house_u.T @ chain.house_u for chain in alike]))
            for chain, core in zip(alike, cores, strict=True):
                chain.settle(core)
        yield
    finally:
        for chain in chains:
            chain.unsettle()


def dequantise(model: nn.Module) -> None:
    """Every packed layer as a dense one, in place."""
    from mlx_lm.utils import dequantize_model

    packed = {name: module for name, module in model.named_modules() if hasattr(module, "dense")}
    model.update_modules(tree_unflatten([(name, module.unpacked_layer()) for name, module in packed.items()]))
    for _, module in model.named_modules():  # mlx-lm matches the plain classes by type
        for base in (nn.QuantizedLinear, nn.QuantizedEmbedding):
            if isinstance(module, base):
                module.__class__ = base
    dequantize_model(model)
    if on_cpu():
        model.set_dtype(mx.float32)  # the modes without a bias give bfloat16, which is slow and inexact there


def trainable_count(model: nn.Module) -> int:
    return sum(value.size for _, value in tree_flatten(model.trainable_parameters()))
