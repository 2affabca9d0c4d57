"""The rows of the table of layers × properties: bases, what is put on them, and layers that have left their start."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from toys import MODES, base_linear

from mlx_hybrid.adapters.frozen import dense_weight, use_fast_products
from mlx_hybrid.adapters.layer import HybridLinear, LayerPlan

BASES = ["", *MODES]
BASE_IDS = ["dense", *MODES]
D_IN, D_OUT = 64, 96
BLOCK = 8

PLANS = {
    "lora": LayerPlan(orthogonal="none", rank=4),
    "lora-ga": LayerPlan(orthogonal="none", rank=4, offsets=True),
    "hra": LayerPlan(orthogonal="householder", reflections=6),
    "boft": LayerPlan(orthogonal="butterfly", block_size=BLOCK, factors=3),
    "hybrid": LayerPlan(orthogonal="householder", reflections=6, rank=4),
    "hybrid-boft": LayerPlan(orthogonal="butterfly", block_size=BLOCK, factors=3, rank=4, offsets=True),
    "unitary": LayerPlan(orthogonal="butterfly", block_size=BLOCK, factors=4),
}
ROTATING = [name for name, plan in PLANS.items() if plan.orthogonal != "none"]


class Wrapped(nn.Module):
    """One layer at the end of a path, as in a model."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def __call__(self, x: mx.array) -> mx.array:
        return self.layer(x)


def base(mode: str, bias: bool = False) -> nn.Module:
    """A base layer that takes the same path to its product as the one inside an adapter."""
    return use_fast_products(Wrapped(base_linear(mode, bias=bias, d_in=D_IN, d_out=D_OUT))).layer


def fresh(mode: str, method: str, bias: bool = False) -> HybridLinear:
    return HybridLinear(base(mode, bias), PLANS[method], mx.random.key(5))


def shaken(mode: str, method: str, bias: bool = False, size: float = 0.05) -> HybridLinear:
    """A layer whose every leaf has moved, the frozen starts of LoRA-GA too."""
    layer = fresh(mode, method, bias)
    for index, name in enumerate(("house_u", "oft_q", "lora_a", "lora_b", "lora_a0", "lora_b0")):
        if name in layer:
            layer[name] = layer[name] + size * mx.random.normal(
                layer[name].shape, key=mx.random.key(20 + index)
            )
    mx.eval(layer.parameters())
    return layer


def inputs(rows: int = 24) -> mx.array:
    return mx.random.normal((rows, D_IN), key=mx.random.key(9))


def leaves(layer: HybridLinear) -> dict[str, np.ndarray]:
    """The adapter's tensors in float64."""
    names = ("house_u", "oft_q", "oft_base", "lora_a", "lora_b", "lora_a0", "lora_b0")
    return {name: np.array(layer[name], dtype=np.float64) for name in names if name in layer}


def weight(layer: HybridLinear) -> np.ndarray:
    return np.array(dense_weight(layer.linear, mx.float32), dtype=np.float64)


def bias(layer: HybridLinear) -> np.ndarray | None:
    return np.array(layer.linear.bias, dtype=np.float64) if "bias" in layer.linear else None


def tensors(module: nn.Module) -> dict[str, mx.array]:
    return {name: value + 0 for name, value in tree_flatten(module.parameters())}
