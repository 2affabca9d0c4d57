"""YAML and `--set` into a Config, and back."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from mlx_hybrid.config.checks import check
from mlx_hybrid.config.convert import build
from mlx_hybrid.config.settings import PRESETS, Config
from mlx_hybrid.errors import ConfigError, nearest


def load_config(
    path: Path | None = None, overrides: tuple[str, ...] = (), values: dict | None = None
) -> Config:
    """A config from a YAML file, then `--set key=value` overrides, then plain `values` from options.

    Raises ConfigError with the file, the key and the nearest known key.
    """
    tree = read_yaml(path) if path else {}
    override_tree(overrides, tree)
    for key, value in (values or {}).items():
        set_key(tree, key, value)
    return build_config(tree, str(path) if path else "options")


def override_tree(overrides: tuple[str, ...], tree: dict | None = None) -> dict:
    """`tree` with `--set key=value` overrides set in it. Raises ConfigError that names the override."""
    tree = {} if tree is None else tree
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: write key=value, as in --set train.epochs=2.")
        try:
            value = parse_scalar(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: {text} is not a YAML value; quote it.") from None
        alone: dict = {}
        set_key(alone, key, value)
        build(Config, automatic(alone), f"--set {override}", "")  # so that what is wrong with it names it
        set_key(tree, key, value)
    return tree


def build_config(tree: dict, where: str) -> Config:
    """A Config from a plain tree; presets fill what `adapter` leaves out."""
    method = tree.get("method", "hybrid")
    if not isinstance(method, str) or method not in PRESETS:
        raise ConfigError(f'{where}: unknown method "{method}"; {nearest(str(method), PRESETS)}')
    if not isinstance(tree.get("adapter") or {}, dict):
        raise ConfigError(f"{where}: adapter must be a mapping of keys to values.")
    adapter = {**PRESETS[method], **(tree.get("adapter") or {})}
    tree = without_retired({**tree, "adapter": adapter}, where)
    config = build(Config, automatic(tree), where, "")
    check(config, where)
    return config


RETIRED = {
    ("governance", "outliers"): ("off", False),
    ("governance", "profile"): ("chat",),
    ("train", "packing"): ("off", False),
}
"""Settings that older files name and that are gone, with the values at which they did nothing."""


def without_retired(tree: dict, where: str) -> dict:
    """The tree without settings that are gone; ConfigError for one that did something."""
    for (group, key), idle in RETIRED.items():
        given = tree.get(group)
        if not isinstance(given, dict) or key not in given:
            continue
        if given[key] not in idle:
            raise ConfigError(f"{where}: {group}.{key} is gone; leave it out (docs/decisions.md says why).")
        tree = {**tree, group: {name: value for name, value in given.items() if name != key}}
    return tree


def automatic(tree: dict) -> dict:
    """The tree with `adapter.block_size: auto` as the 0 that stands for it."""
    adapter = tree.get("adapter")
    if isinstance(adapter, dict) and adapter.get("block_size") == "auto":
        return {**tree, "adapter": {**adapter, "block_size": 0}}
    return tree


def read_yaml(path: Path) -> dict:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file ({describe_yaml_error(error)}).") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold keys and values at the top, as in recipes/quickstart.yaml.")
    return tree


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the second would silence the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            word = str(key.value)
            if word in seen:
                raise yaml.MarkedYAMLError(problem=f'key "{word}" stands twice', problem_mark=key.start_mark)
            seen.add(word)
        return super().construct_mapping(node, deep)


def describe_yaml_error(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def parse_scalar(text: str) -> Any:
    """One value of `--set` as YAML reads it, and 1e-3 as the number it looks like."""
    value = yaml.safe_load(text) if text else ""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def set_key(tree: dict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a group of keys.")
    tree[last] = value


def to_tree(config: Any) -> dict:
    """Plain values in the order of the fields, tuples as lists."""
    return {
        f.name: to_tree(value)
        if dataclasses.is_dataclass(value)
        else list(value)
        if isinstance(value, tuple)
        else value
        for f in dataclasses.fields(config)
        for value in [getattr(config, f.name)]
    }


def dump_config(config: Config) -> str:
    """Every value as YAML; `load_config` of it gives the same config."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)
