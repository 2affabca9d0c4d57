"""The adapter inside the weights: W' = W Rᵀ + s (A B)ᵀ, written tensor by tensor with the base's own names."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.export.adapter import Source
from mlx_hybrid.export.lora import base_product
from mlx_hybrid.export.probes import probe_layer, relative_error
from mlx_hybrid.export.weights import (
    ModelWeights,
    ShardWriter,
    copy_companions,
    refuse_experts,
    write_dense_config,
)
from mlx_hybrid.files import write_json

ROUNDING = 1e-2  # bf16 keeps 8 bits: a product of merged weights is off by 2⁻⁹ of its largest entry, and never by 1 %


@dataclass
class Survival:
    """How much of the update is left in the stored weights: ⟨Ŵ − W, Δ⟩ / ‖Δ‖², by module and over all."""

    modules: dict[str, float] = field(default_factory=dict)
    kept: float = 0.0
    whole: float = 0.0

    def add(self, name: str, base: mx.array, merged: mx.array, stored: mx.array) -> None:
        update = merged - base
        kept = float(mx.sum((stored.astype(mx.float32) - base) * update))
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
) -> Survival:
    """Write the model with the adapter in it: bf16 under the base's names, or packed again as the base was.

    Tied heads, biases and every other tensor are the base's own. Raises ConfigError for stacked experts, unless the
    model is `for_mlx` alone, and for a layer that `weights` does not hold.
    """
    if not for_mlx:
        refuse_experts(weights)
    survival, writer = Survival(), ShardWriter(folder)
    for name, value in merged_tensors(source, weights, survival, requantise=requantise):
        mx.eval(value)
        writer.add(name, value)
    writer.close()
    if requantise:
        write_json(folder / "config.json", weights.config)
    else:
        write_dense_config(weights.config, folder)
    copy_companions(weights.folder, folder)
    return survival


def merged_tensors(
    source: Source, weights: ModelWeights, survival: Survival, *, requantise: bool
) -> Iterator[tuple[str, mx.array]]:
    """Name and value of every stored tensor, merged where adapted."""
    adapted, trained = set(source.modules), trained_tensors(source)
    check_all_there(adapted, trained, weights)
    for name in weights.names():
        module = name.removesuffix(".weight")
        base = merged = None
        if module in adapted and name.endswith(".weight"):
            layer = source.layer(module, weights)
            base, merged = layer.linear.weight.astype(mx.float32), layer.merged_weight()
        elif name in trained:
            base, merged = weights.dense(name, mx.float32), trained[name].astype(mx.float32)
        if merged is None:
            yield from untouched(name, weights, requantise=requantise)
        else:
            stored = dict(store(name, merged, weights, requantise=requantise))
            survival.add(module, base, merged, unpacked(name, stored, weights))
            yield from stored.items()


def trained_tensors(source: Source) -> dict[str, mx.array]:
    """Whole tensors that full fine-tuning changed, by name; empty for an adapter."""
    if not source.full:
        return {}
    return {
        f"{module}.{leaf}": value for module, parts in source.leaves.items() for leaf, value in parts.items()
    }


def check_all_there(adapted: set[str], trained: dict, weights: ModelWeights) -> None:
    known = set(weights.names())
    absent = [f"{module}.weight" for module in adapted if f"{module}.weight" not in known]
    absent += [name for name in trained if name not in known]
    if absent:
        raise ConfigError(
            f"{weights.folder}: holds no {absent[0]}, which was trained; this architecture's names differ between "
            "MLX and Hugging Face, which cannot be carried yet."
        )


def untouched(name: str, weights: ModelWeights, *, requantise: bool) -> Iterator[tuple[str, mx.array]]:
    """A tensor of the base, unpacked to bf16, or exactly as stored."""
    if not requantise:
        yield name, weights.dense(name, mx.bfloat16)
        return
    yield name, weights.read(name)
    module = name.removesuffix(".weight")
    for part in ("scales", "biases"):
        if name.endswith(".weight") and f"{module}.{part}" in weights.files:
            yield f"{module}.{part}", weights.read(f"{module}.{part}")


def store(
    name: str, merged: mx.array, weights: ModelWeights, *, requantise: bool
) -> Iterator[tuple[str, mx.array]]:
    """A merged tensor as it is to be stored: bf16, or packed with its module's own settings."""
    module = name.removesuffix(".weight")
    if not requantise or f"{module}.scales" not in weights.files:
        yield name, merged.astype(mx.bfloat16)
        return
    packing = weights.packing(module)
    dtype = weights.read(f"{module}.scales").dtype
    packed, *parts = mx.quantize(
        merged.astype(dtype) if mx.issubdtype(dtype, mx.floating) else merged,
        packing["group_size"],
        packing["bits"],
        mode=packing["mode"],
    )
    yield name, packed
    yield from zip((f"{module}.scales", f"{module}.biases"), parts, strict=False)


def unpacked(name: str, stored: dict[str, mx.array], weights: ModelWeights) -> mx.array:
    """What the stored tensors stand for."""
    module = name.removesuffix(".weight")
    if f"{module}.scales" not in stored:
        return stored[name]
    biases = stored.get(f"{module}.biases")
    packing = weights.packing(module)
    return mx.dequantize(stored[name], stored[f"{module}.scales"], biases, **packing)


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
        probe = probe_layer(layer, module)
        expected = base_product(layer, probe.x) + probe.total
        layer.linear.weight = written.dense(f"{module}.weight", mx.float32)
        error = relative_error(base_product(layer, probe.x), expected)
        if not error <= ROUNDING:
            faults.append(f"{module} is off by {error:.2g} of its output")
    return faults
