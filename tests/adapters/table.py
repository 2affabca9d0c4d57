"""The rows of the table of layers × properties: bases, what is put on them, and layers that have left their start."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.switch_layers import SwitchLinear
from toys import MODES, base_linear

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.frozen import dense_weight, linear_shape, use_fast_products
from mlx_hybrid.adapters.layer import HybridExperts, HybridLinear
from mlx_hybrid.adapters.targets import LayerPlan
from mlx_hybrid.config import ButterflyConfig, HouseholderConfig, LowRankConfig

BASES = ["", *MODES]
BASE_IDS = ["dense", *MODES]
D_IN, D_OUT = 64, 96
BLOCK = 8

LORA, LORA_GA = LowRankConfig(rank=4), LowRankConfig(rank=4, start="lora-ga")
SCALE = 8.0  # α/√r
CHAIN, FACTORS = HouseholderConfig(reflections=6), ButterflyConfig(block_size=BLOCK, factors=3)
PLANS = {
    "lora": LayerPlan(None, LORA),
    "lora-ga": LayerPlan(None, LORA_GA),
    "hra": LayerPlan(CHAIN),
    "boft": LayerPlan(FACTORS),
    "hybrid": LayerPlan(CHAIN, LORA),
    "hybrid-boft": LayerPlan(FACTORS, LORA_GA),
    "unitary": LayerPlan(ButterflyConfig(block_size=BLOCK, factors=4)),
}
ROTATING = [name for name, plan in PLANS.items() if plan.rotation]
REFLECTING = [name for name, plan in PLANS.items() if plan.rotation == CHAIN]


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
        if (leaf := layer.leaves().get(name)) is not None:
            step = size * mx.random.normal(leaf.shape, key=mx.random.key(20 + index))
            layer.put_leaves({name: leaf + step})
    mx.eval(layer.parameters())
    return layer


def inputs(rows: int = 24) -> mx.array:
    return mx.random.normal((rows, D_IN), key=mx.random.key(9))


def leaves(layer: HybridLinear) -> dict[str, np.ndarray]:
    """The adapter's tensors in float64."""
    return {name: np.array(leaf, dtype=np.float64) for name, leaf in layer.leaves().items()}


def weight(layer: HybridLinear) -> np.ndarray:
    return np.array(dense_weight(layer.linear, mx.float32), dtype=np.float64)


def bias(layer: HybridLinear) -> np.ndarray | None:
    return np.array(layer.linear.bias, dtype=np.float64) if "bias" in layer.linear else None


def tensors(module: nn.Module) -> dict[str, mx.array]:
    return {name: value + 0 for name, value in tree_flatten(module.parameters())}


def fused(model: nn.Module) -> nn.Module:
    """The model with each adapted layer, or stack of experts, as one without an adapter."""
    made: dict[str, nn.Module] = dict(hybrid_layers(model))
    for name, layer in made.items():
        if isinstance(layer, HybridExperts):
            bias = "bias" in layer.linear
            made[name] = SwitchLinear(*linear_shape(layer.linear), layer.linear.num_experts, bias=bias)
            made[name].update(
                {"weight": layer.merged_weight()} | ({"bias": layer.linear.bias} if bias else {})
            )
        else:
            made[name] = layer.fuse()
    model.update_modules(tree_unflatten(list(made.items())))
    return model
