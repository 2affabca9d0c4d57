"""A PEFT adapter as one of ours: LoRA, OFT v2 and HRA, or OFT and LoRA side by side, exactly or not at all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from scipy.linalg import block_diag

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.butterfly import LARGEST_SKEW, defect
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.adapters.store import adapter_state, save_adapter, set_state
from mlx_hybrid.adapters.targets import last_part, layer_index
from mlx_hybrid.config import AdapterConfig, ButterflyConfig, HouseholderConfig, LowRankConfig, flat
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.exports.checks import Report, check_logits, new_folder, unpacked
from mlx_hybrid.exports.forms import block_of, in_float64, inverse_cayley, padded, polar, rotation_of, skew_of
from mlx_hybrid.exports.peft import CONFIG_FILE, MAGNITUDE, WEIGHTS_FILE, PeftFolder, read_peft
from mlx_hybrid.exports.weights import ModelWeights
from mlx_hybrid.files import sha256_of
from mlx_hybrid.models.base import is_named, load_base

METHODS = {("LORA",): "lora", ("OFT",): "boft", ("HRA",): "hra", ("OFT", "LORA"): "hybrid-boft"}
NEUMANN_DEFECT = 1e-5  # up to it a Neumann file is a rotation to what float32 holds
Leaves = dict[str, dict[str, mx.array]]  # of our adapter, by module


def find_parts(directory: Path) -> dict[str, PeftFolder]:
    """By kind, the adapter in `directory`, or the OFT and the LoRA in its folders, in that order."""
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such folder; name the one that holds {CONFIG_FILE}.")
    where = CONFIG_FILE if (directory / CONFIG_FILE).is_file() else f"*/{CONFIG_FILE}"
    parts = [read_peft(path.parent) for path in directory.glob(where)]
    parts.sort(key=lambda part: part.kind, reverse=True)
    if not parts:
        raise ConfigError(f"{directory}: no PEFT adapter there ({CONFIG_FILE} is missing).")
    if (kinds := tuple(part.kind for part in parts)) not in METHODS:
        told = "one adapter, or one OFT with one LORA, can be carried as one"
        raise ConfigError(f"{directory}: holds {', '.join(kinds)}; {told}.")
    return dict(zip(kinds, parts))


def carry(parts: dict[str, PeftFolder]) -> tuple[AdapterConfig, Leaves]:
    """Our settings and leaves for the parts. The rotation comes first: W Rᵀ + s B A, as PEFT applies them."""
    branches, leaves = {"rotation": None, "low_rank": None}, {}
    for kind, part in parts.items():
        branch, own = CARRIERS[kind](part)
        branches["low_rank" if kind == "LORA" else "rotation"] = branch
        for module, more in own.items():
            leaves.setdefault(module, {}).update(more)
    return AdapterConfig(**branches, mixing="off"), leaves


def carry_lora(part: PeftFolder) -> tuple[LowRankConfig, Leaves]:
    """A and B transposed. Where rank or scale differ by module, ranks are padded and scales folded into B."""
    config, leaves = part.config, {}
    rank = max(len(tensors["lora_A.weight"]) for tensors in part.tensors.values())
    patterned = config.get("rank_pattern") or config.get("alpha_pattern")
    for module, tensors in part.tensors.items():
        scaled = part.factors(module)  # checks the rank, too
        plain = tensors["lora_A.weight"].T, tensors["lora_B.weight"].T
        a, b = map(contiguous, padded(scaled, rank) if patterned else plain)
        magnitude = {"m": contiguous(tensors[MAGNITUDE])} if MAGNITUDE in tensors else {}
        leaves[module] = {"lora_a": a, "lora_b": b} | magnitude
    alpha, root = (rank, False) if patterned else (config["lora_alpha"], bool(config.get("use_rslora")))
    kind = {"rank": rank, "magnitude": bool(config.get("use_dora"))}
    return LowRankConfig(**kind, alpha=float(alpha), rslora=root), leaves


def carry_oft(part: PeftFolder) -> tuple[ButterflyConfig, Leaves]:
    """One butterfly factor per dense block."""
    size = max(block_of(tensors["oft_R.weight"]) for tensors in part.tensors.values())
    leaves = {}
    for module, tensors in part.tensors.items():
        triangle = in_blocks_of(size, tensors["oft_R.weight"], f"{part.folder}: {module}")
        of_series = part.is_neumann and neumann_leaves(part.series(triangle), module)
        leaves[module] = of_series or leaves_of(triangle, module)
    return ButterflyConfig(block_size=size, factors=1), leaves


def leaves_of(triangle: np.ndarray, name: str) -> dict[str, mx.array]:
    """Leaves of a one-factor butterfly with the rotation of an OFT triangle (in/B, B(B−1)/2). Beyond ‖Q‖₂ = 0.5, where
    the layer's series stops being exact, R goes into the base and only what float32 lost of it into Q, so that
    `oft_form` finds the triangle again to its last bit."""
    size = block_of(triangle)
    base = np.broadcast_to(np.eye(size, dtype=np.float32), (len(triangle), size, size))
    if np.linalg.norm(triangle.astype(np.float64), axis=-1).max(initial=0) > LARGEST_SKEW:
        rotation = rotation_of(triangle)
        base = rotation.astype(np.float32)
        triangle = inverse_cayley(rotation @ polar(base).swapaxes(-1, -2), name)
    return {"oft_q": mx.array(triangle.astype(np.float32))[None], "oft_base": mx.array(base)[None]}


def neumann_leaves(blocks: np.ndarray, module: str) -> dict[str, mx.array]:
    """Leaves of the rotation that a truncated series is; where it is off one, its own matrix as if it were folded."""
    if in_float64(defect, blocks) <= NEUMANN_DEFECT:
        return leaves_of(inverse_cayley(polar(blocks), module).astype(np.float32), module)
    size = blocks.shape[-1]
    still = mx.zeros((1, len(blocks), size * (size - 1) // 2))
    return {"oft_q": still, "oft_base": contiguous(blocks)[None]}


def in_blocks_of(size: int, triangle: np.ndarray, where: str) -> np.ndarray:
    """The same rotation as a triangle of blocks of `size`; the Cayley map of a block diagonal is one too."""
    small = block_of(triangle)
    if small == size:
        return triangle
    each = size // small
    if size % small or len(triangle) % each:
        raise ConfigError(f"{where} has blocks of {small} and others of {size}, which fit no common size.")
    wide = [block_diag(*blocks) for blocks in skew_of(triangle).reshape(-1, each, small, small)]
    return np.array(wide, np.float32)[:, *np.triu_indices(size, 1)]


def carry_hra(part: PeftFolder) -> tuple[HouseholderConfig, Leaves]:
    """The reflections in our order. Raises ConfigError for an odd number of them, or one without a direction."""
    count = {tensors["hra_u"].shape[1] for tensors in part.tensors.values()}
    if len(count) != 1 or max(count) % 2:
        told = f"{min(count)} reflections turn space inside out, and here they come in pairs"
        raise ConfigError(f"{part.folder}: {told}; convert it to LoRA in PEFT.")
    for module, tensors in part.tensors.items():
        if not np.abs(tensors["hra_u"]).max(axis=0).min() > 0:
            raise ConfigError(f"{part.folder}: {module} has a reflection of length zero.")
    leaves = {module: {"house_u": contiguous(part.reflections(module))} for module in part.tensors}
    return HouseholderConfig(reflections=max(count)), leaves


CARRIERS = {"LORA": carry_lora, "OFT": carry_oft, "HRA": carry_hra}


def contiguous(value: np.ndarray) -> mx.array:
    return mx.array(np.ascontiguousarray(value, dtype=np.float32))


def attach_carried(model: Any, config: AdapterConfig, leaves: Leaves, where: str) -> AdapterConfig:
    """Put the carried adapter on a loaded base; modules it does not name are left without effect."""
    modules = dict(model.named_modules())
    for module, parts in leaves.items():
        if not isinstance(modules.get(module), nn.Linear | nn.QuantizedLinear):
            raise ConfigError(f"{where}: adapts {module}, which the base does not have as a linear layer.")
        if "oft_q" in parts and parts["oft_q"].shape[1] == 1:  # `block_share` stores one block for all
            count = linear_shape(modules[module])[0] // config.rotation.block_size
            parts |= {leaf: mx.repeat(parts[leaf], count, axis=1) for leaf in ("oft_q", "oft_base")}
    first = min((index for module in leaves if (index := layer_index(module)) is not None), default=0)
    targets = tuple(sorted({last_part(module) for module in leaves}))
    config = replace(config, targets=targets, layers=max(0, len(model.layers) - first) if first else 0)
    attach(model, config)
    set_state(model, adapter_state(model) | flat(leaves), where)
    return config


def import_peft(peft: Path, directory: Path, *, base: str | None = None, force: bool = False) -> Report:
    """Write the PEFT adapter in `peft` as our adapter folder, on `base` or the base that its config names. Raises
    ConfigError for what cannot be carried exactly, and ExportMismatch where it does not do what PEFT does."""
    parts = find_parts(peft)
    first, (config, leaves) = next(iter(parts.values())), carry(parts)
    name = first.config.get("base_model_name_or_path") or ""
    if not base and not name:
        raise ConfigError(f"{peft}: does not say which base it is for; name it with --base.")
    name = base or (str(first.folder / name) if (first.folder / name).is_dir() else name)
    method = "dora" if first.config.get("use_dora") else METHODS[tuple(parts)]
    with new_folder(directory) as folder:
        loaded = load_base(name)
        config = attach_carried(loaded.model, config, leaves, str(peft))
        origin = [{"kind": kind, "sha256": sha256_of(p.folder / WEIGHTS_FILE)} for kind, p in parts.items()]
        facts = {"method": method, "base": loaded.identity, "seed": 0}
        save_adapter(loaded.model, folder, config=config, extra={"imported": origin}, **facts)
        del loaded
        source = open_source(str(folder), model=name)
        adapter, modules = {"name": directory.name, "method": method}, {"modules": len(leaves)}
        report = Report("mlx", " and ".join(parts), adapter, source.info.base, modules)
        if first.is_neumann:
            worst = max(float(in_float64(defect, first.rotation(module))) for module in first.tensors)
            report.facts["neumann_defect"] = worst
            told = "the adapter does what PEFT does, and going on with training makes it a rotation."
            report.notes.append(f"use_cayley_neumann sums a series off a rotation by {worst:.1g}: {told}")
        with unpacked(source.base) as dense:
            check_logits(report, source, ModelWeights(dense), adapters=[p.folder for p in parts.values()])
        report.base_folder = "" if is_named(name) else name
        report.finish(folder, directory, force=force, name="import.json")
    return report
