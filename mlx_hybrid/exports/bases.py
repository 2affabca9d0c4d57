"""Which weights an export is computed for: the original 16-bit model, or a dequantised copy written beside it."""

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import Source
from mlx_hybrid.exports.weights import ModelWeights, weights_of, write_dense
from mlx_hybrid.models.base import find_model, is_hub_id
from mlx_hybrid.publish.usage import BESIDE
from mlx_hybrid.training.memory.shape import cached_folder

LARGEST_ROUNDING = 0.35
"""‖W − W_packed‖ / ‖W‖ above which a model is not the one that was packed: 4 bits give 0.09, 2 bits about 0.3, another
model 1.4."""


@dataclass(frozen=True)
class ExportBase:
    """The dense weights an export is for. `kind` is `original` or `dequantised`; `id` is what its config names."""

    weights: ModelWeights
    kind: str
    id: str


def choose_original(source: Source, wanted: str | None, base_id: str | None) -> ExportBase | None:
    """The original model to export for; None where a dequantised copy of the training base is to be used.

    A base that is not packed is its own original. For a packed one: `base_id`, else what the run or the card of the
    base names, which is used without being asked for only when it is already on this machine.
    """
    if wanted == "dequantised":
        if base_id:
            raise ConfigError("--base dequantised uses the base it was trained on; leave out --base-id.")
        if not source.base.packed:
            raise ConfigError(f"{source.base.folder}: is not quantised; leave out --base.")
        return None
    if base_id:
        return check_original(source, find_model(base_id), base_id)
    if not source.base.packed:
        return ExportBase(source.base, "original", source.info.base["id"])
    named = source.info.base.get("original") or card_base(source.base.folder)
    if wanted == "original":
        if not named:
            raise ConfigError(
                f"{source.base.folder}: does not say which model it was packed from; name it with --base-id."
            )
        return check_original(source, find_model(named), named)
    folder = on_this_machine(named)
    return check_original(source, folder, named) if folder else None


def card_base(folder: Path) -> str | None:
    """The model that the card in `folder` names as its base."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        named = (metadata_load(folder / "README.md") or {}).get("base_model")
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return None
    return named[0] if isinstance(named, list) and named else named or None


def on_this_machine(name: str | None) -> Path | None:
    """The folder of a model that needs no download."""
    if name and Path(name).is_dir():
        return Path(name)
    return cached_folder(name) if name and is_hub_id(name) else None


def check_original(source: Source, folder: Path, name: str, *, gguf: bool = False) -> ExportBase:
    """Raise ConfigError unless the model in `folder` has the adapted layers, and is what the base was packed from."""
    weights = weights_of(folder)
    if weights.packed and not gguf:
        raise ConfigError(f"{name}: is quantised itself; name the 16-bit model it was made from.")
    matrices = [name for name in source.changed(weights) if len(weights.shapes[name]) == 2]
    for key in {matrices[0], matrices[len(matrices) // 2], matrices[-1]} if matrices else ():
        module = key.removesuffix(".weight")
        trained, given = source.base.dense(key, mx.float32), weights.dense(key, mx.float32)
        if trained.shape != given.shape:
            raise ConfigError(
                f"{name}: {module} is {given.shape} there and {trained.shape} in the trained base."
            )
        apart = float(mx.linalg.norm(trained - given) / mx.linalg.norm(given))
        if not apart <= LARGEST_ROUNDING:
            raise ConfigError(
                f"{name}: {module} differs from the base that was trained on by {100 * apart:.0f} % of its norm, so "
                "this is another model."
            )
    label = Path(name).resolve().name if Path(name).exists() else name
    return ExportBase(weights, "original", label)


def dequantised_beside(source: Source, folder: Path) -> ExportBase:
    """Write the training base, unpacked to bf16, into `folder`/base and export for it."""
    target = folder / BESIDE
    target.mkdir(parents=True)
    source.changed(source.base)  # refused before anything is written
    write_dense(source.base, target)
    return ExportBase(ModelWeights(target), "dequantised", BESIDE)
