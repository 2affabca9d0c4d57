"""Which modules of a model an adapter goes on, by the names in the settings."""

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
    linears = {
        name: module
        for name, module in sorted(model.named_modules(), key=lambda item: natural_order(item[0]))
        if isinstance(module, nn.Linear | nn.QuantizedLinear) or is_experts(module)
    }
    chosen: dict[str, nn.Module] = {}
    for target in config.targets:
        found = {name: module for name, module in linears.items() if is_meant(target, name, module)}
        refuse_unsupported(model, target, found)
        chosen |= found
    names = set(layer_window(model, config.layers, chosen))
    found = {name: module for name, module in linears.items() if name in names}
    for name, module in found.items():
        if is_experts(module) and config.low_rank and config.low_rank.magnitude:
            told = f"adapter.low_rank.magnitude: {name} is a stack of experts, which DoRA does not take."
            raise ConfigError(told)
        if is_experts(module) and getattr(module, "global_scale", None) is not None:
            told = f"adapter.targets: {name} is packed with a global scale, and cannot be unpacked to fuse."
            raise ConfigError(told)
    return found


def is_meant(target: str, name: str, module: nn.Module) -> bool:
    """Whether a target of the settings names this module; `dense` leaves out routers, heads and experts."""
    if target == "dense":
        return last_part(name) not in (*ROUTERS, *OUTSIDE) and not is_experts(module)
    return is_experts(module) if target == EXPERTS else ends_with(name, target)


def refuse_unsupported(model: nn.Module, target: str, found: dict) -> None:
    """Raise ConfigError for a router, and for a target that names nothing which can carry an adapter."""
    if found and target not in ROUTERS:
        return
    kind = next((type(m).__name__ for n, m in model.named_modules() if ends_with(n, target)), "")
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
        linear = (nn.Linear, nn.QuantizedLinear)
        known = {last_part(n) for n, m in model.named_modules() if isinstance(m, linear) or is_experts(m)}
        fault = f'the model has no module "{target}"; {nearest(target, known | {"dense"})}'
    raise ConfigError(f"adapter.targets: {fault}")


def layer_window(model: nn.Module, last: int, chosen: dict[str, nn.Module]) -> list[str]:
    """The chosen names within the last N transformer layers; all of them for N = 0."""
    if not last:
        return list(chosen)
    count = len(model.layers)
    if last > count:
        raise ConfigError(f"adapter.layers: {last}, but the model has {count} layers.")
    return [name for name in chosen if (index := layer_index(name)) is None or index >= count - last]


def unitary_names(config: AdapterConfig, targets: dict[str, nn.Module]) -> set[str]:
    known = {last_part(name) for name in targets}
    for name in config.unitary:
        if name not in known:
            raise ConfigError(f'adapter.unitary: no adapted module "{name}"; {nearest(name, known)}')
    return set(config.unitary)


def ends_with(name: str, target: str) -> bool:
    """Whether a module's name is `target`, or its last parts are."""
    return name == target or name.endswith(f".{target}")


def last_part(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def layer_index(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def within_layer(name: str) -> str:
    """The name below the transformer layer's number, as mlx-lm's `keys` have it; the whole name outside the layers."""
    parts = name.split(".")
    position = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(parts[position + 1 :])


def natural_order(name: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]
