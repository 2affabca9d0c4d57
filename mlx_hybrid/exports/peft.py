"""Write an adapter in PEFT's formats, and read it back: one LoRA where it is exactly one, else OFT v2 beside a LoRA.

Never BOFT with more than one factor, which PEFT cannot load, and never the raw leaves of a gradient start, which PEFT
would apply to the wrong base.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
from threadpoolctl import threadpool_limits

from mlx_hybrid.adapters.butterfly import Butterfly, rotate_factor
from mlx_hybrid.adapters.householder import Householder
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import Source, bare, layer_on
from mlx_hybrid.exports.lora import (
    Factors,
    base_product,
    cut_factors,
    float64,
    is_exact,
    lora_form,
    low_rank_factors,
    pad_rank,
    random_rows,
    reflection_span,
    truncated_form,
)
from mlx_hybrid.exports.oft import factor_rotations, in_float64, oft_form
from mlx_hybrid.exports.peft_files import PeftFolder, lora_settings, oft_settings, read_peft, write_peft
from mlx_hybrid.exports.peft_import import carry
from mlx_hybrid.exports.weights import ModelWeights

TOLERANCE = 2e-5
"""float32 factors of a float64 form: 1e-7 a term, times the condition of a balanced pair."""


@dataclass(frozen=True)
class Probe:
    """What the files of a module should do to rows x (n, in): turn them by `turn` = x R − x (n, in), and add `added`
    (n, out) to x R Wᵀ. Where a LoRA says all, `turn` is zero."""

    x: np.ndarray
    turn: np.ndarray
    added: np.ndarray


@dataclass
class Forms:
    """What each module becomes. `lora` and `oft` hold modules that have something to say; `errors` are the relative
    errors of truncated forms, empty where every form is exact."""

    lora: dict[str, Factors] = field(default_factory=dict)
    oft: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return max((a.shape[1] for a, _ in self.lora.values()), default=0)

    @property
    def exact(self) -> bool:
        return not self.errors

    @property
    def modules(self) -> list[str]:
        return sorted(set(self.lora).union(*self.oft.values()))


def make_forms(source: Source, weights: ModelWeights, rank: int | None = None) -> Forms:
    """The exact PEFT form of every module on the weights exported for, one layer in memory at a time.

    With a `rank`, one LoRA of at most that rank in place of each form: the nearest.
    """
    forms = Forms()
    # threads that wait for each other made small factorisations 50 times slower
    with threadpool_limits(1, "blas"):
        for module in source.modules:
            layer = source.layer(module, weights)
            factors, probe = form_and_probe(layer, module)
            if rank:
                shorten = partial(cut_factors, factors) if is_exact(layer) else partial(truncated_form, layer)
                factors, forms.errors[module] = shorten(rank)
                probe = Probe(probe.x, np.zeros_like(probe.x), (probe.x @ factors[0]) @ factors[1])
            elif not is_exact(layer) and np.any(triangle := oft_form(layer, module)):
                forms.oft.setdefault(layer.rotation.dense_size, {})[module] = triangle
            forms.probes[module] = probe
            if factors[0].shape[1]:
                forms.lora[module] = factors
    if not forms.lora and not forms.oft:
        raise ConfigError(f"{source.folder}: the adapter changes nothing, so there is nothing to export.")
    return forms


def form_and_probe(layer: HybridLinear, module: str) -> tuple[Factors, Probe]:
    """The LoRA of a layer (of its low-rank branch, for a butterfly), and its probe, with one pass over the weight.

    A butterfly is stored as a rotation, whatever the weight is, and that is not read.
    """
    x = random_rows(module, layer.linear.weight.shape[1])
    span, turn, added = reflection_span(layer), turned(layer, x) - x, low_rank_product(layer, x)
    if not is_exact(layer):
        return lora_form(layer), Probe(x, turn, added)
    product = base_product(layer, np.concatenate([span, turn]))
    factors = lora_form(layer, product[: len(span)])
    return factors, Probe(x, np.zeros_like(x), added + product[len(span) :])


def turned(layer: HybridLinear, x: np.ndarray) -> np.ndarray:
    """x R in float64, one reflection or one factor after another, where the export goes through compact forms."""
    rotation = layer.rotation
    if isinstance(rotation, Householder):
        for u in float64(rotation.house_u).T:
            x = x - np.outer(x @ u, 2 * u / (u @ u))
    elif isinstance(rotation, Butterfly):
        for level, factor in reversed(list(enumerate(factor_rotations(rotation)))):
            x = in_float64(rotate_factor, x, factor, level)
    return x


def low_rank_product(layer: HybridLinear, x: np.ndarray) -> np.ndarray:
    a, b = low_rank_factors(layer)
    return (x @ a) @ b


def write_lora(
    forms: Forms, weights: ModelWeights, folder: Path, base_id: str, rank: int | None = None
) -> None:
    """The LoRA of `forms`, every module padded to one rank."""
    rank = rank or forms.rank
    tensors = {}
    for module, factors in forms.lora.items():
        a, b = pad_rank(factors, rank)
        tensors[module] = {"lora_A.weight": a.T, "lora_B.weight": b.T}
    write_peft(folder, "LORA", lora_settings(rank, base_id), tensors, weights.names())


def write_forms(forms: Forms, weights: ModelWeights, folder: Path, base_id: str) -> list[Path]:
    """The LoRA in `folder`; or, with rotations, one stock OFT v2 adapter per block size and the LoRA, each in a folder
    of its name. The adapters' folders, in the order to load them."""
    if not forms.oft:
        write_lora(forms, weights, folder, base_id)
        return [folder]
    folders = []
    for size, triangles in sorted(forms.oft.items()):
        folders.append(folder / f"oft-{size}")
        tensors = {module: {"oft_R.weight": triangle} for module, triangle in triangles.items()}
        write_peft(folders[-1], "OFT", oft_settings(size, base_id), tensors, weights.names())
    if forms.lora:
        folders.append(folder / "lora")
        write_lora(forms, weights, folders[-1], base_id)
    return folders


