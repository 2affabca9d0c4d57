"""Which modules of a model an adapter goes on, by the names in the settings."""

import re

import mlx.nn as nn

from mlx_hybrid.config import AdapterConfig
from mlx_hybrid.errors import ConfigError, nearest

ROUTERS = ("gate", "router", "shared_expert_gate", "gate_up_router")
"""Last parts of the names of MoE routers: adapting one changes which expert answers, so none ever is."""
OUTSIDE = ("lm_head", "embed_tokens", "wte")
EXPERTS = "experts"
"""The target that stands for every stack of MoE experts: r·(in + out) entries for each expert, so only when named."""


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
    chosen = in_last_layers(model, config.layers, chosen)
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


def in_last_layers(model: nn.Module, last: int, names: set[str]) -> set[str]:
    """The names within the last N transformer layers; all of them for N = 0."""
    first = len(model.layers) - last if last else 0
    if first < 0:
        raise ConfigError(f"adapter.layers: {last}, but the model has {len(model.layers)} layers.")
    return {name for name in names if (index := layer_index(name)) is None or index >= first}


def check_unitary(config: AdapterConfig, targets: dict[str, nn.Module]) -> None:
    known = {last_part(name) for name in targets}
    if absent := next((name for name in config.unitary if name not in known), None):
        raise ConfigError(f'adapter.unitary: no adapted module "{absent}"; {nearest(absent, known)}')


def last_part(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def layer_index(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def within_layer(name: str) -> str:
    """The name below the transformer layer's number, as mlx-lm's `keys` have it; the whole name outside the layers."""
    return re.split(r"(?:^|\.)\d+\.", name, maxsplit=1)[-1]


def natural_order(name: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
