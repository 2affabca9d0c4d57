"""Put adapters on a loaded model: which modules, what each carries, and how to take the result apart again."""

import dataclasses
import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_hybrid.adapters.dora import DoraLinear
from mlx_hybrid.adapters.experts import HybridExperts, is_experts
from mlx_hybrid.adapters.frozen import on_cpu
from mlx_hybrid.adapters.layer import HybridLinear, LayerPlan, fits_butterfly, linear_shape
from mlx_hybrid.adapters.orthogonal import LARGEST_SKEW, dense_block_size, nearest_blocks
from mlx_hybrid.config import AdapterConfig
from mlx_hybrid.errors import ConfigError, nearest

ROUTERS = ("gate", "router", "shared_expert_gate", "gate_up_router")
"""Last parts of the names of MoE routers: adapting one changes which expert answers, so none ever is."""
OUTSIDE = ("lm_head", "embed_tokens", "wte")
AUTO_BLOCK = 8  # the block size that `block_size: auto` asks for, where it divides
EXPERTS = "experts"
"""The target that stands for every stack of MoE experts: r·(in + out) entries for each expert, so only when named."""


@dataclass(frozen=True)
class Attached:
    """What was put on a model."""

    modules: tuple[str, ...]
    trainable: int
    total: int

    def __str__(self) -> str:
        share = 100 * self.trainable / max(1, self.total)
        return f"{len(self.modules)} modules, {self.trainable:,} trainable of {self.total:,} ({share:.2f} %)"


def attach(model: nn.Module, config: AdapterConfig, *, method: str, seed: int = 0) -> Attached:
    """Freeze the model and wrap its target modules in fresh adapters; `full` dequantises and unfreezes it instead.

    Raises ConfigError for a target or unitary name that the model lacks, and for a block size that does not divide.
    """
    if hybrid_layers(model):
        raise ConfigError(
            "The model already carries an adapter; load the base afresh, or fuse the adapter first."
        )
    total = parameter_count(model)
    if method == "full":
        dequantise(model)
        model.unfreeze()
        return Attached(("all",), trainable_count(model), total)
    targets = find_targets(model, config)
    unitary = unitary_names(config, targets)
    keys = mx.random.split(mx.random.key(seed), len(targets))
    plans = plan_layers(targets, config, unitary)
    model.freeze()
    wrapped = [
        (name, layer_class(module, plans[name])(module, plans[name], key))
        for (name, module), key in zip(targets.items(), keys, strict=True)
    ]
    model.update_modules(tree_unflatten(wrapped))
    return Attached(tuple(targets), trainable_count(model), total)


def check_attach(model: nn.Module, config: AdapterConfig, *, method: str) -> None:
    """Raise what `attach` would for a target, unitary name or block size, and change nothing."""
    if method != "full":
        targets = find_targets(model, config)
        plan_layers(targets, config, unitary_names(config, targets))


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
        if is_experts(module):
            refuse_experts(name, module, config)
    return found


def refuse_experts(name: str, module: nn.Module, config: AdapterConfig) -> None:
    """Raise ConfigError for experts that cannot carry what the settings ask."""
    if config.magnitude:
        raise ConfigError(f"adapter.magnitude: {name} is a stack of experts, which DoRA does not take.")
    if getattr(module, "global_scale", None) is not None:
        raise ConfigError(
            f"adapter.targets: {name} is packed with a global scale, and cannot be unpacked to fuse."
        )


def is_meant(target: str, name: str, module: nn.Module) -> bool:
    """Whether a target of the settings names this module; `dense` leaves out routers, heads and experts."""
    if target == "dense":
        return last_part(name) not in (*ROUTERS, *OUTSIDE) and not is_experts(module)
    return is_experts(module) if target == EXPERTS else last_part(name) == target


