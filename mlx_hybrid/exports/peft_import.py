"""A PEFT adapter as one of ours: LoRA, OFT v2 and HRA, or OFT and LoRA side by side, exactly or not at all.

Tensors are taken over to the last bit where a layer here says the same with them; only scales that differ by layer
are folded into B, in float64, and rotations beyond the series' reach into a stored base.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.butterfly import skew
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.adapters.store import adapter_state, save_adapter, set_state
from mlx_hybrid.adapters.targets import last_part, layer_index
from mlx_hybrid.config import AdapterConfig, ButterflyConfig, HouseholderConfig, LowRankConfig, RotationConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import layer_on, open_source
from mlx_hybrid.exports.checks import Report, check_peft_logits, new_folder, unpacked
from mlx_hybrid.exports.oft import block_of, butterfly_leaves, in_float64, inverse_cayley, polar
from mlx_hybrid.exports.peft_files import CONFIG_FILE, WEIGHTS_FILE, PeftFolder, read_peft
from mlx_hybrid.exports.weights import ModelWeights
from mlx_hybrid.files import sha256_of
from mlx_hybrid.models.base import is_named, load_base

REPORT_FILE = "import.json"
NEUMANN_DEFECT = 1e-5  # beyond it a Neumann rotation is not orthogonal, and no rotation of ours equals it

Leaves = dict[str, dict[str, mx.array]]


@dataclass
class Carried:
    """Settings and leaves of our adapter, by module."""

    method: str
    leaves: Leaves
    rotation: RotationConfig | None = None
    low_rank: LowRankConfig | None = None

    def config(self) -> AdapterConfig:
        return AdapterConfig(rotation=self.rotation, low_rank=self.low_rank, mixing="off")

    def add(self, other: "Carried", method: str) -> None:
        """Put a low-rank branch beside this rotation."""
        self.method, self.low_rank = method, other.low_rank
        for module, parts in other.leaves.items():
            self.leaves.setdefault(module, {}).update(parts)


def find_parts(directory: Path) -> list[PeftFolder]:
    """The adapter in `directory`, or the OFT and the LoRA in its folders, in that order.

    Raises ConfigError for no adapter, for more than one of a kind, and for what cannot be carried.
    """
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
    first, *rest = (CARRIERS[part.kind](part) for part in parts)
    for other in rest:
        first.add(other, "hybrid-boft")
    return first


def carry_lora(part: PeftFolder) -> Carried:
    """A and B transposed. Where rank or scale differ by module, ranks are padded and scales folded into B."""
    rank = max(len(tensors["lora_A.weight"]) for tensors in part.tensors.values())
    scales = {module: part.lora_scale(module) for module in part.modules}
    patterned = bool(part.config.get("rank_pattern") or part.config.get("alpha_pattern"))
    leaves: Leaves = {}
    for module, tensors in part.tensors.items():
        a, b = tensors["lora_A.weight"].T, tensors["lora_B.weight"].T
        if patterned:
            b = (scales[module] * b.astype(np.float64)).astype(np.float32)
            a, b = np.pad(a, ((0, 0), (0, rank - a.shape[1]))), np.pad(b, ((0, rank - len(b)), (0, 0)))
        leaves[module] = {"lora_a": contiguous(a), "lora_b": contiguous(b)}
    alpha, rslora = float(part.config["lora_alpha"]), bool(part.config.get("use_rslora"))
    scale = {"alpha": float(rank), "rslora": False} if patterned else {"alpha": alpha, "rslora": rslora}
    return Carried("lora", leaves, low_rank=LowRankConfig(rank=rank, **scale))


def carry_oft(part: PeftFolder) -> Carried:
    """One butterfly factor per dense block. Raises ConfigError for a Neumann file that is no rotation."""
    triangles = {module: oft_triangle(part, module) for module in part.modules}
    size = max(block_of(t.shape[-1]) for t in triangles.values())
    leaves = {m: butterfly_leaves(in_blocks_of(size, t, part, m), m) for m, t in triangles.items()}
    return Carried("boft", leaves, rotation=ButterflyConfig(block_size=size, factors=1))


def oft_triangle(part: PeftFolder, module: str) -> np.ndarray:
    """The triangle of the exact Cayley map; a Neumann file's rotation is converted where it is one."""
    if not part.config.get("use_cayley_neumann", True):
        return part.tensors[module]["oft_R.weight"]
    rotation = part.neumann_rotation(module)
    identity = np.eye(rotation.shape[-1])
    defect = float(np.abs(rotation @ rotation.swapaxes(-1, -2) - identity).max())
    if defect > NEUMANN_DEFECT:
        raise ConfigError(
            f"{part.folder}: {module} was trained with use_cayley_neumann, whose series is off a rotation by "
            f"{defect:.1g} there (at most {NEUMANN_DEFECT:g} can be carried); merge it in PEFT instead."
        )
    return inverse_cayley(polar(rotation), module).astype(np.float32)


