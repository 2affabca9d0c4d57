"""The adapter inside the weights, W' = W Rᵀ + s (A B)ᵀ, tensor by tensor, and how much of it rounding leaves."""

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_hybrid.adapters.store import load_adapter
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.benchmarks.questions import held_back
from mlx_hybrid.evaluation.scoring import sequence_nll
from mlx_hybrid.exports.adapter import Source, random_rows
from mlx_hybrid.exports.checks import Report
from mlx_hybrid.exports.weights import ModelWeights, write_model
from mlx_hybrid.models.base import load_base, tokenizer_for
from mlx_hybrid.records.examples import make_examples
from mlx_hybrid.run import Run

ROUNDING = 1e-2  # bf16 keeps 8 bits: a product of merged weights is off by 2⁻⁹ of its largest entry
SURVIVES = 0.9  # share of the update in the stored weights, or of its gain, below which it is another model
MOST = 200  # held-out records that are measured: the loss of so many is known to a few per cent


def write_merged(
    source: Source, weights: ModelWeights, folder: Path, *, requantise: bool = False, for_mlx: bool = False
) -> None:
    """Write the model with the adapter in it: bf16 under the base's names, or packed again as the base was. Raises
    ConfigError for a layout of MLX alone, unless the model is `for_mlx`."""
    changed = set(source.changed(weights))

    def stored(name: str) -> dict[str, mx.array]:
        if name not in changed:
            return weights.parts(name) if requantise else {name: weights.dense(name, mx.bfloat16)}
        _, merged = before_and_after(source, weights, name)
        if not requantise or not (packing := weights.packing(name)):
            return {name: merged.astype(mx.bfloat16)}
        module = name.removesuffix(".weight")
        dtype = weights.read(f"{module}.scales").dtype
        merged = merged.astype(dtype) if mx.issubdtype(dtype, mx.floating) else merged
        return dict(zip((name, f"{module}.scales", f"{module}.biases"), mx.quantize(merged, **packing)))

    write_model(weights, folder, stored, None if requantise else mx.bfloat16, for_mlx=for_mlx)


def before_and_after(source: Source, weights: ModelWeights, name: str) -> tuple[mx.array, mx.array]:
    """W and W' in float32; W is read once, when it is used."""
    if name in source.trained:
        return weights.dense(name), source.trained[name].astype(mx.float32)
    layer = source.layer(name.removesuffix(".weight"), weights)
    return layer.linear.weight.astype(mx.float32), layer.merged_weight()


def judge_survival(report: Report, source: Source, weights: ModelWeights, written: ModelWeights) -> None:
    """Judge how much of the update the written model holds, ⟨Ŵ − W, Δ⟩ / ‖Δ‖², over all and of the worst module."""
    shares, kept, whole = {}, 0.0, 0.0
    for name in source.changed(weights):
        base, merged = before_and_after(source, weights, name)
        update = merged - base
        held, size = (float(mx.sum(part * update)) for part in (written.dense(name) - base, update))
        kept, whole = kept + held, whole + size
        if size:
            shares[name.removesuffix(".weight")] = held / size
    worst = min(shares, key=shares.get, default="")
    share, least = kept / whole if shares else 1.0, shares.get(worst, 1.0)
    told = {"surviving_share": share, "worst_module": worst, "worst_surviving_share": least}
    report.checks["survival"] = told
    if share < SURVIVES:
        told = f"only {100 * share:.0f} % of the update survives in the stored weights"
        report.faults.append(f"{told} (worst {worst}: {100 * least:.0f} %)")


def judge_packed(
    report: Report, source: Source, weights: ModelWeights, written: ModelWeights, way_out: str
) -> None:
    """Judge packed weights by the held-out loss where the run's records are still there, else by what survives."""
    judge_survival(report, source, weights, written)
    losses = held_out_losses(source, weights.folder, written.folder)
    base, adapter, packed = (losses[key] for key in ("base", "adapter", "packed")) if losses else (0, 0, 0)
    if adapter < base:
        report.checks["held_out_loss"], report.faults = losses, []
        if (kept := (base - packed) / (base - adapter)) < SURVIVES:
            told = f"held-out loss {packed:.3f} where the adapter has {adapter:.3f} and the base {base:.3f}"
            report.faults = [f"{told}: packing keeps {100 * max(kept, 0):.0f} % of the gain"]
    report.faults = [f"{fault}; {way_out}" for fault in report.faults]


def check_merged(source: Source, weights: ModelWeights, folder: Path) -> list[str]:
    """Read a bf16 merged folder back: its names and shapes against the base, each adapted layer on random rows."""
    written = ModelWeights(folder)
    faults = [f"{name} is not in the base" for name in written.shapes if name not in weights.shapes]
    for name, shape in weights.shapes.items():
        if (found := written.shapes.get(name, "missing")) != shape:
            faults.append(f"{name} is {found}, not {shape}")
    for module in [] if faults else source.info.modules:
        layer = source.layer(module, weights)
        layer.linear.weight = layer.linear.weight.astype(mx.float32)
        x = mx.array(random_rows(module, layer.linear.weight.shape[1]), dtype=mx.float32)
        expected, actual = layer(x), x @ written.dense(f"{module}.weight").T
        error = float(mx.abs(actual - expected).max() / mx.abs(expected).max())
        if not error <= ROUNDING:
            faults.append(f"{module} is off by {error:.2g} of its output")
    return faults


def held_out_losses(source: Source, base: Path, packed: Path) -> dict[str, float] | None:
    """Loss, nats a token, of `base`, the adapter on it and the `packed` model on what the adapter's run held out; None
    outside of a run, and where the records are no longer there or have changed."""

    def loss(model: Any) -> float:
        nats, counts, _ = sequence_nll(model, [e.tokens for e in examples], [e.trained for e in examples])
        return float(nats.sum() / counts.sum())

    run = Run(source.home, str(source.base.folder))
    if not (run.path / "run.json").is_file():
        return None
    config = run.config_here()
    try:
        split = held_back(config, run)
    except (ConfigError, DataError):
        return None
    records, tokenizer = (split.test or split.valid)[:MOST], tokenizer_for(config.model)
    limit = {"max_tokens": config.train.max_tokens, "too_long": config.train.too_long}
    if not (examples := make_examples(records, tokenizer, **limit).examples):
        return None
    model = load_base(str(base), tokenizer=tokenizer).model
    losses = {"base": loss(model)}
    load_adapter(model, source.folder)
    losses["adapter"] = loss(model.eval())
    del model
    losses["packed"] = loss(load_base(str(packed), tokenizer=tokenizer).model)
    return losses | {"records": len(examples)}
