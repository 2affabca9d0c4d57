"""What each adapted layer carries, from the settings and the layer's sizes."""

import dataclasses
import math

import mlx.nn as nn

from mlx_hybrid.adapters.butterfly import dense_block_size, nearest_blocks
from mlx_hybrid.adapters.layer import LayerPlan, fits_butterfly, linear_shape
from mlx_hybrid.adapters.targets import last_part, unitary_names
from mlx_hybrid.config import AdapterConfig
from mlx_hybrid.errors import ConfigError

AUTO_BLOCK = 8  # the block size that `block_size: auto` asks for, where it divides


def plan_layers(
    targets: dict[str, nn.Module], config: AdapterConfig, unitary: set[str] | None = None
) -> dict[str, LayerPlan]:
    """What each module carries. Raises ConfigError for sizes that do not fit one of them."""
    alone = unitary_names(config, targets) if unitary is None else unitary
    plans = {
        name: layer_plan(config, linear_shape(module)[0], unitary=last_part(name) in alone)
        for name, module in targets.items()
    }
    check_blocks(targets, plans)
    return plans


def layer_plan(config: AdapterConfig, d_in: int, *, unitary: bool = False) -> LayerPlan:
    """What one layer of `d_in` inputs carries; a unitary one carries the rotation alone.

    A block size of 0 becomes what `nearest_blocks` finds for this layer; none is left as 0.
    """
    names = {f.name for f in dataclasses.fields(LayerPlan)}
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in names}
    values["offsets"] = config.start == "lora-ga" and not unitary
    if config.orthogonal == "butterfly" and not config.block_size:
        block, factors = nearest_blocks(d_in, AUTO_BLOCK, config.factors)
        values |= {"block_size": block, "factors": factors}
    return LayerPlan(**(values | ({"rank": 0, "start": "zeros"} if unitary else {})))


def check_blocks(targets: dict[str, nn.Module], plans: dict[str, LayerPlan]) -> None:
    """Raise ConfigError where a dense block does not divide a layer's inputs, or reflections outnumber them."""
    common = math.gcd(*(linear_shape(module)[0] for module in targets.values()))
    for name, module in targets.items():
        plan, (d_in, d_out) = plans[name], linear_shape(module)
        if plan.orthogonal == "butterfly" and not fits_butterfly(d_in, plan):
            raise ConfigError(block_fault(name, d_in, plan, common))
        if plan.orthogonal == "householder" and plan.reflections > d_in:
            raise ConfigError(
                f"adapter.reflections: {plan.reflections} is more than the {d_in} inputs of {name}."
            )
        if plan.rank > min(d_in, d_out):
            raise ConfigError(f"adapter.rank: {plan.rank} is more than {name} of {d_in} × {d_out} can use.")


def block_fault(name: str, d_in: int, plan: LayerPlan, common: int) -> str:
    """What is wrong with a butterfly's blocks on a layer, and the nearest that are not."""
    if d_in % 2:
        return f"adapter.orthogonal butterfly: the {d_in} inputs of {name} have no even divisor; use householder."
    dense = dense_block_size(plan.block_size, plan.factors)
    way = "block_size auto finds blocks for each layer"
    block, factors = nearest_blocks(common, plan.block_size, plan.factors)
    if block:
        way = f"block_size {block} with factors {factors} divides every layer's, and {way}"
    return (
        f"adapter.block_size {plan.block_size} with {plan.factors} factors makes blocks of {dense}, which do not "
        f"divide the {d_in} inputs of {name}; {way}."
    )
