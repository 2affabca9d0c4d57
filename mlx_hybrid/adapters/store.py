"""Adapters on disk: pure `lora` and `dora` as mlx-lm loads them, any other named `hybrid`; and stock mlx-lm's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_hybrid.adapters.attach import attach, hybrid_layers
from mlx_hybrid.adapters.layer import HybridExperts
from mlx_hybrid.adapters.targets import layer_index, within_layer
from mlx_hybrid.config import AdapterConfig, build, from_format_1, to_tree, without_retired
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import new_directory, read_header, read_json, read_tensors, write_json

FORMAT = 2  # 1 has the settings of the adapter in one flat group
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapters.safetensors"
STOCK_LEAVES = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m"), "full": ()}
"""Tensors of each module that stock `mlx_lm.lora` adapts, by `fine_tune_type`, which is our method of the same name."""


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter folder says of itself."""

    method: str
    adapter: AdapterConfig
    base: dict
    seed: int
    modules: tuple[str, ...]
    extra: dict
    stock: bool = False  # whether stock mlx-lm wrote it, which keeps no fingerprint of the base

    @property
    def conversations(self) -> dict:
        """The chat template, its options and the fate of a system turn, where they are not the usual."""
        told = {key: self.extra.get(key) for key in ("template", "system", "chat_template")}
        return {key: value for key, value in told.items() if value and value != "keep"}

    def check_base(self, found: tuple[str, ...], place: Path, name: object, way_out: str = "") -> None:
        """Raise ConfigError where the base at `place`, of the fingerprints `found`, is not that it was trained on."""
        if not self.stock and self.base.get("fingerprint") not in found:
            told = f"was trained on {self.base.get('id')}, whose weights are not those of {place}{way_out}."
            raise ConfigError(f"{name}: {told}")


def adapter_state(model: nn.Module) -> dict[str, mx.array]:
    """Every tensor an adapter needs, by the names of layer and leaf; of a model that trains whole, what trains."""
    layers = hybrid_layers(model).items()
    if not layers:
        return dict(tree_flatten(model.trainable_parameters()))
    return {f"{name}.{leaf}": value for name, layer in layers for leaf, value in layer.leaves().items()}


def save_adapter(
    model: nn.Module, directory: Path, *, config: AdapterConfig, extra: dict | None = None, **facts: Any
) -> None:
    """Write the adapter of `model` to `directory`, replacing one that is there; a half-written one is never seen.
    `facts` are its method, base and seed; `extra` holds what else there is to say of it."""
    with new_directory(directory) as folder:
        write_adapter(folder, adapter_state(model), config_tree(model, config, facts, extra or {}))


def write_adapter(folder: Path, state: dict[str, mx.array], tree: dict) -> None:
    mx.save_safetensors(str(folder / WEIGHTS_FILE), state, metadata={"format": "mlx"})
    write_json(folder / CONFIG_FILE, tree)


def config_tree(model: nn.Module, config: AdapterConfig, facts: dict, extra: dict) -> dict:
    """`adapter_config.json`: mlx-lm's keys, and our own in a group."""
    layers, update, kind = hybrid_layers(model), config.low_rank, "full" if config.full else "hybrid"
    stacked = any(isinstance(layer, HybridExperts) for layer in layers.values())  # other leaves than mlx-lm's
    if update and not config.rotation and update.start != "lora-ga" and not stacked:
        kind = "dora" if update.magnitude else "lora"
    tree = {
        "format": FORMAT,
        "fine_tune_type": kind,
        "num_layers": len(model.layers) if kind == "full" else config.layers or len(model.layers),
        "model": facts["base"].get("id", ""),
    }
    if kind in ("lora", "dora"):
        low_rank = next(iter(layers.values())).low_rank
        parameters = {"rank": low_rank.rank, "scale": low_rank.scale, "dropout": update.dropout}
        tree["lora_parameters"] = parameters | {"keys": sorted({within_layer(name) for name in layers})}
    tree["mlx_hybrid"] = {**facts, "adapter": to_tree(config), "modules": list(layers), **extra}
    return tree


def read_adapter_config(directory: Path) -> AdapterInfo:
    """What an adapter folder holds, ours or stock mlx-lm's. Raises ConfigError for any other, or another format."""
    tree, path = read_tree(directory), directory / CONFIG_FILE
    if is_stock(tree):
        _, shapes = read_header(directory / WEIGHTS_FILE)
        kind, settings, modules = read_stock(tree, list(shapes), str(path))
        return AdapterInfo(kind, settings, {"id": tree.get("model") or ""}, 0, modules, {}, stock=True)
    own = tree.get("mlx_hybrid") if isinstance(tree, dict) else None
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: not an mlx-hybrid adapter; `mlx-hybrid import` takes PEFT folders.")
    if tree.get("format") not in (1, FORMAT):
        told = f"format {tree.get('format')}, but this version reads formats up to {FORMAT}."
        raise ConfigError(f"{path}: {told}")
    known = ("method", "adapter", "base", "seed", "modules")
    if missing := [key for key in known if key not in own]:
        raise ConfigError(f"{path}: mlx_hybrid.{missing[0]} is missing.")
    settings = without_retired(from_format_1(own["adapter"]), above="adapter.")
    adapter = build(AdapterConfig, settings, str(path), "adapter.")
    extra = {key: value for key, value in own.items() if key not in known}
    return AdapterInfo(own["method"], adapter, own["base"], own["seed"], tuple(own["modules"]), extra)


def read_tree(directory: Path) -> object:
    if not (directory / CONFIG_FILE).is_file():
        raise ConfigError(f"{directory}: no adapter there ({CONFIG_FILE} is missing).")
    return read_json(directory / CONFIG_FILE)


