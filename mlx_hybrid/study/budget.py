"""What methods are made equal in: optimiser steps as they are, trainable parameters, or training time."""

from collections.abc import Mapping
from typing import Any

from mlx_hybrid.config import PRESETS, Config, build_config, merge, nested, to_tree
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run

MOST_RANK = 256
BLOCKS = (2, 4, 8, 16, 32)
FACTORS = range(1, 7)
FAR_OFF = 0.1  # a method farther from the budget than this share cannot be called matched


def knobs(method: str) -> list[dict[str, int]]:
    """Sizes of the branches that a method may take, from its preset's shape."""
    rotation, low_rank = PRESETS[method]["rotation"], PRESETS[method]["low_rank"]
    if not rotation and not low_rank:
        raise ConfigError(
            f"--budget params: {method} trains every weight, so its parameters cannot be matched."
        )
    reflects = bool(rotation) and rotation["kind"] == "householder"
    if not low_rank and not reflects:
        return [{"rotation.block_size": b, "rotation.factors": m} for b in BLOCKS for m in FACTORS]
    names = ["low_rank.rank"] if low_rank else []
    names += ["rotation.reflections"] if reflects else []
    step = 2 if reflects else 1
    return [dict.fromkeys(names, size) for size in range(step, MOST_RANK + 1, step)]


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


def matched_steps(runs: Mapping[str, Run]) -> dict[str, int]:
    """Steps of each method that take as long as the first method's run, by the speed of its own run here."""
    last = {method: [row for row in run.metrics() if "seconds" in row][-1] for method, run in runs.items()}
    whole = next(iter(last.values()))["seconds"]
    return {method: max(1, round(whole / row["seconds"] * row["step"])) for method, row in last.items()}
