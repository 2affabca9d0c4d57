"""PEFT adapter folders, written, read and checked without PyTorch or PEFT; conventions measured against PEFT 0.21.
Never BOFT with more than one factor, which PEFT cannot load, nor raw leaves of a gradient start of another base."""

import re
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

from mlx_hybrid.config import flat
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import random_rows
from mlx_hybrid.exports.forms import Forms, Probe, padded, probe_faults, rotation_of, skew_of
from mlx_hybrid.exports.weights import ModelWeights
from mlx_hybrid.files import read_json, read_tensors, write_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
COMMON = {"task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none", "peft_version": "0.21.2"}
LORA = {"lora_dropout": 0.0, "init_lora_weights": True, "use_rslora": False, "fan_in_fan_out": False}
OFT = dict.fromkeys(("use_cayley_neumann", "block_share", "coft"), False) | {"r": 0, "init_weights": True}
"""Settings that change an output are never left to defaults: without its key, an OFT turns the other way."""
SUFFIXES = {"LORA": ("lora_A.weight", "lora_B.weight"), "OFT": ("oft_R.weight",), "HRA": ("hra_u",)}
KNOWN = (  # keys that are read in this module, or change nothing at inference
    *("task_type", "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "r", "inference_mode"),
    *("init_weights", "init_lora_weights", "eva_config", "lora_dropout", "module_dropout", "megatron_core"),
    *("qalora_group_size", "eps", "num_cayley_neumann_terms", "lora_alpha", "use_rslora", "rank_pattern"),
    *("alpha_pattern", "use_dora", "oft_block_size", "use_cayley_neumann", "block_share", "apply_GS"),
)
STARTS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class PeftFolder:
    """One PEFT adapter: its kind, its config, and float32 tensors by module and suffix."""

    folder: Path
    kind: str
    config: dict
    tensors: dict[str, dict[str, np.ndarray]]

    def factors(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """A (in, r) and B (r, out) of a LoRA in float64, with its scale in B: alpha / r, or alpha / √r with rsLoRA."""
        rank = pattern_value(self.config.get("rank_pattern"), module, self.config["r"])
        alpha = pattern_value(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        a, b = (self.tensors[module][suffix].astype(np.float64).T for suffix in SUFFIXES["LORA"])
        if a.shape[1] != rank:
            raise ConfigError(f"{self.folder}: {module} has rank {a.shape[1]}, but the config says {rank}.")
        return a, alpha / (np.sqrt(rank) if self.config.get("use_rslora") else rank) * b

    @property
    def is_neumann(self) -> bool:
        """Whether it is an OFT of PEFT's series, its default, which turns the other way than the exact form."""
        return self.kind == "OFT" and self.config.get("use_cayley_neumann", True)

    def rotation(self, module: str) -> np.ndarray:
        """What an OFT turns an activation by, x R, as dense blocks (in/B, B, B) in float64; one block where shared."""
        triangle = self.tensors[module]["oft_R.weight"]
        return self.series(triangle) if self.is_neumann else rotation_of(triangle)

    def series(self, triangle: np.ndarray) -> np.ndarray:
        """I + 2Q + 2Q² + …, the last power once: PEFT's `use_cayley_neumann`."""
        q, terms = skew_of(triangle), self.config.get("num_cayley_neumann_terms", 5)
        counts = [1, *[2] * (max(terms, 4) - 2), 1] if terms > 2 else [1, 2][:terms]
        return sum(count * np.linalg.matrix_power(q, power) for power, count in enumerate(counts))

    def reflections(self, module: str) -> np.ndarray:
        """U (in, k) of an HRA module in our order: PEFT multiplies the weight, so x meets its last column first."""
        u = self.tensors[module]["hra_u"]
        u = gram_schmidt(u) if self.config.get("apply_GS") else u.astype(np.float64)
        return u[:, ::-1] / np.linalg.norm(u[:, ::-1], axis=0)


def gram_schmidt(u: np.ndarray) -> np.ndarray:
    """Orthonormal columns as PEFT makes them, in float32 one after another: of near pairs rounding is a large part."""
    done: list[np.ndarray] = []
    for column in u.T:
        for other in done:
            column = column - np.float32(np.dot(other.astype(np.float64), column)) * other
        done.append(column / np.float32(np.linalg.norm(column.astype(np.float64))))
    return np.stack(done, axis=1).astype(np.float64)


def read_peft(folder: Path) -> PeftFolder:
    """A PEFT adapter folder. Raises ConfigError, with the reason, for one that is no plain LoRA, OFT v2 or HRA."""
    config = read_json(folder / CONFIG_FILE)
    kind = config.get("peft_type")
    if kind not in SUFFIXES:
        what = "not a PEFT adapter" if kind is None else f"a {kind} adapter"
        raise ConfigError(f"{folder}: {what}; LORA, OFT and HRA can be carried exactly.")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(STARTS_THAT_CHANGE_THE_BASE):
        way_out = "save it in PEFT with path_initial_model_for_weight_conversion, then import that"
        raise ConfigError(f"{folder}: was started with {start}, which changes the base weights; {way_out}.")
    for key, value in config.items():
        if key not in KNOWN and value not in (None, False, {}, [], "none", ""):
            raise ConfigError(f"{folder}: {key} is {value!r}, which cannot be carried exactly.")
    suffixes = (*SUFFIXES[kind], MAGNITUDE) if config.get("use_dora") else SUFFIXES[kind]
    return PeftFolder(folder, kind, config, tensors_by_module(folder, suffixes, kind))


def tensors_by_module(folder: Path, suffixes: tuple[str, ...], kind: str) -> dict[str, dict[str, np.ndarray]]:
    """Each module with all that its kind needs, and no tensor over."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ConfigError(f"{folder}: {WEIGHTS_FILE} is missing (pickled .bin files are not read).")
    tensors: dict[str, dict[str, np.ndarray]] = {}
    for key, stored in sorted(read_tensors(path).items()):
        suffix = next((s for s in suffixes if key.endswith(f".{s}")), None)
        if suffix is None or not key.startswith(PREFIX):
            raise ConfigError(f"{path}: {key} is not a tensor of a {kind} adapter, so it cannot be carried.")
        value = np.array(stored.astype(mx.float32))
        if not np.isfinite(value).all():
            raise ConfigError(f"{path}: {key} holds values that are not finite.")
        tensors.setdefault(key.removeprefix(PREFIX).removesuffix(f".{suffix}"), {})[suffix] = value
    for module, parts in tensors.items():
        if missing := [s for s in suffixes if s not in parts]:
            raise ConfigError(f"{path}: {module} lacks {missing[0]}.")
    return tensors


def pattern_value(patterns: dict | None, module: str, default: float) -> float:
    """The value whose pattern matches a module's name: the whole name or its end, by regular expression."""
    found = (v for p, v in (patterns or {}).items() if re.fullmatch(rf"(?:.*\.)?(?:{p})", module))
    return next(found, default)


def write_forms(forms: Forms, weights: ModelWeights, folder: Path, base: str, rank: int) -> list[Path]:
    """Write the LoRA in `folder`, all of one `rank`, or an OFT v2 a block size and the LoRA in folders of it; these, in
    loading order. `base` is the base's Hub id, or its path from `folder`."""
    folders = []
    where = {"base_model_name_or_path": f"../{base}" if forms.oft and (folder / base).exists() else base}
    for size, triangles in sorted(forms.oft.items()):
        folders.append(folder / f"oft-{size}")
        tensors = {module: {"oft_R.weight": triangle} for module, triangle in triangles.items()}
        write_peft(folders[-1], "OFT", where | {"oft_block_size": size}, tensors, weights)
    if forms.lora:
        folders.append(folder / "lora" if forms.oft else folder)
        tensors = {}
        for module, factors in forms.lora.items():
            a, b = padded(factors, rank)
            tensors[module] = {"lora_A.weight": a.T, "lora_B.weight": b.T}
            if module in forms.magnitudes:
                tensors[module][MAGNITUDE] = forms.magnitudes[module]
        sizes = {"r": rank, "lora_alpha": rank, "use_dora": bool(forms.magnitudes)}
        write_peft(folders[-1], "LORA", where | sizes, tensors, weights)
    return folders


def write_peft(folder: Path, kind: str, settings: dict, tensors: dict, weights: ModelWeights) -> None:
    """One adapter: `tensors` by module and suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {PREFIX + name: np.ascontiguousarray(own, np.float32) for name, own in flat(tensors).items()}
    save_file(named, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    holders = {name.removesuffix(".weight") for name in weights.shapes if name.endswith(".weight")}
    ends = {module.rpartition(".")[2] for module in tensors}
    meant = {holder for holder in holders if holder.rpartition(".")[2] in ends}
    targets = sorted(ends if meant == tensors.keys() else tensors)  # last parts where they name exactly these
    tree = {"peft_type": kind, "target_modules": targets}
    write_json(folder / CONFIG_FILE, COMMON | tree | settings | (LORA if kind == "LORA" else OFT))


def check_written(forms: Forms, weights: ModelWeights, folders: list[Path]) -> list[str]:
    """Read the written folders back: faults of keys against the base, and of what each module does to its rows."""
    parts, faults = [read_peft(folder) for folder in folders], []
    for part in parts:
        targets = part.config["target_modules"]
        for module in part.tensors:  # PEFT would leave either out with a warning
            if f"{module}.weight" not in weights.shapes:
                faults.append(f"the base has no {module}")
            if module not in targets and module.rpartition(".")[2] not in targets:
                faults.append(f"target_modules of {part.folder.name} does not name {module}")
            if not np.array_equal(part.tensors[module].get(MAGNITUDE), forms.magnitudes.get(module)):
                faults.append(f"{module} has other magnitudes")
    written = {module for part in parts for module in part.tensors}
    return faults + probe_faults(forms, {module: read_probe(parts, module) for module in written})


def read_probe(parts: list[PeftFolder], module: str) -> Probe:
    """What the files of a module do to its random rows."""
    turn, added = 0.0, 0.0
    for part in parts:
        if module in part.tensors and part.kind == "OFT":
            blocks = part.rotation(module)
            x = random_rows(module, blocks.shape[0] * blocks.shape[1])
            turn = (x.reshape(len(x), len(blocks), 1, -1) @ blocks).reshape(x.shape) - x
        elif module in part.tensors:
            a, b = part.factors(module)
            added = (random_rows(module, len(a)) @ a) @ b
    return turn, added