def refuse_unsupported(model: nn.Module, target: str, found: dict) -> None:
    """Raise ConfigError for a router, and for a target that names nothing which can carry an adapter."""
    if target in ROUTERS:
        raise ConfigError(f"adapter.targets: {target} is a router, which is never adapted.")
    if found:
        return
    if target == EXPERTS:
        raise ConfigError("adapter.targets: the model has no experts; leave them out.")
    kinds = {last_part(n): type(m).__name__ for n, m in model.named_modules() if n}
    if target == "lm_head" and target not in kinds:
        raise ConfigError(
            "adapter.targets: the model has no lm_head: its head is its embedding, which is no target."
        )
    if "Embedding" in kinds.get(target, ""):
        raise ConfigError(
            f"adapter.targets: {target} is an embedding, a table without a product to rotate or add to; "
            "method full trains it."
        )
    if target in kinds:
        raise ConfigError(
            f"adapter.targets: {target} is a {kinds[target]}, and only linear layers and experts carry adapters."
        )
    linear = (nn.Linear, nn.QuantizedLinear)
    known = {last_part(n) for n, m in model.named_modules() if isinstance(m, linear) or is_experts(m)}
    raise ConfigError(
        f'adapter.targets: the model has no module "{target}"; {nearest(target, known | {"dense"})}'
    )


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


def layer_class(module: nn.Module, plan: LayerPlan) -> type[HybridLinear]:
    if is_experts(module):
        return HybridExperts
    return DoraLinear if plan.magnitude else HybridLinear


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


def hybrid_layers(model: nn.Module) -> dict[str, HybridLinear]:
    """Every adapted layer by name, in the model's order."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, HybridLinear)]
    return dict(sorted(found, key=lambda item: natural_order(item[0])))


def refold(model: nn.Module) -> int:
    """Keep every rotation exact between steps, with one look at the device; how many layers folded."""
    layers = [layer for layer in hybrid_layers(model).values() if layer.plan.orthogonal != "none"]
    reach = mx.stack([layer.reach() for layer in layers]).tolist() if layers else []
    due = [
        far > LARGEST_SKEW or layer.plan.orthogonal == "householder"
        for layer, far in zip(layers, reach, strict=True)
    ]
    return sum(layer.refold(force=True) for layer, now in zip(layers, due, strict=True) if now)


def settle(model: nn.Module) -> nn.Module:
    """Form every rotation once, for inference."""
    model.eval()
    for layer in hybrid_layers(model).values():
        layer.settle()
    return model


def unsettle(model: nn.Module) -> nn.Module:
    for layer in hybrid_layers(model).values():
        layer.unsettle()
    return model


def fuse(model: nn.Module, *, dequantize: bool = True) -> nn.Module:
    """Replace every adapted layer by one linear layer, in place; dequantised by default, as a small update is lost
    in the grid of packed weights."""
    fused = [(name, layer.fuse(dequantize=dequantize)) for name, layer in hybrid_layers(model).items()]
    model.update_modules(tree_unflatten(fused))
    return model


def dequantise(model: nn.Module) -> None:
    """Every packed layer as a dense one, in place."""
    from mlx_lm.utils import dequantize_model

    for _, module in model.named_modules():  # mlx-lm matches the plain classes by type
        for base in (nn.QuantizedLinear, nn.QuantizedEmbedding):
            if isinstance(module, base):
                module.__class__ = base
    dequantize_model(model)
    if on_cpu():
        model.set_dtype(mx.float32)  # the modes without a bias give bfloat16, which is slow and inexact there


def trainable_count(model: nn.Module) -> int:
    return sum(value.size for _, value in tree_flatten(model.trainable_parameters()))


def parameter_count(model: nn.Module) -> int:
    """Weights of the model as if unpacked."""
    count = 0
    for _, module in model.named_modules():
        if hasattr(module, "scales"):
            count += module.weight.size * 32 // module.bits
            count += module.bias.size if "bias" in module else 0
        else:
            count += sum(v.size for v in module.values() if isinstance(v, mx.array))
    return count


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
