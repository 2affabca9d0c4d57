"""The figures of one cell: what was measured of its model, and what its training took."""

import math
from statistics import median

from mlx_hybrid.adapters.layer import STATE_LEAVES
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.evaluation.results import ALL, Results, Row
from mlx_hybrid.files import read_header
from mlx_hybrid.run import Run

Key = tuple[str, str, str]
"""Metric, language, variant."""
NO_MEASURES = ("changed", "empty", "ties", "temperature")
"""Rows that say how a model was measured."""


def figures(results: Results) -> dict[Key, Row]:
    """Every measure of one model."""
    return {(r.metric, r.language, r.variant): r for r in results.rows if r.metric not in NO_MEASURES}


def footprint(run: Run) -> dict[Key, Row]:
    """Trainable parameters, peak memory, seconds a step, tokens a second, seconds of training."""
    rows = [row for row in run.metrics() if "seconds" in row]
    shapes = read_header(run.adapter / "adapters.safetensors").shapes
    values = {
        "trainable": sum(math.prod(s) for name, s in shapes.items() if last_part(name) not in STATE_LEAVES),
        "peak_memory_gb": max(row["peak_memory_gb"] for row in rows),
        "step_seconds": rows[-1]["seconds"] / rows[-1]["step"],
        "tokens_per_second": median(row["tokens_per_second"] for row in rows),
        "train_seconds": rows[-1]["seconds"],
    }
    return {(name, ALL, ""): Row(name, value=value) for name, value in values.items()}
