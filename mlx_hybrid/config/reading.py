"""YAML and `--set` into a Config, and back."""

from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from mlx_hybrid.config.adapter import PRESETS, USUAL, AdapterConfig
from mlx_hybrid.config.convert import build, field_types, groups_of, merge, to_tree
from mlx_hybrid.config.formats import from_format_1, without_retired
from mlx_hybrid.config.settings import Config
from mlx_hybrid.errors import ConfigError, check_known

BY_LOSS = {"prompt_hold": "loss", "prompt_weight": 0.2}
"""What holds prompts where there is no base to hold them to: more of it cost a chat half of what it had learnt."""
OPENS = {"rotation": "kind", "low_rank": "rank"}
"""The key that adds a branch where the method has none."""


def load_config(path: Path | None, overrides: tuple[str, ...] = (), values: dict | None = None) -> Config:
    """A config from a YAML file, then `--set key=value` overrides, then plain `values` from options. A method asked for
    beside a file decides which branches there are, and the file sizes those that it has too. Raises ConfigError with
    the file, or the override, the key and the nearest known key."""
    file = read_settings(path) if path else {}
    trees = [override_tree((override,)) for override in overrides]
    options = merge({}, *(nested(key, value) for key, value in (values or {}).items()))
    where = str(path) if path else "options"
    try:
        return assemble(file, [*trees, options], where)
    except ConfigError:
        with suppress(ConfigError):  # a file that is whole by itself is not to blame
            assemble(file, [], where)
            where = "options"
        for count, override in enumerate(overrides):  # the first one that makes it go wrong is named
            assemble(file, [*trees[:count], options], where)
            where = f"--set {override}"
        return assemble(file, [*trees, options], where)


def assemble(file: dict, trees: list[dict], where: str) -> Config:
    asked = merge(file, *trees).get("method", USUAL)
    if file and asked != file.get("method", USUAL) and isinstance(asked, str) and asked in PRESETS:
        file = {**file, "adapter": suited(file.get("adapter"), asked)}
    return build_config(merge(file, *trees), where)


def suited(adapter: Any, method: str) -> Any:
    """A file's settings of its adapter as sizes of the branches that `method` has: what belongs to others goes."""
    if not isinstance(adapter, dict):
        return adapter
    kept = {key: value for key, value in adapter.items() if key not in OPENS or isinstance(value, dict)}
    for branch in OPENS.keys() & kept.keys():
        usual, groups = PRESETS[method][branch], groups_of(field_types(AdapterConfig)[branch])
        own = [g for g in groups if usual and getattr(g, "kind", None) == usual.get("kind")]
        foreign = {key for group in groups for key in field_types(group)}.difference(*map(field_types, own))
        kept[branch] = {k: v for k, v in kept[branch].items() if k not in foreign | {"kind"}}
    return kept


def override_tree(overrides: tuple[str, ...]) -> dict:
    """The settings of `--set key=value` overrides. Raises ConfigError that names one that cannot be read."""
    trees = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: write key=value, as in --set train.epochs=2.")
        trees.append(nested(key, parse_scalar(text, f"--set {override}")))
    return merge({}, *trees)


def nested(key: str, value: Any) -> dict:
    """`{"a": {"b": value}}` of `a.b`, in format 2."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return in_format_2(value)


def in_format_2(tree: dict) -> dict:
    """The tree with its adapter's branches and its model's name in groups, and the kind of its rates."""
    changed = {"adapter": from_format_1(tree["adapter"])} if "adapter" in tree else {}
    train = tree.get("train")
    # two rates were Adam's own before `rates`
    if isinstance(train, dict) and train.get("orthogonal_learning_rate"):
        changed["train"] = {"rates": "leaf", **train}
    if isinstance(tree.get("model"), str):
        changed["model"] = {"name": tree["model"]}
    return {**tree, **changed}


def build_config(tree: dict, where: str) -> Config:
    """A Config from a plain tree; presets fill what `adapter` leaves out."""
    method = tree.get("method", USUAL)
    check_known(str(method), PRESETS, f"{where}: unknown method")
    tree = in_format_2(tree)
    adapter = tree.get("adapter") or {}
    if not isinstance(adapter, dict):
        told = f"{where}: adapter must be a mapping of keys to values; method names what to train."
        raise ConfigError(told)
    adapter = {key: value for key, value in adapter.items() if key not in OPENS or value != {}}
    for branch, opens in OPENS.items():
        given = adapter.get(branch)
        if PRESETS[method][branch] is None and isinstance(given, dict) and opens not in given:
            acts = "every weight is trained, and train.learning_rate acts"
            if method != "full":
                acts = f"it has no such branch, and adapter.{branch}.{opens} adds one"
            key = f"adapter.{branch}.{next(iter(given))}"
            raise ConfigError(f"{where}: {key} would do nothing with method {method}: {acts}.")
    tree = {**tree, "adapter": merge(PRESETS[method], adapter)}
    if isinstance(train := tree.get("train") or {}, dict):
        by_loss = method == "full" or tree.get("start_from") or train.get("prompt_hold") == "loss"
        tree["train"] = {**(BY_LOSS if by_loss else {}), **train}
    return build(Config, tree, where, "")


def read_settings(path: Path) -> dict:
    """A YAML file's settings in format 2. Raises ConfigError, outside a run, for one that is gone and did something."""
    where = "" if path.with_name("run.json").is_file() else str(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, told = getattr(error, "problem_mark", None), " ".join(str(error).split())
        told = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}" if mark else told
        records = "; records are named with --data" if path.suffix in (".jsonl", ".csv") else ""
        raise ConfigError(f"{path}: not a YAML file ({told}){records}.") from None
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold keys and values at the top, as in recipes/quickstart.yaml.")
    return without_retired(in_format_2(tree or {}), where)


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the second would silence the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if (word := str(key.value)) in seen:
                raise yaml.MarkedYAMLError(problem=f'key "{word}" stands twice', problem_mark=key.start_mark)
            seen.add(word)
        return super().construct_mapping(node, deep)


def parse_scalar(text: str, where: str) -> Any:
    """One value of an option as YAML reads it, 1e-3 as the number it looks like, and a date as its text."""
    value: Any = text
    with suppress(ValueError):  # of 2026-13-45, which looks like a date
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise ConfigError(f"{where}: {text} is not a YAML value; quote it.") from None
        return float(value) if isinstance(value, str) else text if isinstance(value, date) else value
    return value


def dump_config(config: Config) -> str:
    """Every value as YAML; `load_config` of it gives the same config."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)
