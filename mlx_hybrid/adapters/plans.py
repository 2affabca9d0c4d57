"""What each adapted layer carries, from the settings and the layer's sizes."""

import math
from dataclasses import dataclass, replace

import mlx.nn as nn

from mlx_hybrid.adapters.butterfly import dense_block_size, nearest_blocks
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.adapters.targets import last_part, unitary_names
from mlx_hybrid.config import AdapterConfig, ButterflyConfig, HouseholderConfig, LowRankConfig, RotationConfig
from mlx_hybrid.errors import ConfigError

AUTO_BLOCK = 8  # the block size that `block_size: auto` asks for, where it divides


@dataclass(frozen=True)
class LayerPlan:
    """What one layer carries."""

    rotation: RotationConfig | None = None
    low_rank: LowRankConfig | None = None

    @property
    def from_gradient(self) -> bool:
        return bool(self.low_rank and self.low_rank.from_gradient)

    def parameter_count(self, d_in: int, d_out: int, experts: int = 1) -> int:
        """Trainable entries: k·in, or m·in·(b−1)/2, plus r·(in + out) for each expert, and out with magnitudes."""
        rotation, low_rank, count = self.rotation, self.low_rank, 0
        if isinstance(rotation, HouseholderConfig):
            count = rotation.reflections * d_in
        elif rotation:
            count = rotation.factors * d_in * (rotation.block_size - 1) // 2
        if low_rank:
            count += experts * low_rank.rank * (d_in + d_out) + low_rank.magnitude * d_out
        return count


def plan_layers(targets: dict[str, nn.Module], config: AdapterConfig) -> dict[str, LayerPlan]:
    """What each module carries. Raises ConfigError for sizes that do not fit one of them."""
    alone, plans = unitary_names(config, targets), {}
    shapes = {name: linear_shape(module) for name, module in targets.items()}
    common = math.gcd(*(d_in for d_in, _ in shapes.values()))
    for name, (d_in, d_out) in shapes.items():
        plans[name] = layer_plan(config, d_in, unitary=last_part(name) in alone)
        check_fit(name, plans[name], d_in, d_out, common=common)
    return plans


def layer_plan(config: AdapterConfig, d_in: int, *, unitary: bool = False) -> LayerPlan:
    """What one layer of `d_in` inputs carries; a unitary one carries the rotation alone."""
    return LayerPlan(fit_blocks(config.rotation, d_in), None if unitary else config.low_rank)


def fit_blocks(rotation: RotationConfig | None, d_in: int) -> RotationConfig | None:
    """The rotation with a block size of 0 as what `nearest_blocks` finds for `d_in`; none is left as 0."""
    if not isinstance(rotation, ButterflyConfig) or rotation.block_size:
        return rotation
    block, factors = nearest_blocks(d_in, AUTO_BLOCK, rotation.factors)
    return replace(rotation, block_size=block, factors=factors) if block else rotation


def check_fit(name: str, plan: LayerPlan, d_in: int, d_out: int, *, common: int = 0) -> None:
    """Raise ConfigError where dense blocks do not divide a layer's inputs, or there are more reflections than inputs or
    more columns than the layer can use. `common` divides the inputs of all layers."""
    rotation, low_rank, fault = plan.rotation, plan.low_rank, ""
    if isinstance(rotation, HouseholderConfig) and rotation.reflections > d_in:
        fault = f"rotation.reflections: {rotation.reflections} is more than the {d_in} inputs of {name}."
    elif isinstance(rotation, ButterflyConfig):
        fault = block_fault(name, d_in, rotation, common or d_in)
    if low_rank and low_rank.rank > min(d_in, d_out):
        fault = f"low_rank.rank: {low_rank.rank} is more than {name} of {d_in} × {d_out} can use."
    if fault:
        raise ConfigError(f"adapter.{fault}")


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
