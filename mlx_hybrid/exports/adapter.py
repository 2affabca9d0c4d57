"""What is exported: an adapter with the weights it was trained on, and which weights it is exported for."""

import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import yaml
from huggingface_hub import metadata_load

from mlx_hybrid.adapters.layer import HybridLinear, layer_class
from mlx_hybrid.adapters.store import AdapterInfo, read_adapter_config, read_weights
from mlx_hybrid.adapters.strength import write_at_strength
from mlx_hybrid.adapters.targets import last_part, layer_plan
from mlx_hybrid.config import flat
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.weights import ModelWeights, weights_of, write_dense
from mlx_hybrid.files import HUB_ID
from mlx_hybrid.models.adapted import find_adapter, own_name
from mlx_hybrid.models.base import base_of, find_model, fingerprints, identity
from mlx_hybrid.publish.card import BESIDE
from mlx_hybrid.training.memory.shape import cached_folder

LARGEST_ROUNDING = 0.35  # ‖W − W_packed‖ / ‖W‖: 4 bits give 0.09, 2 bits about 0.3; another model gives 1.4


@dataclass(frozen=True)
class Source:
    """An adapter folder, its leaves by module, its base, and the folder of its run, if one made it."""

    folder: Path
    info: AdapterInfo
    leaves: dict[str, dict[str, mx.array]]
    base: ModelWeights
    name: str
    home: Path

    @cached_property
    def trained(self) -> dict[str, mx.array]:
        """Whole tensors that full fine-tuning changed, by name; none of an adapter."""
        leaves = flat(self.leaves) if self.info.adapter.full else {}
        return {name: self.base.from_model(name, value) for name, value in leaves.items()}

    def changed(self, weights: ModelWeights) -> list[str]:
        """The tensors of `weights` that training changed; MLX renames some as it loads, which is refused."""
        changed = {f"{module}.weight" for module in self.info.modules} | self.trained.keys()
        if absent := sorted(changed.difference(weights.shapes)):
            told = "which was trained; names that differ from MLX's cannot be carried yet"
            raise ConfigError(f"{weights.folder}: holds no {absent[0]}, {told}.")
        return [name for name in weights.shapes if name in changed]

    def layer(self, module: str, weights: ModelWeights) -> HybridLinear:
        """The adapted layer on its weight (out, in) of `weights`, read when first used; for a plain LoRA never."""
        weight, config, leaves = weights.unpacked(f"{module}.weight"), self.info.adapter, self.leaves[module]
        linear = nn.Linear(*weight.shape[::-1], bias=False)
        linear.weight = weight
        plan = layer_plan(config, weight.shape[1], unitary=last_part(module) in config.unitary)
        layer = layer_class(linear, plan)(linear, plan, mx.random.key(0))
        layer.put_leaves(leaves)
        return layer.eval()


def open_source(name: str, *, model: str | None = None, strength: float = 1, place: Path = Path()) -> Source:
    """The adapter of a run (path, name, `last`), a folder or a Hub id, with its base: `model` where that has moved; at
    a part of its `strength` written to the empty folder `place` first. Raises ConfigError for no adapter, for another
    base, and for an adapter on MoE experts."""
    folder, base_name = find_adapter(name, model)
    home = folder.resolve().parent
    info = read_adapter_config(folder)
    base_name = base_of(name, info.base["id"], base_name, "--model")
    base = weights_of(find_model(base_name))
    info.check_base(fingerprints(base.folder), base.folder, folder, "; name the right base with --model")
    if info.stock:
        info = replace(info, base=identity(base_name, base.folder))
    name = own_name(folder, name)
    if strength != 1:

        def before(tensor: str) -> mx.array:
            if not tensor.endswith(".m"):
                return base.from_model(tensor, base.unpacked(tensor), -1)
            return mx.linalg.norm(base.unpacked(tensor.removesuffix("m") + "weight"), axis=1)

        write_at_strength(folder, place, strength, before)
        folder, info = place, replace(read_adapter_config(place), base=info.base, stock=info.stock)
    leaves: dict[str, dict[str, mx.array]] = {}
    for key, value in read_weights(folder).items():
        module, _, leaf = key.rpartition(".")
        leaves.setdefault(module, {})[leaf] = value
    for module in info.modules:
        if module not in leaves:
            raise ConfigError(f"{folder}: holds no tensor of {module}.")
        update = leaves[module].get("lora_a")
        if len(base.shapes.get(f"{module}.weight", ())) > 2 or (update is not None and update.ndim > 2):
            told = "an adapter on stacked experts, which PEFT and transformers store otherwise, cannot be exported"
            way_on = "chat, serve and evaluate run it, and one trained without experts among adapter.targets can be"
            raise ConfigError(f"{module}: {told} or fused yet; {way_on}.")
    return Source(folder, info, leaves, base, name, home)


