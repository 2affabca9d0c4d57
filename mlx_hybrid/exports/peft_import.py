"""A PEFT adapter as one of ours: LoRA, OFT v2 and HRA, or OFT and LoRA side by side, exactly or not at all.

Tensors are taken over to the last bit where a layer here says the same with them; only scales that differ by layer
are folded into B, in float64, and rotations beyond the series' reach into a stored base.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.adapters.store import adapter_state, save_adapter, set_state
from mlx_hybrid.adapters.targets import last_part, layer_index
from mlx_hybrid.config import AdapterConfig, ButterflyConfig, HouseholderConfig, LowRankConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports import oft
from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.exports.checks import Report, check_logits, new_folder, unpacked
from mlx_hybrid.exports.lora import pad_rank
from mlx_hybrid.exports.peft_files import CONFIG_FILE, MAGNITUDE, WEIGHTS_FILE, PeftFolder, read_peft
from mlx_hybrid.exports.weights import ModelWeights
from mlx_hybrid.files import sha256_of
from mlx_hybrid.models.base import is_named, load_base

REPORT_FILE = "import.json"
NEUMANN_DEFECT = 1e-5  # up to it a Neumann file is a rotation to what float32 holds

Carried = tuple[AdapterConfig, dict[str, dict[str, mx.array]]]
"""Settings and leaves of our adapter, by module."""


def find_parts(directory: Path) -> list[PeftFolder]:
    """The adapter in `directory`, or the OFT and the LoRA in its folders, in that order."""
    if (directory / CONFIG_FILE).is_file():
        return [read_peft(directory)]
    parts = [read_peft(path.parent) for path in sorted(directory.glob(f"*/{CONFIG_FILE}"))]
    if not parts:
        raise ConfigError(f"{directory}: no PEFT adapter there ({CONFIG_FILE} is missing).")
    kinds = [part.kind for part in parts]
    if len(parts) > 2 or (len(parts) == 2 and sorted(kinds) != ["LORA", "OFT"]):
        raise ConfigError(
            f"{directory}: holds {', '.join(kinds)}; one adapter, or one OFT with one LORA, can be carried as one."
        )
    return sorted(parts, key=lambda part: part.kind, reverse=True)


def carry(parts: list[PeftFolder]) -> Carried:
    """Our settings and leaves for the parts. The rotation comes first: W Rᵀ + s B A, as PEFT applies them."""
    config, leaves = CARRIERS[parts[0].kind](parts[0])
    for part in parts[1:]:
        other, more = carry_lora(part)
        config = replace(config, low_rank=other.low_rank)
        for module, own in more.items():
            leaves.setdefault(module, {}).update(own)
    return config, leaves


def carry_lora(part: PeftFolder) -> Carried:
    """A and B transposed. Where rank or scale differ by module, ranks are padded and scales folded into B."""
    rank = max(len(tensors["lora_A.weight"]) for tensors in part.tensors.values())
    patterned = bool(part.config.get("rank_pattern") or part.config.get("alpha_pattern"))
    leaves = {}
    for module, tensors in part.tensors.items():
        scaled = part.factors(module)  # checks the rank, too
        plain = tensors["lora_A.weight"].T, tensors["lora_B.weight"].T
        a, b = pad_rank(scaled, rank) if patterned else plain
        leaves[module] = {"lora_a": contiguous(a), "lora_b": contiguous(b)}
        if MAGNITUDE in tensors:
            leaves[module]["m"] = contiguous(tensors[MAGNITUDE])
    alpha, rslora = float(part.config["lora_alpha"]), bool(part.config.get("use_rslora"))
    scale = {"alpha": float(rank), "rslora": False} if patterned else {"alpha": alpha, "rslora": rslora}
    low_rank = LowRankConfig(rank=rank, magnitude=bool(part.config.get("use_dora")), **scale)
    return AdapterConfig(rotation=None, low_rank=low_rank, mixing="off"), leaves


def carry_oft(part: PeftFolder) -> Carried:
    """One butterfly factor per dense block."""
    triangles = {module: tensors["oft_R.weight"] for module, tensors in part.tensors.items()}
    size = max(oft.block_of(triangle) for triangle in triangles.values())
    wide = {module: in_blocks_of(size, triangle, part, module) for module, triangle in triangles.items()}
    if part.config.get("use_cayley_neumann", True):
        leaves = {module: neumann_leaves(part.series(triangle), module) for module, triangle in wide.items()}
    else:
        leaves = {module: oft.butterfly_leaves(triangle, module) for module, triangle in wide.items()}
    rotation = ButterflyConfig(block_size=size, factors=1)
    return AdapterConfig(rotation=rotation, low_rank=None, mixing="off"), leaves


def neumann_leaves(blocks: np.ndarray, module: str) -> dict[str, mx.array]:
    """Leaves of the rotation that is nearest to PEFT's truncated series; where that is off one, the series' own matrix
    in the place of a folded rotation, so that the layer computes what PEFT does."""
    if defect_of(blocks) <= NEUMANN_DEFECT:
        return oft.butterfly_leaves(oft.inverse_cayley(oft.polar(blocks), module).astype(np.float32), module)
    size = blocks.shape[-1]
    still = np.zeros((len(blocks), size * (size - 1) // 2), dtype=np.float32)
    return {"oft_q": mx.array(still)[None], "oft_base": mx.array(blocks.astype(np.float32))[None]}


def defect_of(blocks: np.ndarray) -> float:
    """max |R Rᵀ − I| over blocks."""
    return float(np.abs(blocks @ blocks.swapaxes(-1, -2) - np.eye(blocks.shape[-1])).max())


def note_defect(report: Report, part: PeftFolder) -> None:
    """State how far the series of a Neumann file is from a rotation."""
    if part.kind == "OFT" and part.config.get("use_cayley_neumann", True):
        worst = max(defect_of(part.rotation(module)) for module in part.tensors)
        report.facts["neumann_defect"] = worst
        report.notes.append(
            f"use_cayley_neumann sums a series that is off a rotation by {worst:.1g}: the adapter does what PEFT does, "
            "and going on with training makes it a rotation."
        )


def in_blocks_of(size: int, triangle: np.ndarray, part: PeftFolder, module: str) -> np.ndarray:
    """The same rotation as a triangle of blocks of `size`; the Cayley map of a block diagonal is one too."""
    small = oft.block_of(triangle)
    if small == size:
        return triangle
    each = size // small
    if size % small or len(triangle) % each:
        raise ConfigError(
            f"{part.folder}: {module} has blocks of {small} and others of {size}, which fit no common size."
        )
    q, wide = oft.skew_of(triangle), np.zeros((len(triangle) // each, each, small, each, small))
    wide[:, range(each), :, range(each)] = q.reshape(-1, each, small, small).swapaxes(0, 1)
    return wide.reshape(-1, size, size)[:, *np.triu_indices(size, 1)].astype(np.float32)


def carry_hra(part: PeftFolder) -> Carried:
    """The reflections in our order. Raises ConfigError for an odd number of them, or one without a direction."""
    count = {tensors["hra_u"].shape[1] for tensors in part.tensors.values()}
    if len(count) != 1 or max(count) % 2:
        raise ConfigError(
            f"{part.folder}: {sorted(count)[0]} reflections turn space inside out, and here they come in pairs; "
            "convert it to LoRA in PEFT."
        )
    for module, tensors in part.tensors.items():
        if not np.abs(tensors["hra_u"]).max(axis=0).min() > 0:
            raise ConfigError(f"{part.folder}: {module} has a reflection of length zero.")
    leaves = {module: {"house_u": contiguous(part.reflections(module))} for module in part.tensors}
    rotation = HouseholderConfig(reflections=max(count))
    return AdapterConfig(rotation=rotation, low_rank=None, mixing="off"), leaves


CARRIERS = {"LORA": carry_lora, "OFT": carry_oft, "HRA": carry_hra}
METHODS = {"LORA": "lora", "OFT": "boft", "HRA": "hra"}


def contiguous(value: np.ndarray) -> mx.array:
    return mx.array(np.ascontiguousarray(value, dtype=np.float32))


def attach_carried(model: Any, carried: Carried, where: str) -> AdapterConfig:
    """Put the carried adapter on a loaded base; modules it does not name are left without effect."""
    (config, leaves), modules = carried, dict(model.named_modules())
    for module, parts in leaves.items():
        if not isinstance(modules.get(module), nn.Linear | nn.QuantizedLinear):
            raise ConfigError(f"{where}: adapts {module}, which the base does not have as a linear layer.")
        if "oft_q" in parts and parts["oft_q"].shape[1] == 1:  # `block_share` stores one block for all
            count = linear_shape(modules[module])[0] // config.rotation.block_size
            parts |= {leaf: mx.concatenate([parts[leaf]] * count, axis=1) for leaf in ("oft_q", "oft_base")}
    first = min((index for module in leaves if (index := layer_index(module)) is not None), default=0)
    targets = tuple(sorted({last_part(module) for module in leaves}))
    config = replace(config, targets=targets, layers=max(0, len(model.layers) - first) if first else 0)
    attach(model, config)
    given = {f"{module}.{leaf}": value for module, parts in leaves.items() for leaf, value in parts.items()}
    set_state(model, adapter_state(model) | given, where)
    return config


def import_peft(peft: Path, directory: Path, *, base: str | None = None, force: bool = False) -> Report:
    """Write the PEFT adapter in `peft` as an adapter folder for MLX, on `base` or the base that its config names.

    Raises ConfigError for what cannot be carried exactly, and ExportMismatch where it does not do what PEFT does.
    """
    if not peft.is_dir():
        raise ConfigError(f"{peft}: no such folder; name the one that holds adapter_config.json.")
    parts = find_parts(peft)
    name = base or named_base(peft, parts)
    carried = carry(parts)
    method = "hybrid-boft" if len(parts) > 1 else METHODS[parts[0].kind]
    method = "dora" if parts[0].config.get("use_dora") else method
    with new_folder(directory) as folder:
        loaded = load_base(name)
        config = attach_carried(loaded.model, carried, str(peft))
        origin = [{"kind": part.kind, "sha256": sha256_of(part.folder / WEIGHTS_FILE)} for part in parts]
        told = {"method": method, "base": loaded.identity, "seed": 0, "extra": {"imported": origin}}
        save_adapter(loaded.model, folder, config=config, **told)
        del loaded
        source = open_source(str(folder), model=name)
        kind = " and ".join(part.kind for part in parts)
        adapter = {"name": directory.name, "method": method}
        report = Report("mlx", kind, adapter, source.info.base, {"modules": len(carried[1])})
        for part in parts:
            note_defect(report, part)
        with unpacked(source.base) as dense:
            check_logits(report, source, ModelWeights(dense), adapters=[part.folder for part in parts])
        report.base_folder = "" if is_named(name) else name
        report.finish(folder, directory, force=force, name=REPORT_FILE)
    return report


def named_base(peft: Path, parts: list[PeftFolder]) -> str:
    """The base the config names: a folder beside the adapter, another folder, or a Hub id."""
    name = parts[0].config.get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{peft}: does not say which base it is for; name it with --base.")
    beside = parts[0].folder / name
    return str(beside) if beside.is_dir() else name
