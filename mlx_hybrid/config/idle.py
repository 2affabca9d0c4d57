"""Settings that act on nothing under the method of a run: refused where somebody asks for one."""

import dataclasses
from pathlib import Path
from typing import Any

from mlx_hybrid.config.adapter import SketchConfig
from mlx_hybrid.config.reading import (
    build_config,
    load_config,
    merge,
    nested,
    override_tree,
    read_settings,
    to_tree,
)
from mlx_hybrid.config.settings import Config
from mlx_hybrid.errors import ConfigError

SKETCH = tuple(f"adapter.sketch.{field.name}" for field in dataclasses.fields(SketchConfig))
UNUSED_BY_FULL = (*SKETCH, *(f"adapter.{key}" for key in ("mixing", "unitary", "targets", "layers")))
HARMLESS = {
    "train.weight_decay": 0.0,
    "train.orthogonal_learning_rate": 0.0,
    "adapter.mixing": "off",
    "adapter.layers": 0,
    "adapter.unitary": (),
}
"""Values that ask for nothing, so that nothing is what they get."""


def load_run_config(
    path: Path | None = None, overrides: tuple[str, ...] = (), values: dict | None = None
) -> Config:
    """As `load_config`, for one new run: whatever somebody set acts.

    A setting that does nothing under the run's method is refused in `overrides`, and in a file that would have it do
    nothing by itself. In a file that another method was asked for, it goes back to its default, since files serve
    several methods; the config.yaml of a run is taken as it is. Raises ConfigError with the setting that acts.
    """
    config = load_config(path, overrides, values)
    idle, given = idle_settings(config), override_tree(overrides)
    for key in idle:
        if has_key(given, key) and get_key(config, key) != HARMLESS.get(key):
            raise ConfigError(fault(f"--set {key}", key, config))
    if path is None or path.with_name("run.json").is_file():
        return config
    tree = read_settings(path)
    in_file = [key for key in idle if has_key(tree, key) and key not in (values or {})]
    refuse_in_file(path, in_file)
    return with_defaults(config, [key for key in in_file if not has_key(given, key)])


def idle_settings(config: Config) -> dict[str, str]:
    """Why a setting does nothing under the method of `config`, and what acts, by its key."""
    adapter, train = config.adapter, config.train
    if adapter.full:
        keys = ("train.orthogonal_learning_rate", *UNUSED_BY_FULL)
        return dict.fromkeys(keys, "every weight is trained, and train.learning_rate acts")
    idle = {}
    if train.rates == "share":
        idle["train.orthogonal_learning_rate"] = "one rate serves all branches; train.rates leaf has two"
    if not adapter.low_rank:
        if train.rates == "leaf" and train.orthogonal_learning_rate:
            idle["train.learning_rate"] = "there is no low-rank branch; train.orthogonal_learning_rate acts"
        idle["train.weight_decay"] = "rotations do not decay, and adapter.low_rank.rank adds what does"
    if not adapter.rotation:
        idle["train.orthogonal_learning_rate"] = "there is no orthogonal branch; train.learning_rate acts"
    if not adapter.from_gradient:
        why = "nothing starts from a gradient; adapter.low_rank.start and adapter.rotation.start make it"
        idle |= dict.fromkeys(SKETCH, why)
    if not (adapter.low_rank and adapter.rotation):
        idle["adapter.mixing"] = "it takes two branches, adapter.rotation and adapter.low_rank"
    return idle


def refuse_in_file(path: Path, keys: list[str]) -> None:
    """Raise ConfigError for one of these keys that does nothing by the file alone either.

    A value that is the default or the preset's is no wish: a saved config.yaml holds every value.
    """
    try:
        alone = load_config(path)
    except ConfigError:
        return  # whole only with what was given beside it
    idle, usual = idle_settings(alone), build_config({"method": alone.method}, "preset")
    for key in keys:
        wanted = get_key(alone, key)
        if key in idle and wanted not in (get_key(usual, key), HARMLESS.get(key)):
            raise ConfigError(fault(f"{path}: {key}", key, alone))


def fault(what: str, key: str, config: Config) -> str:
    return f"{what} would do nothing with method {config.method}: {idle_settings(config)[key]}."


def with_defaults(config: Config, keys: list[str]) -> Config:
    """The config with these keys as its method's preset and the defaults have them."""
    if not keys:
        return config
    usual = build_config({"method": config.method}, "preset")
    return build_config(merge(to_tree(config), *(nested(key, get_key(usual, key)) for key in keys)), "config")


def get_key(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def has_key(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True
