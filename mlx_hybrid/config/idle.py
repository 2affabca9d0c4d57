"""Settings that act on nothing under the method of a run: refused where somebody asks for one."""

import dataclasses
from pathlib import Path
from typing import Any

from mlx_hybrid.config.checks import get_key
from mlx_hybrid.config.reading import build_config, load_config, override_tree, read_yaml, set_key, to_tree
from mlx_hybrid.config.settings import AdapterConfig, Config
from mlx_hybrid.errors import ConfigError

ADAPTER = tuple(f"adapter.{field.name}" for field in dataclasses.fields(AdapterConfig))
HARMLESS = {
    "train.weight_decay": 0.0, "adapter.dropout": 0.0, "adapter.mixing": "off", "adapter.start": "zeros",
    "adapter.reflection_start": "random", "adapter.orthogonal": "none", "adapter.rank": 0, "adapter.layers": 0,
    "adapter.magnitude": False, "adapter.unitary": (),
}  # fmt: skip
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
    idle = idle_settings(config)
    given = override_tree(overrides)
    for key in idle:
        if has_key(given, key) and get_key(config, key) != HARMLESS.get(key):
            raise ConfigError(fault(f"--set {key}", key, config))
    if path is None or path.with_name("run.json").is_file():
        return config
    tree = read_yaml(path)
    in_file = [key for key in idle if has_key(tree, key) and key not in (values or {})]
    refuse_in_file(path, in_file)
    return with_defaults(config, [key for key in in_file if not has_key(given, key)])


def idle_settings(config: Config) -> dict[str, str]:
    """Why a setting does nothing under the method of `config`, and what acts, by its key."""
    adapter, full = config.adapter, config.method == "full"
    low_rank, rotates = bool(adapter.rank), adapter.orthogonal != "none"
    sizes = {
        "householder": "adapter.reflections acts",
        "butterfly": "adapter.block_size and adapter.factors act",
        "none": "adapter.rank acts",
    }[adapter.orthogonal]
    rules = [
        (full, ADAPTER, "every weight is trained, and train.learning_rate acts"),
        (not full and not low_rank, ("train.learning_rate",),
         "there is no low-rank branch; train.orthogonal_learning_rate acts"),
        (not full and not low_rank, ("train.weight_decay", "adapter.dropout", "adapter.alpha", "adapter.rslora"),
         "rotations have none, and a low-rank branch comes with adapter.rank"),
        (not rotates, ("train.orthogonal_learning_rate",), "there is no orthogonal branch; train.learning_rate acts"),
        (adapter.orthogonal != "householder", ("adapter.reflections",), f"nothing is reflected; {sizes}"),
        (adapter.orthogonal != "butterfly", ("adapter.block_size", "adapter.factors"),
         f"there are no butterfly factors; {sizes}"),
        (not adapter.from_gradient, ("adapter.start_records", "adapter.start_passes", "adapter.start_oversampling"),
         f"adapter.start is {adapter.start}, and nothing starts from a gradient"),
        (not (low_rank and rotates), ("adapter.mixing",),
         "steps are shared between two branches; adapter.rank and adapter.orthogonal make them"),
    ]  # fmt: skip
    return {key: why for applies, keys, why in reversed(rules) if applies for key in keys}


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
    tree, usual = to_tree(config), build_config({"method": config.method}, "preset")
    for key in keys:
        set_key(tree, key, get_key(usual, key))
    return build_config(tree, "config")


def has_key(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True
