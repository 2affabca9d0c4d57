"""The adapter inside the weights: W' = W Rᵀ + s (A B)ᵀ, written tensor by tensor with the base's own names."""

from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.export.adapter import Source
from mlx_hybrid.export.lora import random_rows
from mlx_hybrid.export.weights import (
    ModelWeights,
    copy_companions,
    refuse_layout,
    write_dense_config,
    write_shards,
)
from mlx_hybrid.files import write_json

ROUNDING = 1e-2
"""bf16 keeps 8 bits: a product of merged weights is off by 2⁻⁹ of its largest entry, and never by 1 %."""


@dataclass
class Survival:
    """How much of the update is left in the stored weights: ⟨Ŵ − W, Δ⟩ / ‖Δ‖², by module and over all."""

    modules: dict[str, float] = field(default_factory=dict)
    kept: float = 0.0
    whole: float = 0.0

    def add(self, name: str, base: mx.array, merged: mx.array, stored: mx.array) -> None:
        update = merged - base
        kept = float(mx.sum((stored - base) * update))
        whole = float(mx.sum(mx.square(update)))
        self.kept, self.whole = self.kept + kept, self.whole + whole
        if whole:
            self.modules[name] = kept / whole

    @property
    def share(self) -> float:
        return self.kept / self.whole if self.whole else 1.0

    @property
    def worst(self) -> tuple[str, float]:
        return min(self.modules.items(), key=lambda item: item[1], default=("", 1.0))

    def tree(self) -> dict:
        name, share = self.worst
        return {"surviving_share": self.share, "worst_module": name, "worst_surviving_share": share}


def write_merged(
    source: Source, weights: ModelWeights, folder: Path, *, requantise: bool = False, for_mlx: bool = False
) -> None:
    """Write the model with the adapter in it: bf16 under the base's names, or packed again as the base was.

    Tied heads, biases and every other tensor are the base's own. Raises ConfigError for a layout that only MLX reads,
    unless the model is `for_mlx`, and for a layer that `weights` does not hold.
    """
    if not for_mlx:
        refuse_layout(weights)
    changed = changed_names(source, weights)

    def stored(name: str) -> dict[str, mx.array]:
        if name in changed:
            return as_stored(name, base_and_merged(source, weights, name)[1], weights, requantise)
        return weights.parts(name) if requantise else {name: weights.dense(name, mx.bfloat16)}

    sizes = {name: weights.dense_size(name) * mx.bfloat16.size for name in weights.names()}
    write_shards(folder, sizes, stored, "mlx" if for_mlx else "pt")
    if requantise:
        write_json(folder / "config.json", weights.config)
    else:
        write_dense_config(weights.config, folder)
    copy_companions(weights.folder, folder)


def changed_names(source: Source, weights: ModelWeights) -> dict[str, None]:
    """Tensors that training changed, in file order. Raises ConfigError for one that `weights` does not hold."""
    wanted = {f"{module}.weight" for module in source.modules} | source.trained.keys()
    if absent := sorted(wanted.difference(weights.names())):
        raise ConfigError(
            f"{weights.folder}: holds no {absent[0]}, which was trained; this architecture's names differ between "
            "MLX and Hugging Face, which cannot be carried yet."
        )
    return dict.fromkeys(name for name in weights.names() if name in wanted)


def base_and_merged(source: Source, weights: ModelWeights, name: str) -> tuple[mx.array, mx.array]:
    """W and W' in float32."""
    if name in source.trained:
        return weights.dense(name, mx.float32), source.trained[name].astype(mx.float32)
    layer = source.layer(name.removesuffix(".weight"), weights)
    return layer.linear.weight.astype(mx.float32), layer.merged_weight()


def as_stored(name: str, merged: mx.array, weights: ModelWeights, requantise: bool) -> dict[str, mx.array]:
    """A merged tensor as it is to be stored: bf16, or packed with its module's own settings."""
    module = name.removesuffix(".weight")
    if not requantise or f"{module}.scales" not in weights.files:
        return {name: merged.astype(mx.bfloat16)}
    dtype = weights.read(f"{module}.scales").dtype
    if mx.issubdtype(dtype, mx.floating):
        merged = merged.astype(dtype)
    parts = mx.quantize(merged, **weights.packing(module))
    return dict(zip((name, f"{module}.scales", f"{module}.biases"), parts, strict=False))


def measure_survival(source: Source, weights: ModelWeights, folder: Path) -> Survival:
    """How much of the update the written model holds."""
    written, survival = ModelWeights(folder), Survival()
    for name in changed_names(source, weights):
        base, merged = base_and_merged(source, weights, name)
        survival.add(name.removesuffix(".weight"), base, merged, written.dense(name, mx.float32))
    return survival


def check_merged(source: Source, weights: ModelWeights, folder: Path) -> list[str]:
    """Read a bf16 merged folder back: its names and shapes against the base, each adapted layer on random rows."""
    written = ModelWeights(folder)
    faults = [f"{name} is missing" for name in weights.names() if name not in written.files]
    faults += [f"{name} is not in the base" for name in written.files if name not in weights.files]
    for name in written.files:
        if name in weights.files and written.shapes[name] != weights.dense_shape(name):
            faults.append(f"{name} is {written.shapes[name]}, not {weights.dense_shape(name)}")
    for module in [] if faults else source.modules:
        layer = source.layer(module, weights)
        layer.linear.weight = layer.linear.weight.astype(mx.float32)
        x = mx.array(random_rows(module, layer.linear.weight.shape[1]), dtype=mx.float32)
        expected, actual = layer(x), x @ written.dense(f"{module}.weight", mx.float32).T
        error = float(mx.abs(actual - expected).max() / mx.abs(expected).max())
        if not error <= ROUNDING:
            faults.append(f"{module} is off by {error:.2g} of its output")
    return faults
