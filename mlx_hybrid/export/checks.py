"""The checks an export makes of itself on logits; each writes figures, faults or the reason it was left out."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.adapters.store import load_adapter
from mlx_hybrid.export.adapter import Source
from mlx_hybrid.export.logits import (
    INSTALL,
    Comparison,
    compare,
    fits_in_memory,
    mean_kl,
    mlx_logits,
    probe_tokens,
    torch_available,
    torch_logits,
)
from mlx_hybrid.export.verdict import Report
from mlx_hybrid.export.weights import ModelWeights, write_dense


def with_adapter(source: Source) -> Callable[[Any], None]:
    """Puts our adapter on a model by our own loader."""

    def adapt(model: Any) -> None:
        load_adapter(model, source.folder)

    return adapt


def check_peft_logits(report: Report, source: Source, weights: ModelWeights, adapters: list[Path]) -> None:
    """Ours against stock PEFT on the weights exported for, and what leaving the trained base costs."""
    if not room_for(report, weights):
        return
    tokens = probe_tokens(weights.folder)
    our_base, ours = mlx_logits(weights.folder, tokens, with_adapter(source))
    note_trained_base(report, source, weights, tokens, ours)
    if not with_torch(report):
        return
    their_base, theirs, faults = torch_logits(weights.folder, tokens, adapters)
    report.faults += faults
    record(report, compare(ours, our_base, theirs, their_base))


def check_truncated_logits(
    report: Report, source: Source, weights: ModelWeights, adapter: Path, adapt: Callable[[Any], None]
) -> None:
    """What truncation costs on prompts, and the truncated LoRA in MLX (put on by `adapt`) against stock PEFT."""
    if not room_for(report, weights):
        return
    tokens = probe_tokens(weights.folder)
    our_base, ours = mlx_logits(weights.folder, tokens, with_adapter(source))
    _, cut = mlx_logits(weights.folder, tokens, adapt)
    report.checks["truncation"] = {
        "kl_nats_per_token": mean_kl(ours, cut), "difference_logit": float(np.abs(ours - cut).max()),
        "effect_logit": float(np.abs(ours - our_base).max()),
    }  # fmt: skip
    note_trained_base(report, source, weights, tokens, ours)
    if with_torch(report):
        their_base, theirs, faults = torch_logits(weights.folder, tokens, [adapter])
        report.faults += faults
        record(report, compare(cut, our_base, theirs, their_base))


def check_merged_logits(report: Report, source: Source, weights: ModelWeights, folder: Path) -> None:
    """The merged model in both libraries, and what rounding to its dtype changes."""
    if not room_for(report, weights):
        return
    tokens = probe_tokens(weights.folder)
    our_base, ours = mlx_logits(weights.folder, tokens, with_adapter(source))
    merged, _ = mlx_logits(folder, tokens)
    note_rounding(report, ours, merged)
    note_trained_base(report, source, weights, tokens, ours)
    if not with_torch(report):
        return
    theirs, _, faults = torch_logits(folder, tokens, [])
    report.faults += faults
    result = compare(merged, our_base, theirs, our_base)
    if not result.passed:  # perhaps the libraries differ on this architecture without any adapter
        result = dataclasses.replace(result, base_difference=base_difference(weights, tokens))
    record(report, result)


def base_difference(weights: ModelWeights, tokens: np.ndarray) -> float:
    """max |Δ logit| between the libraries on the base itself; a packed one is unpacked for it, and removed again."""
    with tempfile.TemporaryDirectory(prefix="mlx-hybrid-") as name:
        folder = weights.folder
        if weights.packed:
            folder = Path(name)
            write_dense(weights, folder)
        ours, _ = mlx_logits(folder, tokens)
        theirs, _, _ = torch_logits(folder, tokens, [])
    return float(np.abs(ours - theirs).max())


def check_mlx_logits(
    report: Report, source: Source, folder: Path, adapt: Callable[[Any], None] | None, *, exact: bool
) -> None:
    """Ours against `folder` as stock mlx-lm loads it, all on the base that was trained on."""
    if not room_for(report, source.base):
        return
    tokens = probe_tokens(source.base.folder)
    our_base, ours = mlx_logits(source.base.folder, tokens, with_adapter(source))
    _, theirs = mlx_logits(folder, tokens, adapt)
    if exact:
        record(report, compare(ours, our_base, theirs, our_base), "mlx-lm")
    else:
        note_rounding(report, ours, theirs)


def record(report: Report, result: Comparison, what: str = "transformers and PEFT") -> None:
    report.checks["logits"] = result.tree()
    if result.effect == 0.0:
        report.faults.append("the adapter changes no logit")
    if not result.passed:
        report.faults.append(
            f"logits differ from {what} by up to {result.difference:.2g} (without the adapter "
            f"{result.base_difference:.2g}; the adapter changes them by {result.effect:.2g})"
        )


def note_rounding(report: Report, ours: np.ndarray, merged: np.ndarray) -> None:
    """How far the stored dtype takes the model from adapter and base side by side."""
    report.checks["rounding"] = {
        "difference_logit": float(np.abs(ours - merged).max()), "kl_nats_per_token": mean_kl(ours, merged),
    }  # fmt: skip


def note_trained_base(
    report: Report, source: Source, weights: ModelWeights, tokens: np.ndarray, ours: np.ndarray
) -> None:
    """KL from the packed base that was trained on to the weights exported for; a cost to know, without a pass mark."""
    if source.base.packed and weights.folder != source.base.folder:
        _, trained = mlx_logits(source.base.folder, tokens, with_adapter(source))
        report.checks["trained_base"] = {"kl_nats_per_token": mean_kl(trained, ours)}


def room_for(report: Report, weights: ModelWeights) -> bool:
    if fits_in_memory(weights):
        return True
    report.notes.append("Logits were not compared: the model in float32 does not fit in memory.")
    report.checks["logits"] = None
    return False


def with_torch(report: Report) -> bool:
    if torch_available():
        return True
    report.notes.append(f"Logits were not compared with PyTorch, which is not installed: {INSTALL}")
    report.checks["logits"] = None
    return False
