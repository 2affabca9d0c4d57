"""Adapter folders as stock `mlx_lm.lora` writes them: LoRA, DoRA and full fine-tuning of the last layers."""

import mlx.core as mx

from mlx_hybrid.adapters.targets import layer_index, within_layer
from mlx_hybrid.config import AdapterConfig, build
from mlx_hybrid.errors import ConfigError

LEAVES = {"lora": ("lora_a", "lora_b"), "dora": ("lora_a", "lora_b", "m"), "full": ()}
"""Tensors of each adapted module, by `fine_tune_type`, which is our method of the same name."""


def is_stock(tree: object) -> bool:
    """Whether an `adapter_config.json` is stock mlx-lm's."""
    if not isinstance(tree, dict) or tree.keys() & {"mlx_hybrid", "peft_type"}:
        return False
    return bool(tree.keys() & {"fine_tune_type", "lora_parameters"})


def read_stock(tree: dict, names: list[str], where: str) -> tuple[str, AdapterConfig, tuple[str, ...]]:
    """The method of a stock adapter of these tensor names, our settings for the same update, s · x A B with s as it
    stands there, and the adapted modules, each with all its leaves; none of `full`."""
    kind = tree.get("fine_tune_type", "lora")
    if kind not in LEAVES:
        raise ConfigError(f'{where}: fine_tune_type "{kind}" is not one of {", ".join(LEAVES)}.')
    if kind == "full":
        return kind, AdapterConfig(rotation=None, low_rank=None, mixing="off"), ()
    modules = sorted({name.rpartition(".")[0] for name in names if name.endswith((".lora_a", ".lora_b"))})
    wanted = [f"{m}.{leaf}" for m in modules for leaf in LEAVES[kind]] or ["every lora_a"]
    if missing := [name for name in wanted if name not in names]:
        raise ConfigError(f"{where}: fine_tune_type is {kind}, but {missing[0]} is missing.")
    given = tree.get("lora_parameters") or {}
    for key in ("rank", "scale", "dropout"):
        if type(given.get(key)) not in (int, float):
            raise ConfigError(f"{where}: lora_parameters.{key} must be a number, not {given.get(key)!r}.")
    low_rank = {"rank": given["rank"], "alpha": given["scale"] * given["rank"], "rslora": False}
    low_rank |= {"dropout": given["dropout"], "magnitude": kind == "dora"}
    targets, layers = stock_targets(modules, given.get("keys") or [], tree.get("num_layers"))
    settings = {"rotation": None, "low_rank": low_rank, "mixing": "off", "targets": targets, "layers": layers}
    return kind, build(AdapterConfig, settings, where, "lora_parameters: "), tuple(modules)


def stock_targets(modules: list[str], keys: list[str], last: int | None) -> tuple[list[str], int]:
    """Targets and the number of last layers that mean these modules. mlx-lm's `num_layers` may exceed the model's
    layers, which then are all meant. Keys that name single layers are kept as the modules' whole names."""
    indices = [index for module in modules if (index := layer_index(module)) is not None]
    if not isinstance(last, int) or any(layer_index(key) is not None for key in keys):
        return modules, 0
    return sorted({within_layer(m) for m in modules}), last if 0 < last <= max(indices, default=0) + 1 else 0


def our_leaves(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Tensors as our layers hold them: float32, and of stacked experts A (E, in, r), B (E, r, out)."""
    ours = {name: value for name, value in weights.items() if name.endswith((".lora_a", ".lora_b", ".m"))}
    swapped = {name: mx.swapaxes(value, -1, -2) if value.ndim == 3 else value for name, value in ours.items()}
    return weights | {name: value.astype(mx.float32) for name, value in swapped.items()}
