"""The adapter inside the weights, W' = W Rᵀ + s (A B)ᵀ, tensor by tensor, and how much of it rounding leaves."""

from pathlib import Path

import mlx.core as mx

from mlx_hybrid.exports.adapter import Source, random_rows
from mlx_hybrid.exports.checks import Report, held_out_losses
from mlx_hybrid.exports.weights import ModelWeights, write_model

ROUNDING = 1e-2
"""bf16 keeps 8 bits: a product of merged weights is off by 2⁻⁹ of its largest entry, and never by 1 %."""
SURVIVES = 0.9
"""Share of the update in the stored weights below which a merged model is not the one that was trained."""


def write_merged(
    source: Source, weights: ModelWeights, folder: Path, *, requantise: bool = False, for_mlx: bool = False
) -> None:
    """Write the model with the adapter in it: bf16 under the base's names, or packed again as the base was. Raises
    ConfigError for a layout of MLX alone, unless the model is `for_mlx`."""
    changed = set(source.changed(weights))

    def stored(name: str) -> dict[str, mx.array]:
        if name not in changed:
            return weights.parts(name) if requantise else {name: weights.dense(name, mx.bfloat16)}
        merged = merged_weight(source, weights, name)
        if not requantise or not (packing := weights.packing(name)):
            return {name: merged.astype(mx.bfloat16)}
        module = name.removesuffix(".weight")
        dtype = weights.read(f"{module}.scales").dtype
        merged = merged.astype(dtype) if mx.issubdtype(dtype, mx.floating) else merged
        return dict(zip((name, f"{module}.scales", f"{module}.biases"), mx.quantize(merged, **packing)))

    write_model(weights, folder, stored, packed=requantise, for_mlx=for_mlx)


def merged_weight(source: Source, weights: ModelWeights, name: str) -> mx.array:
    """W' in float32."""
    if name in source.trained:
        return source.trained[name].astype(mx.float32)
    return source.layer(name.removesuffix(".weight"), weights).merged_weight()


def judge_survival(report: Report, source: Source, weights: ModelWeights, written: ModelWeights) -> None:
    """Judge how much of the update the written model holds, ⟨Ŵ − W, Δ⟩ / ‖Δ‖², over all and of the worst module."""
    shares, kept, whole = {}, 0.0, 0.0
    for name in source.changed(weights):
        base = weights.dense(name)
        update = merged_weight(source, weights, name) - base
        size = float(mx.sum(mx.square(update)))
        held = float(mx.sum((written.dense(name) - base) * update))
        kept, whole = kept + held, whole + size
        if size:
            shares[name.removesuffix(".weight")] = held / size
    worst = min(shares, key=shares.get, default="")
    share, least = kept / whole if shares else 1.0, shares.get(worst, 1.0)
    report.checks["survival"] = {
        "surviving_share": share,
        "worst_module": worst,
        "worst_surviving_share": least,
    }
    if share < SURVIVES:
        told = f"only {100 * share:.0f} % of the update survives in the stored weights"
        report.faults.append(f"{told} (worst {worst}: {100 * least:.0f} %)")


def judge_packed(
    report: Report, source: Source, weights: ModelWeights, written: ModelWeights, way_out: str
) -> None:
    """Judge packed weights by the held-out loss where the run's records are still there, else by what survives."""
    judge_survival(report, source, weights, written)
    losses = held_out_losses(source, weights.folder, written.folder)
    if losses and losses["adapter"] < losses["base"]:
        report.checks["held_out_loss"], report.faults = losses, []
        base, adapter, packed = (losses[key] for key in ("base", "adapter", "packed"))
        kept = (base - packed) / (base - adapter)
        if kept < SURVIVES:
            told = f"held-out loss {packed:.3f} where the adapter has {adapter:.3f} and the base {base:.3f}"
            report.faults = [f"{told}: packing keeps {100 * max(kept, 0):.0f} % of the gain"]
    report.faults = [f"{fault}; {way_out}" for fault in report.faults]


def check_merged(source: Source, weights: ModelWeights, folder: Path) -> list[str]:
    """Read a bf16 merged folder back: its names and shapes against the base, each adapted layer on random rows."""
    written = ModelWeights(folder)
    faults = [f"{name} is not in the base" for name in written.shapes if name not in weights.shapes]
    for name, shape in weights.shapes.items():
        if written.shapes.get(name) != shape:
            faults.append(f"{name} is {written.shapes.get(name, 'missing')}, not {shape}")
    for module in [] if faults else source.info.modules:
        layer = source.layer(module, weights)
        layer.linear.weight = layer.linear.weight.astype(mx.float32)
        x = mx.array(random_rows(module, layer.linear.weight.shape[1]), dtype=mx.float32)
        expected, actual = layer(x), x @ written.dense(f"{module}.weight").T
        error = float(mx.abs(actual - expected).max() / mx.abs(expected).max())
        if not error <= ROUNDING:
            faults.append(f"{module} is off by {error:.2g} of its output")
    return faults
