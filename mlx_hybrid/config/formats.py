"""What settings are called elsewhere: by mlx-lm, PEFT, the Transformers Trainer, axolotl and Unsloth, to suggest ours,
and in older files, read as those of today: format 1, in which `adapter` was one flat group, and what is gone. Format 2
is written; recipes, config.yaml, adapter_config.json and options of either format are read."""

import tomllib
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError

NAMES = tomllib.loads(Path(__file__).with_name("names.toml").read_text(encoding="utf-8"))
ALIASES, FLAGS = (
    {name: ours for ours, names in NAMES[group].items() for name in names.split()}
    for group in ("others", "flags")
)
MOVED = {old: tuple(new.split(".")) for old, new in NAMES["format_1"].items()}
SIZES = {"householder": ("reflections", "reflection_start"), "butterfly": ("block_size", "factors")}
RETIRED = {
    "governance.outliers": ("off", False),
    "governance.profile": ("chat",),
    "train.packing": ("off", False),
    "train.prompt_kl": (0.0,),
    "adapter.rotation.start": ("random",),
    "adapter.sketch": ({"records": 64, "passes": 4, "oversampling": 16}, {}),
}
"""Settings that older files name and that are gone, with the values at which they did nothing."""


def from_format_1(adapter: Any) -> Any:
    """The settings of an adapter in format 2, from either format, whole or in part. Where `orthogonal` and `rank` are
    given, the sizes of what they leave out go: format 1 wrote every value."""
    if not isinstance(adapter, dict) or not adapter.keys() & MOVED.keys():
        return adapter
    tree = {key: value for key, value in adapter.items() if key not in MOVED}
    idle: set[str] = set()
    if (kind := adapter.get("orthogonal")) in (*SIZES, "none"):
        idle = {key for name, keys in SIZES.items() if name != kind for key in keys}
    if kind == "none":
        tree["rotation"] = None
    if adapter.get("rank") == 0:
        tree["low_rank"] = None
    for key in (key for key in adapter if key in MOVED and key not in idle):
        group, name = MOVED[key]
        inner = tree.setdefault(group, {})
        if isinstance(inner, dict):
            inner[name] = adapter[key]
    return tree


def without_retired(tree: Any, where: str = "", above: str = "") -> Any:
    """Settings of format 2 without those that are gone; ConfigError for one that did something, if `where` is given."""
    if not isinstance(tree, dict):
        return tree
    kept = {}
    for name, value in tree.items():
        key = f"{above}{name}"
        if key not in RETIRED:
            kept[name] = without_retired(value, where, f"{key}.")
        elif where and value not in RETIRED[key]:
            raise ConfigError(f"{where}: {key} is gone; leave it out (docs/decisions.md says why).")
    return kept
