"""What each adapted layer carries, from the settings and the layer's sizes."""

import math
from dataclasses import dataclass, replace

import mlx.nn as nn

from mlx_hybrid.adapters.butterfly import dense_block_size, nearest_blocks
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.adapters.targets import check_unitary, last_part
from mlx_hybrid.config import AdapterConfig, ButterflyConfig, HouseholderConfig, LowRankConfig, RotationConfig
from mlx_hybrid.errors import ConfigError

AUTO_BLOCK = 8  # the block size that `block_size: auto` asks for, where it divides


@dataclass(frozen=True)
class LayerPlan:
    """What one layer carries."""

    rotation: RotationConfig | None = None
    low_rank: LowRankConfig | None = None

    def check_fit(self, name: str, d_in: int, d_out: int, *, common: int = 0) -> None:
        """Raise ConfigError where dense blocks do not divide a layer's inputs, or there are more reflections than
        inputs or more columns than the layer can use. `common` divides the inputs of all layers."""
        rotation, low_rank, fault = self.rotation, self.low_rank, ""
        if isinstance(rotation, HouseholderConfig) and rotation.reflections > d_in:
            fault = f"rotation.reflections: {rotation.reflections} is more than the {d_in} inputs of {name}."
        elif isinstance(rotation, ButterflyConfig):
            fault = block_fault(name, d_in, rotation, common or d_in)
        if low_rank and low_rank.rank > min(d_in, d_out):
            fault = f"low_rank.rank: {low_rank.rank} is more than {name} of {d_in} × {d_out} can use."
        if fault:
            raise ConfigError(f"adapter.{fault}")


def plan_layers(targets: dict[str, nn.Module], config: AdapterConfig) -> dict[str, LayerPlan]:
    """What each module carries. Raises ConfigError for sizes that do not fit one of them."""
    check_unitary(config, targets)
    plans, shapes = {}, {name: linear_shape(module) for name, module in targets.items()}
    common = math.gcd(*(d_in for d_in, _ in shapes.values()))
    for name, (d_in, d_out) in shapes.items():
        plans[name] = layer_plan(config, d_in, unitary=last_part(name) in config.unitary)
        plans[name].check_fit(name, d_in, d_out, common=common)
    return plans


def layer_plan(config: AdapterConfig, d_in: int, *, unitary: bool = False) -> LayerPlan:
    """What one layer of `d_in` inputs carries, a unitary one the rotation alone; a block size of 0 (auto) becomes what
    `nearest_blocks` finds."""
    rotation = config.rotation
    if isinstance(rotation, ButterflyConfig) and not rotation.block_size:
        block, factors = nearest_blocks(d_in, AUTO_BLOCK, rotation.factors)
        rotation = replace(rotation, block_size=block, factors=factors) if block else rotation
    return LayerPlan(rotation, None if unitary else config.low_rank)


def block_fault(name: str, d_in: int, rotation: ButterflyConfig, common: int) -> str:
    """What is wrong with a butterfly's blocks on a layer, and the nearest that are not; empty where they divide."""
    if d_in % 2:
        return f"rotation butterfly: the {d_in} inputs of {name} have no even divisor; use householder."
    dense = dense_block_size(rotation.block_size, rotation.factors)
    if dense and d_in % dense == 0:
        return ""
    way = "block_size auto finds blocks for each layer"
    block, factors = nearest_blocks(common, rotation.block_size, rotation.factors)
    if block:
        way = f"block_size {block} with factors {factors} divides every layer's, and {way}"
    return (
        f"rotation.block_size {rotation.block_size} with {rotation.factors} factors makes blocks of {dense}, "
        f"which do not divide the {d_in} inputs of {name}; {way}."
    )