def random_rows(name: str, d_in: int) -> np.ndarray:
    """Rows (2, in) to try a layer on, the same for one name; a wrong factor escapes them with probability zero."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal((2, d_in))


@dataclass(frozen=True)
class ExportBase:
    """The weights an export is for. `kind` is `original`, `dequantised` or `trained`; `id` is what its config names."""

    weights: ModelWeights
    kind: str
    id: str


def base_for(
    source: Source, to: str, folder: Path, wanted: str | None, base_id: str | None, *, own: bool
) -> ExportBase:
    """What the form `to` is made for: the base it was trained on where it must be its `own`, and of a GGUF where no
    other is named; the original; else that base unpacked, for PEFT into `folder`, since it loads no packed weights."""
    trained = ExportBase(source.base, "trained", source.info.base["id"])
    if to == "gguf" and base_id and (place := find_model(base_id)).is_file():
        return check_original(source, place, base_id, gguf=True)
    if own or (to == "gguf" and wanted != "original" and not base_id):
        return trained
    if original := choose_original(source, wanted, base_id):
        return original
    if to in ("gguf", "merged"):
        return replace(trained, kind="dequantised")
    source.changed(source.base)  # refused before anything is written
    (folder / BESIDE).mkdir(parents=True)
    write_dense(source.base, folder / BESIDE)
    return ExportBase(ModelWeights(folder / BESIDE), "dequantised", BESIDE)


def choose_original(source: Source, wanted: str | None, base_id: str | None) -> ExportBase | None:
    """The original model to export for; None where a dequantised copy of the training base is to be used. An unpacked
    base is its own; for a packed one it is `base_id`, else what the run or the base's card names, if it is here."""
    folder = source.base.folder
    if wanted == "dequantised":
        if base_id:
            raise ConfigError("--base dequantised uses the base it was trained on; leave out --base-id.")
        if not source.base.packed:
            raise ConfigError(f"{folder}: is not quantised; leave out --base.")
        return None
    if not source.base.packed and not base_id:
        return ExportBase(source.base, "original", source.info.base["id"])
    named = base_id or source.info.base.get("original") or card_base(folder)
    if wanted and not named:
        raise ConfigError(f"{folder}: does not say which model it was packed from; name it with --base-id.")
    if wanted or base_id:
        return check_original(source, find_model(named), named)
    here = Path(named) if named and Path(named).is_dir() else HUB_ID.fullmatch(named) and cached_folder(named)
    return check_original(source, here, named) if here else None


def card_base(folder: Path) -> str:
    """The model that the card in `folder` names as its base; nothing without one."""
    try:
        named = (metadata_load(folder / "README.md") or {}).get("base_model")
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return ""
    return named[0] if isinstance(named, list) and named else named or ""


def check_original(source: Source, folder: Path, name: str, *, gguf: bool = False) -> ExportBase:
    """Raise ConfigError unless the model in `folder` has the adapted layers, and is what the base was packed from."""
    weights = weights_of(folder)
    if weights.packed and not gguf:
        raise ConfigError(f"{name}: is quantised itself; name the 16-bit model it was made from.")
    matrices = [name for name in source.changed(weights) if len(weights.shapes[name]) == 2]
    for key in matrices:
        if (given := weights.shapes[key]) != (trained := source.base.shapes[key]):
            raise ConfigError(f"{name}: {key} is {given} there and {trained} in the trained base.")
    for key in {matrices[0], matrices[len(matrices) // 2], matrices[-1]} if matrices else ():
        trained, given = source.base.dense(key), weights.dense(key)
        apart = float(mx.linalg.norm(trained - given) / mx.linalg.norm(given))
        if not apart <= LARGEST_ROUNDING:
            told = f"{key} differs from the base that was trained on by {100 * apart:.0f} % of its norm"
            raise ConfigError(f"{name}: {told}, so this is another model.")
    return ExportBase(weights, "original", Path(name).resolve().name if Path(name).exists() else name)
