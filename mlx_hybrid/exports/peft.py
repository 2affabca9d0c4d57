"""Write an adapter in PEFT's formats, and read it back: one LoRA where it is exactly one, else OFT v2 beside a LoRA.

Never BOFT with more than one factor, which PEFT cannot load, and never the raw leaves of a gradient start, which PEFT
would apply to the wrong base.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import Source, random_rows
from mlx_hybrid.exports.lora import Factors, cut_form, is_exact, lora_form, pad_rank, turned
from mlx_hybrid.exports.oft import oft_form
from mlx_hybrid.exports.peft_files import MAGNITUDE, PeftFolder, read_peft, write_peft
from mlx_hybrid.exports.weights import ModelWeights

TOLERANCE = 2e-5
"""float32 factors of a float64 form: 1e-7 a term, times the condition of a balanced pair."""


@dataclass
class Forms:
    """What each module becomes: `lora` and `oft` (by block size) where it has something to say, `probes` what its files
    should do to random rows, x R − x (n, in) and what is added (n, out), `errors` what truncation loses, and
    `magnitudes` (out,) the row norms of DoRA."""

    lora: dict[str, Factors] = field(default_factory=dict)
    oft: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    probes: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    magnitudes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return max((a.shape[1] for a, _ in self.lora.values()), default=0)

    @property
    def modules(self) -> list[str]:
        return sorted(set(self.lora).union(*self.oft.values()))


def make_forms(source: Source, weights: ModelWeights, rank: int | None = None) -> Forms:
    """The exact PEFT form of every module on `weights`; with a `rank`, the nearest LoRA of at most that rank."""
    forms = Forms()
    # threads that wait for each other made small factorisations 50 times slower
    with threadpool_limits(1, "blas"):
        for module in source.info.modules:
            layer = source.layer(module, weights)
            x = random_rows(module, layer.linear.weight.shape[1])
            turn = np.zeros_like(x)
            if rank:
                factors, forms.errors[module] = cut_form(layer, x, rank)
                added = (x @ factors[0]) @ factors[1]
            else:
                factors, added = lora_form(layer, x)
                if not is_exact(layer) and np.any(triangle := oft_form(layer.rotation, module)):
                    turn = turned(layer, x) - x
                    forms.oft.setdefault(layer.rotation.dense_size, {})[module] = triangle
            forms.probes[module] = turn, added
            if "m" in layer:
                forms.magnitudes[module] = np.array(layer.m)
            if factors[0].shape[1] or "m" in layer:
                forms.lora[module] = factors
    if not forms.lora and not forms.oft:
        raise ConfigError(f"{source.folder}: the adapter changes nothing, so there is nothing to export.")
    return forms


def update_faults(forms: Forms, factors: dict[str, Factors]) -> list[str]:
    """Modules whose factors, as a file of one LoRA holds them, are missing or do not add what they should."""
    faults = [f"{module} is missing" for module in forms.lora if module not in factors]
    for module, (a, b) in factors.items():
        faults += update_fault(module, (random_rows(module, len(a)) @ a) @ b, forms.probes[module][1])
    return faults


def write_lora(forms: Forms, weights: ModelWeights, folder: Path, base: str, rank: int) -> None:
    """The LoRA of `forms`, every module padded to one rank."""
    tensors = {}
    for module, factors in forms.lora.items():
        a, b = pad_rank(factors, rank)
        tensors[module] = {"lora_A.weight": a.T, "lora_B.weight": b.T}
        if module in forms.magnitudes:
            tensors[module][MAGNITUDE] = forms.magnitudes[module]
    write_peft(folder, "LORA", base, tensors, weights.names(), rank)


def write_forms(forms: Forms, weights: ModelWeights, folder: Path, base: str) -> list[Path]:
    """The LoRA in `folder`, or an OFT v2 a block size and the LoRA in folders of it; these, in loading order."""
    folders, above = [], f"../{base}" if (folder / base).exists() else base
    for size, triangles in sorted(forms.oft.items()):
        folders.append(folder / f"oft-{size}")
        tensors = {module: {"oft_R.weight": triangle} for module, triangle in triangles.items()}
        write_peft(folders[-1], "OFT", above, tensors, weights.names(), size)
    if forms.lora:
        folders.append(folder / "lora" if forms.oft else folder)
        write_lora(forms, weights, folders[-1], above if forms.oft else base, forms.rank)
    return folders


def check_written(forms: Forms, weights: ModelWeights, folders: list[Path]) -> list[str]:
    """Read the written folders back: faults of keys against the base, and of what each module does to its rows."""
    parts, known, faults = [read_peft(folder) for folder in folders], set(weights.names()), []
    for part in parts:
        targets = part.config["target_modules"]
        for module in part.tensors:  # PEFT would leave either out with a warning
            if f"{module}.weight" not in known:
                faults.append(f"the base has no {module}")
            if module not in targets and module.rpartition(".")[2] not in targets:
                faults.append(f"target_modules of {part.folder.name} does not name {module}")
    written = {module for part in parts for module in part.tensors}
    faults += [f"{module} is not adapted" for module in sorted(written.difference(forms.modules))]
    for module in forms.modules:
        if module in written:
            stored = next((p.tensors[module].get(MAGNITUDE) for p in parts if module in p.tensors), None)
            if not np.array_equal(stored, forms.magnitudes.get(module)):
                faults.append(f"{module} has other magnitudes")
            turn, added = forms.probes[module]
            own_turn, own_added = read_probe(parts, module, random_rows(module, turn.shape[1]))
            faults += update_fault(module, own_turn, turn) or update_fault(module, own_added, added)
        else:
            faults.append(f"{module} is missing from {' and '.join(part.folder.name for part in parts)}")
    return faults


def read_probe(parts: list[PeftFolder], module: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
    """What the files of a module do to rows x (n, in): x R − x, and what they add."""
    turn, added = np.zeros_like(x), 0.0
    for part in parts:
        if module in part.tensors and part.kind == "OFT":
            blocks = part.rotation(module)
            grouped = x.reshape(len(x), len(blocks), 1, -1)
            turn = (grouped @ blocks).reshape(x.shape) - x
        elif module in part.tensors:
            a, b = part.factors(module)
            added = (x @ a) @ b
    return turn, added


def update_fault(module: str, actual: np.ndarray | float, expected: np.ndarray) -> list[str]:
    """A fault where the largest difference is not within the tolerance of the largest entry."""
    error = float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))
    return [] if error <= TOLERANCE else [f"{module} is off by {error:.2g} of its update"]
