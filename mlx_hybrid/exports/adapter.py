"""What is exported: an adapter with the weights it was trained on, layer by layer."""

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_hybrid.adapters.attach import layer_class
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.adapters.plans import layer_plan
from mlx_hybrid.adapters.store import AdapterInfo, read_adapter_config, read_weights
from mlx_hybrid.adapters.strength import write_at_strength
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.config import AdapterConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.weights import ModelWeights, weights_of
from mlx_hybrid.models.adapted import find_adapter, own_name
from mlx_hybrid.models.base import base_of, find_model, fingerprints, identity

EXPERTS_STAY = (
    "MLX stacks a layer's experts into one weight, which PEFT and transformers store otherwise, so an adapter on "
    "experts cannot be exported or fused yet; chat, serve and evaluate run it, and one trained without experts among "
    "adapter.targets can be exported."
)
ROWS = 2  # random rows: a wrong factor escapes them with probability zero


@dataclass(frozen=True)
class Source:
    """An adapter folder, its leaves by module, and its base."""

    folder: Path
    info: AdapterInfo
    leaves: dict[str, dict[str, mx.array]]
    base: ModelWeights
    name: str

    @property
    def trained(self) -> dict[str, mx.array]:
        """Whole tensors that full fine-tuning changed, by name; none of an adapter."""
        leaves = self.leaves if self.info.adapter.full else {}
        named = {f"{name}.{leaf}": value for name, parts in leaves.items() for leaf, value in parts.items()}
        return {name: self.base.from_model(name, value) for name, value in named.items()}

    def changed(self, weights: ModelWeights) -> list[str]:
        """The tensors of `weights` that training changed; MLX renames some as it loads, which is refused."""
        names, changed = (
            weights.names(),
            {f"{module}.weight" for module in self.info.modules} | self.trained.keys(),
        )
        if absent := sorted(changed.difference(names)):
            raise ConfigError(
                f"{weights.folder}: holds no {absent[0]}, which was trained; this architecture's names differ between "
                "MLX and Hugging Face, which cannot be carried yet."
            )
        return [name for name in names if name in changed]

    def layer(self, module: str, weights: ModelWeights) -> HybridLinear:
        """The adapted layer on its weight (out, in) of `weights`, read when first used; for a plain LoRA never."""
        weight = weights.unpacked(f"{module}.weight")
        linear = nn.Linear(*weight.shape[::-1], bias=False)
        linear.weight = weight
        unitary = last_part(module) in self.info.adapter.unitary
        try:
            return layer_on(linear, self.info.adapter, self.leaves[module], unitary=unitary)
        except ValueError as error:
            raise ConfigError(
                f"{weights.folder}: {module} is {tuple(weight.shape)} there, which does not fit the adapter's "
                f"{error}; this is another model."
            ) from None


def layer_on(
    linear: nn.Module, config: AdapterConfig, leaves: dict[str, mx.array], *, unitary: bool = False
) -> HybridLinear:
    """An adapted layer on a linear one, with these leaves. Raises ValueError for one of another shape."""
    plan = layer_plan(config, linear_shape(linear)[0], unitary=unitary)
    layer = layer_class(linear, plan)(linear, plan, mx.random.key(0))
    fresh = layer.leaves()
    for leaf, value in leaves.items():
        if leaf in fresh and fresh[leaf].shape != value.shape:
            raise ValueError(f"{leaf} of {tuple(value.shape)}")
    layer.put_leaves(leaves)
    return layer.eval()


def open_source(
    name: str, *, model: str | None = None, strength: float = 1.0, place: Path = Path()
) -> Source:
    """The adapter of a run (path, name or `last`), a folder or a Hub id, with its base: `model` where that has moved.

    At a part of its `strength` it is written to the empty folder `place` first.
    Raises ConfigError for no adapter, for another base, and for an adapter on MoE experts.
    """
    folder, base_name = find_adapter(name)
    info = read_adapter_config(folder)
    base_name = base_of(name, info.base["id"], model or base_name, "--model")
    base = weights_of(find_model(base_name))
    info.check_base(fingerprints(base.folder), base.folder, folder, "; name the right base with --model")
    if info.stock:
        info = replace(info, base=identity(base_name, base.folder))
    name = own_name(folder, name)
    if strength != 1:

        def before(tensor: str) -> mx.array:
            if not tensor.endswith(".m"):
                return base.unpacked(tensor)
            return mx.linalg.norm(base.unpacked(tensor.removesuffix("m") + "weight"), axis=1)

        write_at_strength(folder, place, strength, before)
        folder, info = place, replace(read_adapter_config(place), base=info.base, stock=info.stock)
    leaves: dict[str, dict[str, mx.array]] = {}
    for key, value in read_weights(folder).items():
        module, _, leaf = key.rpartition(".")
        leaves.setdefault(module, {})[leaf] = value
    for module in info.modules:
        update = leaves.get(module, {}).get("lora_a")
        if len(base.shapes.get(f"{module}.weight", ())) > 2 or (update is not None and update.ndim > 2):
            raise ConfigError(f"{module}: {EXPERTS_STAY}")
    missing = [module for module in info.modules if module not in leaves and not info.adapter.full]
    if missing:
        raise ConfigError(f"{folder}: holds no tensor of {missing[0]} ({len(missing)} modules in all).")
    return Source(folder, info, leaves, base, name)


def random_rows(name: str, d_in: int) -> np.ndarray:
    """Rows (ROWS, in) to try a layer on, the same for the same name."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal((ROWS, d_in))