def read_weights(directory: Path) -> dict[str, mx.array]:
    """The tensors of an adapter folder, as our layers hold them."""
    if not (directory / WEIGHTS_FILE).is_file():
        raise ConfigError(f"{directory}: {WEIGHTS_FILE} is missing.")
    weights = read_tensors(directory / WEIGHTS_FILE)
    if not is_stock(read_tree(directory)):
        return weights
    ours = {name: value for name, value in weights.items() if name.endswith((".lora_a", ".lora_b", ".m"))}
    for name, value in ours.items():  # float32, and of stacked experts A (E, in, r), B (E, r, out)
        weights[name] = (mx.swapaxes(value, -1, -2) if value.ndim == 3 else value).astype(mx.float32)
    return weights


def load_adapter(model: nn.Module, directory: Path) -> AdapterInfo:
    """Attach and load the adapter of `directory` onto a fresh base. Raises ConfigError listing every tensor that is
    missing, unexpected, or of another shape or dtype."""
    info = read_adapter_config(directory)
    try:
        attach(model, info.adapter, seed=info.seed)
    except ConfigError as error:
        raise ConfigError(f"{directory}: {error}") from None
    put_adapter(model, info, directory)
    return info


def put_adapter(model: nn.Module, info: AdapterInfo, directory: Path) -> None:
    """Load the tensors of `directory` into a model on which its adapter was attached. Those of `full` take the model's
    dtypes: half precision on a GPU, float32 on the CPU. What a stock folder leaves out stays as it is."""
    weights, own = read_weights(directory), adapter_state(model)
    if info.adapter.full:
        for name in weights.keys() & own.keys():
            if all(mx.issubdtype(value.dtype, mx.floating) for value in (weights[name], own[name])):
                weights[name] = weights[name].astype(own[name].dtype)
    set_state(model, own | weights if info.stock else weights, str(directory / WEIGHTS_FILE))


def set_state(model: nn.Module, weights: dict[str, mx.array], where: str) -> None:
    """Put tensors into an attached model, each of which must match by name, shape and dtype."""
    expected = adapter_state(model)
    faults = [f"missing {name}" for name in expected if name not in weights]
    faults += [f"unexpected {name}" for name in weights if name not in expected]
    for name, value in weights.items():
        wanted = expected.get(name)
        if wanted is not None and (value.shape != wanted.shape or value.dtype != wanted.dtype):
            faults.append(f"{name} is {value.shape} {value.dtype}, not {wanted.shape} {wanted.dtype}")
    if faults:
        shown = f"{'; '.join(faults[:5])} ({len(faults)} faults in all)"
        raise ConfigError(f"{where}: does not fit this model and adapter: {shown}.")
    layers = hybrid_layers(model)
    for name, layer in layers.items():
        layer.put_leaves({leaf: weights[f"{name}.{leaf}"] for leaf in layer.leaves()})
    if not layers:
        model.update(tree_unflatten(list(weights.items())))
    mx.eval(model.parameters())


def probe_logits(model: nn.Module) -> mx.array:
    """Logits of a fixed probe of tokens."""
    logits = model(mx.array([list(range(5, 37))])).astype(mx.float32)
    mx.eval(logits)
    return logits


def is_stock(tree: object) -> bool:
    """Whether an `adapter_config.json` is stock mlx-lm's."""
    if not isinstance(tree, dict) or tree.keys() & {"mlx_hybrid", "peft_type"}:
        return False
    return bool(tree.keys() & {"fine_tune_type", "lora_parameters"})


def read_stock(tree: dict, names: list[str], where: str) -> tuple[str, AdapterConfig, tuple[str, ...]]:
    """The method of a stock adapter of these tensor names, our settings for the same update, s · x A B with s as it
    stands there, and the adapted modules, each with all its leaves; none of `full`."""
    kind = tree.get("fine_tune_type", "lora")
    if kind not in STOCK_LEAVES:
        raise ConfigError(f'{where}: fine_tune_type "{kind}" is not one of {", ".join(STOCK_LEAVES)}.')
    if kind == "full":
        return kind, AdapterConfig(rotation=None, low_rank=None, mixing="off"), ()
    modules = sorted({name.rpartition(".")[0] for name in names if name.endswith((".lora_a", ".lora_b"))})
    wanted = [f"{m}.{leaf}" for m in modules for leaf in STOCK_LEAVES[kind]] or ["every lora_a"]
    if missing := [name for name in wanted if name not in names]:
        raise ConfigError(f"{where}: fine_tune_type is {kind}, but {missing[0]} is missing.")
    given = tree.get("lora_parameters") or {}
    for key in ("rank", "scale", "dropout"):
        if type(given.get(key)) not in (int, float):
            raise ConfigError(f"{where}: lora_parameters.{key} must be a number, not {given.get(key)!r}.")
    low_rank = {"rank": given["rank"], "alpha": given["scale"] * given["rank"], "rslora": False}
    low_rank |= {"dropout": given["dropout"], "magnitude": kind == "dora"}
    targets, layers, last = modules, 0, tree.get("num_layers")
    if isinstance(last, int) and not any(layer_index(key) is not None for key in given.get("keys") or []):
        indices = [index for module in modules if (index := layer_index(module)) is not None]
        targets = sorted({within_layer(module) for module in modules})
        layers = last if 0 < last <= max(indices, default=0) + 1 else 0  # more than the model has mean all
    settings = {"rotation": None, "low_rank": low_rank, "mixing": "off", "targets": targets, "layers": layers}
    return kind, build(AdapterConfig, settings, where, "lora_parameters: "), tuple(modules)
