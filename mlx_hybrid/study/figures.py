"""The figures of one cell: what was measured of its model, and what its training took."""

import numpy as np
from safetensors import safe_open

from mlx_hybrid.adapters.layer import STATE_LEAVES
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.evaluation.results import ALL, Results, Row
from mlx_hybrid.run import Run

Key = tuple[str, str, str]
"""Metric, language, variant."""
NO_MEASURES = ("changed", "empty", "ties", "temperature")
"""Rows that say how a model was measured."""


def figures(results: Results) -> dict[Key, Row]:
    """Every measure of one model."""
    return {key_of(row): row for row in results.rows if row.metric not in NO_MEASURES}


def key_of(row: Row) -> Key:
    return row.metric, row.language, row.variant


def footprint(run: Run) -> dict[Key, Row]:
    """Trainable parameters, peak memory, seconds a step, tokens a second, seconds of training."""
    rows = [row for row in run.metrics() if "seconds" in row]
    last = rows[-1]
    values = {
        "trainable": trainable(run),
        "peak_memory_gb": max(row["peak_memory_gb"] for row in rows),
        "step_seconds": last["seconds"] / last["step"],
        "tokens_per_second": float(np.median([row["tokens_per_second"] for row in rows])),
        "train_seconds": last["seconds"],
    }
    return {(name, ALL, ""): Row(name, value=value) for name, value in values.items()}


def trainable(run: Run) -> int:
    """Entries of the trainable leaves, from the header of the adapter's file."""
    with safe_open(run.adapter / "adapters.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return sum(int(np.prod(shape)) for name, shape in shapes.items() if last_part(name) not in STATE_LEAVES)
