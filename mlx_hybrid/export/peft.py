"""Write an adapter in PEFT's formats: one LoRA where it is exactly one, else OFT v2 beside a LoRA.

Never BOFT with more than one factor, which PEFT cannot load, and never the raw leaves of a gradient start, which PEFT
would apply to the wrong base.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from mlx_hybrid.adapters.butterfly import dense_block_size
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.export.adapter import Source
from mlx_hybrid.export.lora import (
    Factors,
    base_product,
    cut_factors,
    is_exact,
    lora_form,
    pad_rank,
    reflection_span,
    truncated_form,
)
from mlx_hybrid.export.oft import oft_form
from mlx_hybrid.export.peft_files import (
    PeftFolder,
    lora_settings,
    oft_settings,
    read_peft,
    target_names,
    write_peft,
)
from mlx_hybrid.export.probes import Probe, check_lora, check_oft, probe_layer, probe_turn
from mlx_hybrid.export.weights import ModelWeights


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
    with threadpool_limits(
        1, "blas"
    ):  # threads that wait for each other made small factorisations 50 times slower
        for module in source.modules:
            layer = source.layer(module, weights)
            factors, forms.probes[module] = form_and_probe(layer, module)
            if rank:
                shorten = partial(cut_factors, factors) if is_exact(layer) else partial(truncated_form, layer)
                factors, forms.errors[module] = shorten(rank)
            elif not is_exact(layer):
                add_rotation(forms, layer, module)
            if factors[0].shape[1]:
                forms.lora[module] = factors
    if not forms.lora and not forms.oft:
        raise ConfigError(f"{source.folder}: the adapter changes nothing, so there is nothing to export.")
    return forms


def form_and_probe(layer: HybridLinear, module: str) -> tuple[Factors, Probe]:
    """The LoRA of a layer (of its low-rank branch, for a butterfly), and its probe, with one pass over the weight.

    A butterfly is stored as a rotation, whatever the weight is: that is not read, and the probe's total not known.
    """
    span, turn = reflection_span(layer), probe_turn(layer, module)
    if not is_exact(layer) and np.any(turn):
        unknown = np.full((len(turn), layer.linear.weight.shape[0]), np.nan)  # no check passes on it
        return lora_form(layer), probe_layer(layer, module, unknown)
    product = base_product(layer, np.concatenate([span, turn]))
    return lora_form(layer, product[: len(span)]), probe_layer(layer, module, product[len(span) :])


def add_rotation(forms: Forms, layer: HybridLinear, module: str) -> None:
    triangle = oft_form(layer, module)
    if np.any(triangle):
        size = dense_block_size(layer.plan.block_size, layer.plan.factors)
        forms.oft.setdefault(size, {})[module] = triangle


def write_lora(
    forms: Forms, weights: ModelWeights, folder: Path, base_id: str, rank: int | None = None
) -> None:
    """The LoRA of `forms`, every module padded to one rank."""
    rank = rank or forms.rank
    tensors = {}
    for module, factors in forms.lora.items():
        a, b = pad_rank(factors, rank)
        tensors[module] = {"lora_A.weight": a.T, "lora_B.weight": b.T}
    targets = target_names(list(tensors), weights.names())
    write_peft(folder, "LORA", lora_settings(rank, base_id), tensors, targets)


def write_pair(forms: Forms, weights: ModelWeights, folder: Path, base_id: str) -> list[str]:
    """One stock OFT v2 adapter per block size and the LoRA, each in a folder of its name; the names in load order."""
    for size, triangles in sorted(forms.oft.items()):
        tensors = {module: {"oft_R.weight": triangle} for module, triangle in triangles.items()}
        targets = target_names(list(tensors), weights.names())
        write_peft(folder / f"oft-{size}", "OFT", oft_settings(size, base_id), tensors, targets)
    names = [f"oft-{size}" for size in sorted(forms.oft)]
    if forms.lora:
        write_lora(forms, weights, folder / "lora", base_id)
        names.append("lora")
    return names


def check_written(forms: Forms, weights: ModelWeights, folders: list[Path]) -> list[str]:
    """Read the written folders back; faults of keys against the base, and of what they do against the probes."""
    read = [read_peft(folder) for folder in folders]
    return key_faults(read, weights) + algebra_faults(forms, read)


def key_faults(folders: list[PeftFolder], weights: ModelWeights) -> list[str]:
    """Modules that the base lacks, or that the config does not name: PEFT would leave either out with a warning."""
    known, faults = set(weights.names()), []
    for folder in folders:
        targets = folder.config["target_modules"]
        for module in folder.modules:
            if f"{module}.weight" not in known:
                faults.append(f"the base has no {module}")
            if module not in targets and module.rpartition(".")[2] not in targets:
                faults.append(f"target_modules of {folder.folder.name} does not name {module}")
    return faults


def algebra_faults(forms: Forms, folders: list[PeftFolder]) -> list[str]:
    """What the files do to the probes, by PEFT's conventions, against what the layers do."""
    rows = {module: probe.x for module, probe in forms.probes.items()}
    faults = []
    for folder in folders:
        if folder.kind == "OFT":
            wanted = forms.oft.get(folder.config["oft_block_size"], {})
            faults += check_oft(folder, {m: forms.probes[m].turn for m in wanted}, rows)
        else:
            faults += check_lora(folder, lora_expected(forms), rows)
    return faults


def lora_expected(forms: Forms) -> dict[str, np.ndarray]:
    """What the LoRA should add: all of it where there is no OFT beside it, its own branch otherwise."""
    if not forms.exact:
        rows = {m: forms.probes[m].x for m in forms.lora}
        return {m: (rows[m] @ a) @ b for m, (a, b) in forms.lora.items()}
    turned = set().union(*forms.oft.values()) if forms.oft else set()
    return {m: forms.probes[m].low if m in turned else forms.probes[m].total for m in forms.lora}
