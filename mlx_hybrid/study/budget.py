"""What methods are made equal in: optimiser steps as they are, trainable parameters, or training time."""

from collections.abc import Iterable, Mapping
from typing import Any

from mlx_hybrid.config import PRESETS, Config, build_config, merge, nested, to_tree
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run

MOST_RANK = 256
BLOCKS = (2, 4, 8, 16, 32)
FACTORS = range(1, 7)
FAR_OFF = 0.1  # a method farther from the budget than this share cannot be called matched


def knobs(method: str) -> Iterable[dict[str, int]]:
    """Sizes of the branches that a method may take, from its preset's shape."""
    preset = PRESETS[method]
    rotation, low_rank = preset["rotation"], preset["low_rank"]
    if method == "full":
        raise ConfigError("--budget params: full trains every weight, so its parameters cannot be matched.")
    if not low_rank and rotation["kind"] == "butterfly":
        return [{"rotation.block_size": b, "rotation.factors": m} for b in BLOCKS for m in FACTORS]
    if not low_rank:
        return [{"rotation.reflections": k} for k in range(2, MOST_RANK + 1, 2)]
    if rotation and rotation["kind"] == "householder":
        return [{"low_rank.rank": n, "rotation.reflections": n} for n in range(2, MOST_RANK + 1, 2)]
    return [{"low_rank.rank": r} for r in range(1, MOST_RANK + 1)]


def count_parameters(model: Any, config: Config) -> int | None:
    """Trainable entries that a config puts on a fresh base; None where its sizes do not fit a layer."""
    from mlx_hybrid.adapters.frozen import linear_shape
    from mlx_hybrid.adapters.plans import plan_layers
    from mlx_hybrid.adapters.targets import find_targets

    targets = find_targets(model, config.adapter)
    try:
        plans = plan_layers(targets, config.adapter)
    except ConfigError:
        return None
    return sum(
        plans[name].parameter_count(*linear_shape(module), experts=getattr(module, "num_experts", 1))
        for name, module in targets.items()
    )


def matched_sizes(model: Any, configs: Mapping[str, Config]) -> dict[str, dict[str, int]]:
    """Adapter sizes of each method nearest in parameters to the first method's own, which keeps its sizes.

    Raises ConfigError where no size comes within a tenth of it.
    """
    reference, *others = configs
    wanted = count_parameters(model, configs[reference])
    if wanted is None or reference == "full":
        raise ConfigError(f"--budget params: {reference} does not fit this model; name another method first.")
    sizes: dict[str, dict[str, int]] = {reference: {}}
    for method in others:
        counted = [(count_parameters(model, resized(configs[method], own)), own) for own in knobs(method)]
        fitting = [(abs(count - wanted) / wanted, own) for count, own in counted if count is not None]
        gap, best = min(fitting, key=lambda item: item[0], default=(1.0, {}))
        if gap > FAR_OFF:
            raise ConfigError(
                f"--budget params: no size of {method} comes within {FAR_OFF:.0%} of the {wanted:,} parameters of "
                f"{reference}; give {reference} other sizes, or leave {method} out."
            )
        sizes[method] = best
    return sizes


def resized(config: Config, sizes: dict[str, int]) -> Config:
    given = (nested(f"adapter.{key}", size) for key, size in sizes.items())
    return build_config(merge(to_tree(config), *given), "--budget params")


def seconds_a_step(run: Run) -> float:
    rows = [row for row in run.metrics() if "seconds" in row]
    if not rows:
        raise ConfigError(f"{run.path}: has no timed step, so its training time is not known.")
    return rows[-1]["seconds"] / rows[-1]["step"]


def matched_steps(runs: Mapping[str, Run]) -> dict[str, int]:
    """Steps of each method that take as long as the first method's run, by the speed of its own run here."""
    first = next(iter(runs.values()))
    seconds = [row for row in first.metrics() if "seconds" in row][-1]["seconds"]
    return {method: max(1, round(seconds / seconds_a_step(run))) for method, run in runs.items()}
