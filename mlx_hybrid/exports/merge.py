"""The adapter inside the weights: W' = W Rᵀ + s (A B)ᵀ, written tensor by tensor with the base's own names."""

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_hybrid.exports import weights as files
from mlx_hybrid.exports.adapter import Source, random_rows
from mlx_hybrid.exports.weights import ModelWeights
from mlx_hybrid.files import write_json

ROUNDING = 1e-2
"""bf16 keeps 8 bits: a product of merged weights is off by 2⁻⁹ of its largest entry, and never by 1 %."""


def write_merged(
    source: Source, weights: ModelWeights, folder: Path, *, requantise: bool = False, for_mlx: bool = False
) -> None:
    """Write the model with the adapter in it: bf16 under the base's names, or packed again as the base was.

    Every other tensor is the base's own. Raises ConfigError for a layout of MLX alone, unless the model is `for_mlx`.
    """
    if not for_mlx:
        files.refuse_layout(weights)
    changed = set(source.changed(weights))

    def stored(name: str) -> dict[str, mx.array]:
        if name in changed:
            return as_stored(name, base_and_merged(source, weights, name)[1], weights, requantise)
        return weights.parts(name) if requantise else {name: weights.dense(name, mx.bfloat16)}

    files.write_shards(folder, weights.dense_shapes(), stored, "mlx" if for_mlx else "pt")
    if requantise:
        write_json(folder / "config.json", weights.config)
    else:
        files.write_dense_config(weights.config, folder)
    files.copy_companions(weights.folder, folder)


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


def measure_survival(source: Source, weights: ModelWeights, written: ModelWeights) -> dict[str, Any]:
    """How much of the update the written model holds, ⟨Ŵ − W, Δ⟩ / ‖Δ‖²: over all, and of the worst module."""
    shares, kept, whole = {}, 0.0, 0.0
    for name in source.changed(weights):
        base, merged = base_and_merged(source, weights, name)
        update = merged - base
        size = float(mx.sum(mx.square(update)))
        held = float(mx.sum((written.dense(name, mx.float32) - base) * update))
        kept, whole = kept + held, whole + size
        if size:
            shares[name.removesuffix(".weight")] = held / size
    worst = min(shares, key=shares.get, default="")
    return {
        "surviving_share": kept / whole if shares else 1.0,
        "worst_module": worst,
        "worst_surviving_share": shares.get(worst, 1.0),
    }


def check_merged(source: Source, weights: ModelWeights, folder: Path) -> list[str]:
    """Read a bf16 merged folder back: its names and shapes against the base, each adapted layer on random rows."""
    written, shapes = ModelWeights(folder), weights.dense_shapes()
    faults = [f"{name} is missing" for name in shapes if name not in written.files]
    faults += [f"{name} is not in the base" for name in written.files if name not in weights.files]
    for name, shape in written.shapes.items():
        if shape != shapes.get(name, shape):
            faults.append(f"{name} is {shape}, not {shapes[name]}")
    for module in [] if faults else source.info.modules:
        layer = source.layer(module, weights)
        layer.linear.weight = layer.linear.weight.astype(mx.float32)
        x = mx.array(random_rows(module, layer.linear.weight.shape[1]), dtype=mx.float32)
        expected, actual = layer(x), x @ written.dense(f"{module}.weight", mx.float32).T
        error = float(mx.abs(actual - expected).max() / mx.abs(expected).max())
        if not error <= ROUNDING:
            faults.append(f"{module} is off by {error:.2g} of its output")
    return faults