def in_blocks_of(size: int, triangle: np.ndarray, part: PeftFolder, module: str) -> np.ndarray:
    """The same rotation as a triangle of blocks of `size`; the Cayley map of a block diagonal is one too."""
    small = block_of(triangle.shape[-1])
    if small == size:
        return triangle
    each = size // small
    if size % small or len(triangle) % each:
        raise ConfigError(
            f"{part.folder}: {module} has blocks of {small} and others of {size}, which fit no common size."
        )
    q, wide = in_float64(skew, triangle, small), np.zeros((len(triangle) // each, size, size))
    for index, block in enumerate(q):
        start = index % each * small
        wide[index // each, start : start + small, start : start + small] = block
    rows, columns = np.triu_indices(size, 1)
    return wide[:, rows, columns].astype(np.float32)


def carry_hra(part: PeftFolder) -> Carried:
    """The reflections in our order. Raises ConfigError for an odd number of them, or one without a direction."""
    count = {tensors["hra_u"].shape[1] for tensors in part.tensors.values()}
    if len(count) != 1 or max(count) % 2:
        raise ConfigError(
            f"{part.folder}: {sorted(count)[0]} reflections turn space inside out, and here they come in pairs; "
            "convert it to LoRA in PEFT."
        )
    leaves: Leaves = {}
    for module in part.modules:
        if not np.abs(part.tensors[module]["hra_u"]).max(axis=0).min() > 0:
            raise ConfigError(f"{part.folder}: {module} has a reflection of length zero.")
        leaves[module] = {"house_u": contiguous(part.reflections(module))}
    return Carried("hra", leaves, rotation=HouseholderConfig(reflections=max(count)))


CARRIERS = {"LORA": carry_lora, "OFT": carry_oft, "HRA": carry_hra}


def contiguous(value: np.ndarray) -> mx.array:
    return mx.array(np.ascontiguousarray(value, dtype=np.float32))


def attach_carried(model: Any, carried: Carried, where: str) -> AdapterConfig:
    """Put the carried adapter on a loaded base; modules it does not name are left without effect.

    Raises ConfigError for a module that the base lacks, or has in another shape.
    """
    modules = dict(model.named_modules())
    for module in carried.leaves:
        if not isinstance(modules.get(module), nn.Linear | nn.QuantizedLinear):
            raise ConfigError(f"{where}: adapts {module}, which the base does not have as a linear layer.")
    config = adapter_config(model, carried)
    share_blocks(modules, carried)
    attach(model, config)
    given = {f"{m}.{leaf}": value for m, parts in carried.leaves.items() for leaf, value in parts.items()}
    set_state(model, adapter_state(model) | given, where)
    return config


def attach_written(model: Any, folder: Path) -> None:
    """Put the PEFT adapter in `folder` on a loaded base, by module, as ranks may be padded beyond a layer's size."""
    carried, modules = carry(find_parts(folder)), dict(model.named_modules())
    config = carried.config()
    layers = [(name, layer_on(modules[name], config, leaves)) for name, leaves in carried.leaves.items()]
    model.update_modules(tree_unflatten(layers))


def adapter_config(model: Any, carried: Carried) -> AdapterConfig:
    """Targets by last part, and the last N layers where the first ones are not adapted."""
    indices = [index for module in carried.leaves if (index := layer_index(module)) is not None]
    first = min(indices, default=0)
    targets = tuple(sorted({last_part(module) for module in carried.leaves}))
    layers = max(0, len(model.layers) - first) if first else 0
    return replace(carried.config(), targets=targets, layers=layers)


def share_blocks(modules: dict, carried: Carried) -> None:
    """Store each block of a layer, where `block_share` stores one for all."""
    size = carried.rotation.block_size if isinstance(carried.rotation, ButterflyConfig) else 0
    for module, parts in carried.leaves.items() if size else ():
        if parts["oft_q"].shape[1] == 1:
            count = linear_shape(modules[module])[0] // size
            parts |= {leaf: mx.concatenate([parts[leaf]] * count, axis=1) for leaf in ("oft_q", "oft_base")}


def import_peft(peft: Path, directory: Path, *, base: str | None = None, force: bool = False) -> Report:
    """Write the PEFT adapter in `peft` as an adapter folder for MLX, on `base` or the base that its config names.

    Both are run beside each other: stock PEFT and ours, on the same weights. Raises ConfigError, with the reason, for
    what cannot be carried exactly, and ExportMismatch, exit code 3, when the result does not do what PEFT does (unless
    `force`).
    """
    if not peft.is_dir():
        raise ConfigError(f"{peft}: no such folder; name the one that holds adapter_config.json.")
    parts = find_parts(peft)
    name = base or named_base(peft, parts)
    carried = carry(parts)
    with new_folder(directory) as folder:
        loaded = load_base(name)
        config = attach_carried(loaded.model, carried, str(peft))
        origin = [{"kind": part.kind, "sha256": sha256_of(part.folder / WEIGHTS_FILE)} for part in parts]
        told = {"method": carried.method, "base": loaded.identity, "seed": 0, "extra": {"imported": origin}}
        save_adapter(loaded.model, folder, config=config, **told)
        del loaded
        source = open_source(str(folder), model=name)
        kind = " and ".join(part.kind for part in parts)
        adapter = {"name": directory.name, "method": source.info.method}
        report = Report("mlx", kind, adapter, source.info.base, {"modules": len(carried.leaves)})
        with unpacked(source.base) as dense:
            check_peft_logits(report, source, ModelWeights(dense), [part.folder for part in parts])
        report.base_folder = "" if is_named(name) else name
        report.finish(folder, directory, force=force, name=REPORT_FILE)
    return report


def named_base(peft: Path, parts: list[PeftFolder]) -> str:
    """The base the config names: a folder beside the adapter, another folder, or a Hub id."""
    name = parts[0].config.get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{peft}: does not say which base it is for; name it with --base.")
    return str(peft / name) if (peft / name).is_dir() else name
