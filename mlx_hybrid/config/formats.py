"""Settings of format 1, in which `adapter` was one flat group, as those of format 2.

Format 2 is written. Recipes, config.yaml of run folders and adapter_config.json of either format are read, and so are
options with the old names.
"""

from typing import Any

from mlx_hybrid.errors import ConfigError

MOVED = {
    "orthogonal": ("rotation", "kind"),
    "reflections": ("rotation", "reflections"),
    "reflection_start": ("rotation", "start"),
    "block_size": ("rotation", "block_size"),
    "factors": ("rotation", "factors"),
    "rank": ("low_rank", "rank"),
    "alpha": ("low_rank", "alpha"),
    "rslora": ("low_rank", "rslora"),
    "start": ("low_rank", "start"),
    "dropout": ("low_rank", "dropout"),
    "magnitude": ("low_rank", "magnitude"),
    "start_records": ("sketch", "records"),
    "start_passes": ("sketch", "passes"),
    "start_oversampling": ("sketch", "oversampling"),
}
SIZES = {"householder": ("reflections", "reflection_start"), "butterfly": ("block_size", "factors")}


def from_format_1(adapter: Any) -> Any:
    """The settings of an adapter in format 2, from either format, whole or in part.

    Where `orthogonal` and `rank` are given, the sizes of what they leave out go: format 1 wrote every value.
    """
    if not isinstance(adapter, dict) or not adapter.keys() & MOVED.keys():
        return adapter
    flat = {key: value for key, value in adapter.items() if key in MOVED}
    tree = {key: value for key, value in adapter.items() if key not in MOVED}
    kind = flat.get("orthogonal")
    if kind == "none":
        tree["rotation"] = None
    if kind in ("none", *SIZES):
        idle = {key for name, keys in SIZES.items() if name != kind for key in keys}
        flat = {key: value for key, value in flat.items() if key not in idle and value != "none"}
    if flat.get("rank") == 0:
        tree["low_rank"] = None
        flat = {key: value for key, value in flat.items() if MOVED[key][0] != "low_rank"}
    for key, value in flat.items():
        group, name = MOVED[key]
        inner = tree.setdefault(group, {})
        if isinstance(inner, dict):
            inner[name] = value
    return tree


RETIRED = {
    "governance.outliers": ("off", False),
    "governance.profile": ("chat",),
    "train.packing": ("off", False),
    "adapter.rotation.start": ("random",),
}
"""Settings that older files name and that are gone, with the values at which they did nothing."""


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
