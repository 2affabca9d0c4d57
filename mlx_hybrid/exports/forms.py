"""What each module of an adapter becomes: one LoRA where it is exactly one, else an OFT v2 beside a LoRA."""

from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np
from threadpoolctl import threadpool_limits

from mlx_hybrid.adapters.butterfly import Butterfly
from mlx_hybrid.adapters.store import CONFIG_FILE, WEIGHTS_FILE
from mlx_hybrid.adapters.targets import layer_index, within_layer
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import Source, random_rows
from mlx_hybrid.exports.lora import Factors, cut_form, float64, lora_form, pad_rank, turned
from mlx_hybrid.exports.oft import oft_form
from mlx_hybrid.exports.weights import ModelWeights
from mlx_hybrid.files import write_json

TOLERANCE = 2e-5
"""float32 factors of a float64 form: 1e-7 a term, times the condition of a balanced pair."""
Probe = tuple[np.ndarray | float, np.ndarray | float]
"""What a module does to random rows x (n, in): x R − x (n, in), and what it adds (n, out)."""


@dataclass
class Forms:
    """What each module becomes: `lora` and `oft` (by block size) where it has something to say, `probes` what its files
    should do to random rows, `errors` what truncation loses, and `magnitudes` (out,) the row norms of DoRA."""

    lora: dict[str, Factors] = field(default_factory=dict)
    oft: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    magnitudes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return max((a.shape[1] for a, _ in self.lora.values()), default=0)

    @property
    def modules(self) -> list[str]:
        return sorted(set(self.lora).union(*self.oft.values()))


@threadpool_limits.wrap(limits=1, user_api="blas")  # threads waited for each other: 50 times slower
def make_forms(source: Source, weights: ModelWeights, rank: int | None = None) -> Forms:
    """The exact form of every module on `weights`; with a `rank`, the nearest LoRA of at most that rank."""
    forms = Forms()
    for module in source.info.modules:
        layer = source.layer(module, weights)
        x = random_rows(module, layer.linear.weight.shape[1])
        turn = np.zeros_like(x)
        if rank:
            (a, b), forms.errors[module] = cut_form(layer, x, rank)
            added = (x @ a) @ b
        else:
            (a, b), added = lora_form(layer, x)
            if isinstance(layer.rotation, Butterfly) and np.any(triangle := oft_form(layer.rotation, module)):
                turn = turned(layer, x) - x
                forms.oft.setdefault(layer.rotation.dense_size, {})[module] = triangle
        forms.probes[module] = turn, added
        if "m" in layer:
            forms.magnitudes[module] = np.array(layer.m)
        if a.shape[1] or "m" in layer:
            forms.lora[module] = a, b
    if not forms.modules:
        raise ConfigError(f"{source.folder}: the adapter changes nothing, so there is nothing to export.")
    return forms


def factors_probe(module: str, factors: Factors) -> Probe:
    a, b = factors
    return 0.0, (random_rows(module, len(a)) @ a) @ b


def probe_faults(forms: Forms, found: dict[str, Probe]) -> list[str]:
    """Modules that written files lack or add, and those that do something else there than in the layer: where the
    largest difference is not within the tolerance of the largest entry."""
    faults = [f"{module} is missing" for module in forms.modules if module not in found]
    faults += [f"{module} is not adapted" for module in sorted(found.keys() - set(forms.modules))]
    for module in sorted(found.keys() & set(forms.modules)):
        pairs = zip(found[module], forms.probes[module], strict=True)
        errors = [np.abs(own - wanted).max() / max(np.abs(wanted).max(), 1e-30) for own, wanted in pairs]
        if not np.max(errors) <= TOLERANCE:
            faults.append(f"{module} is off by {np.max(errors):.2g} of its update")
    return faults


def lora_faults(forms: Forms, written: dict[str, Factors]) -> list[str]:
    """`probe_faults` of factors as a file of one LoRA holds them."""
    return probe_faults(forms, {module: factors_probe(module, pair) for module, pair in written.items()})


def write_mlx_lm(forms: Forms, folder: Path, *, base_id: str, layers: int) -> dict[str, Factors]:
    """Write the exact LoRA as an adapter folder of stock mlx-lm for a model of so many `layers`; what is read back.

    mlx-lm gives every named sub-module of the last `num_layers` layers one rank and one scale; modules without an
    update start at zero there, so they may be left out.
    """
    tensors = {}
    for module, factors in forms.lora.items():
        a, b = (mx.array(part.astype(np.float32)) for part in pad_rank(factors, forms.rank))
        tensors |= {f"{module}.lora_a": a, f"{module}.lora_b": b}
    mx.save_safetensors(str(folder / WEIGHTS_FILE), tensors, metadata={"format": "mlx"})
    first = min((index for m in forms.lora if (index := layer_index(m)) is not None), default=0)
    keys = sorted({within_layer(module) for module in forms.lora})
    parameters = {"rank": forms.rank, "scale": 1.0, "dropout": 0.0, "keys": keys}
    tree = {"fine_tune_type": "lora", "model": base_id, "num_layers": layers - first}
    write_json(folder / CONFIG_FILE, tree | {"lora_parameters": parameters})
    stored = mx.load(str(folder / WEIGHTS_FILE))
    return {m: (float64(stored[f"{m}.lora_a"]), float64(stored[f"{m}.lora_b"])) for m in forms.lora}