def check_written(forms: Forms, weights: ModelWeights, folders: list[Path]) -> list[str]:
    """Import the written folders again: faults of keys against the base, and of what each module does to its rows."""
    parts = [read_peft(folder) for folder in folders]
    faults = key_faults(parts, weights)
    written = {module for part in parts for module in part.modules}
    faults += [f"{module} is not adapted" for module in sorted(written.difference(forms.modules))]
    for module in forms.modules:
        if module in written:
            faults += module_faults(parts, module, forms.probes[module])
        else:
            faults.append(f"{module} is missing from {' and '.join(part.folder.name for part in parts)}")
    return faults


def key_faults(parts: list[PeftFolder], weights: ModelWeights) -> list[str]:
    """Modules that the base lacks, or that the config does not name: PEFT would leave either out with a warning."""
    known, faults = set(weights.names()), []
    for part in parts:
        targets = part.config["target_modules"]
        for module in part.modules:
            if f"{module}.weight" not in known:
                faults.append(f"the base has no {module}")
            if module not in targets and module.rpartition(".")[2] not in targets:
                faults.append(f"target_modules of {part.folder.name} does not name {module}")
    return faults


def module_faults(parts: list[PeftFolder], module: str, probe: Probe) -> list[str]:
    """What `import` makes of one module of the files, against the layer that was exported."""
    own = [replace(p, tensors={module: p.tensors[module]}) for p in parts if module in p.tensors]
    try:
        carried = carry(own)
        stand_in = mx.zeros((probe.added.shape[1], probe.x.shape[1]))
        back = layer_on(bare(stand_in), carried.config(), carried.leaves[module])
    except (ConfigError, ValueError) as error:
        return [f"{module} cannot be imported again ({error})"]
    turn = turned(back, probe.x) - probe.x
    return update_fault(module, turn, probe.turn) or update_fault(
        module, low_rank_product(back, probe.x), probe.added
    )


def update_fault(module: str, actual: np.ndarray, expected: np.ndarray) -> list[str]:
    """A fault where the largest difference is not within the tolerance of the largest entry."""
    error = float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))
    return [] if error <= TOLERANCE else [f"{module} is off by {error:.2g} of its update"]
