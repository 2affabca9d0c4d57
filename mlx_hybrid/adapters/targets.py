"""Which modules of a model an adapter goes on, by the names in the settings, and what each carries."""

import math
import re
from dataclasses import dataclass, replace

import mlx.nn as nn

from mlx_hybrid.adapters.butterfly import dense_block_size, nearest_blocks
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.config import AdapterConfig, ButterflyConfig, HouseholderConfig, LowRankConfig, RotationConfig
from mlx_hybrid.errors import ConfigError, check_known, nearest

ROUTERS = ("gate", "router", "shared_expert_gate", "gate_up_router")
"""Last parts of the names of MoE routers: adapting one changes which expert answers, so none ever is."""
OUTSIDE = ("lm_head", "embed_tokens", "wte")
EXPERTS = "experts"
"""The target that stands for every stack of MoE experts: r·(in + out) entries for each expert, so only when named."""
AUTO_BLOCK = 8  # the block size that `block_size: auto` asks for, where it divides


def is_experts(module: nn.Module) -> bool:
    """Whether a module is a stack of linear experts, dense or quantised (mlx-lm's SwitchLinear)."""
    return hasattr(type(module), "num_experts") and hasattr(module, "weight") and module.weight.ndim == 3


def find_targets(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Module]:
    """The modules to adapt, by full name in the model's order."""
    linears, chosen = linear_modules(model), set()
    for target in config.targets:
        names = [name for name, module in linears.items() if is_meant(target, name, module)]
        if not names or target in ROUTERS:
            refuse(model, target)
        chosen |= {*names}
    first = len(model.layers) - config.layers if config.layers else 0
    if first < 0:
        raise ConfigError(f"adapter.layers: {config.layers}, but the model has {len(model.layers)} layers.")
    chosen = {name for name in chosen if (index := layer_index(name)) is None or index >= first}
    found = {name: linears[name] for name in sorted(chosen, key=natural_order)}
    for name in (name for name, module in found.items() if is_experts(module)):
        told = f"adapter.targets: {name} is packed with a global scale, and cannot be unpacked to fuse."
        if dora := config.low_rank and config.low_rank.magnitude:
            told = f"adapter.low_rank.magnitude: {name} is a stack of experts, which DoRA does not take."
        if dora or getattr(found[name], "global_scale", None) is not None:
            raise ConfigError(told)
    return found


def is_meant(target: str, name: str, module: nn.Module) -> bool:
    """Whether a target of the settings names this module; `dense` leaves out routers, heads and experts."""
    if target == "dense":
        return last_part(name) not in (*ROUTERS, *OUTSIDE) and not is_experts(module)
    return is_experts(module) if target == EXPERTS else f".{name}".endswith(f".{target}")


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    linear = (nn.Linear, nn.QuantizedLinear)
    return {name: m for name, m in model.named_modules() if isinstance(m, linear) or is_experts(m)}


def refuse(model: nn.Module, target: str) -> None:
    """Raise ConfigError for a router, or a target that names nothing which can carry an adapter."""
    kind = next((type(m).__name__ for n, m in model.named_modules() if f".{n}".endswith(f".{target}")), "")
    if target in ROUTERS:
        fault = f"{target} is a router, which is never adapted."
    elif target == EXPERTS:
        fault = "the model has no experts; leave them out."
    elif target == "lm_head" and not kind:
        fault = "the model has no lm_head: its head is its embedding, which is no target."
    elif "Embedding" in kind:
        fault = f"{target} is an embedding, a table without a product to rotate; method full trains it."
    elif kind:
        fault = f"{target} is a {kind}, and only linear layers and experts carry adapters."
    else:
        known = {last_part(name) for name in linear_modules(model)} | {"dense"}
        fault = f'the model has no module "{target}"; {nearest(target, known)}'
    raise ConfigError(f"adapter.targets: {fault}")


def last_part(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def layer_index(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def within_layer(name: str) -> str:
    """The name below the transformer layer's number, as mlx-lm's `keys` have it; the whole name outside the layers."""
    return re.split(r"(?:^|\.)\d+\.", name, maxsplit=1)[-1]


def natural_order(name: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


@dataclass(frozen=True)
class LayerPlan:
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
    known = {last_part(name) for name in targets}
    for name in config.unitary:
        check_known(name, known, "adapter.unitary: no adapted module")
    plans, shapes = {}, {name: linear_shape(module) for name, module in targets.items()}
    common = math.gcd(*(d_in for d_in, _ in shapes.values()))
    for name, (d_in, d_out) in shapes.items():
        plans[name] = layer_plan(config, d_in, unitary=last_part(name) in config.unitary)
        plans[name].check_fit(name, d_in, d_out, common=common)
    return plans


def layer_plan(config: AdapterConfig, d_in: int, *, unitary: bool = False) -> LayerPlan:
    """What one layer of `d_in` inputs carries, a unitary one the rotation alone; block size 0 (auto) is found here."""
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
    asked = f"rotation.block_size {rotation.block_size} with {rotation.factors} factors"
    return f"{asked} makes blocks of {dense}, which do not divide the {d_in} inputs of {name}; {way}."
