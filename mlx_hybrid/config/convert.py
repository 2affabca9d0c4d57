"""Plain values into a dataclass, every key known and every value of its type and within its bounds; and back."""

import contextlib
import dataclasses
import math
import types
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mlx_hybrid.config.formats import ALIASES
from mlx_hybrid.errors import ConfigError, nearest

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def bounded(
    default: Any, least: float, most: float = math.inf, *, even: bool = False, sane: float | None = None
) -> Any:
    """A field with values between two bounds, in pairs where they are `even`; those over `sane` are warned about."""
    limits = {"least": least, "most": most, "even": even, "sane": sane}
    return dataclasses.field(default=default, metadata=limits)


class Bounded:
    """A group of settings that checks its bounds; subclasses add what else cannot be."""

    def __post_init__(self) -> None:
        """Raise ConfigError that begins with the key, for `build` to say of which group and file."""
        for setting in (one for one in dataclasses.fields(self) if one.metadata):  # type: ignore[arg-type]
            name, bounds, value = setting.name, setting.metadata, getattr(self, setting.name)
            if not value >= bounds["least"]:
                raise ConfigError(f"{name} must be at least {bounds['least']}, not {value}.")
            if value > bounds["most"]:
                raise ConfigError(f"{name} must be at most {bounds['most']}, not {value}.")
            if bounds["even"] and value % 2:
                raise ConfigError(f"{name} must be even, not {value}: {name} come in pairs; use {value + 1}.")


def build(kind: type, tree: dict, where: str, prefix: str) -> Any:
    """A dataclass from a mapping, every key known, every value of its type. Raises ConfigError with the nearest key."""
    hints = field_types(kind)
    for key in tree:
        if key not in hints:
            others = ALIASES | {inner.rpartition(".")[2]: inner for inner in keys_in(kind)}
            told = nearest(str(key).lower().replace("-", "_"), hints, others)
            raise ConfigError(f'{where}: unknown key "{prefix}{key}"; {told}')
    values = {key: convert(value, hints[key], where, f"{prefix}{key}") for key, value in tree.items()}
    try:
        return kind(**values)
    except ConfigError as error:  # of the group's own bounds
        raise ConfigError(f"{where}: {prefix}{error}") from None


def field_types(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def groups_of(hint: Any) -> list[type]:
    """The groups of keys that a field may hold, one for each kind of a union."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [option for option in options if dataclasses.is_dataclass(option)]


def keys_in(kind: type, above: str = "") -> Iterator[str]:
    """Every key of a group, and of the groups in it, from that group on."""
    for name, hint in field_types(kind).items():
        yield f"{above}{name}"
        for group in groups_of(hint):
            yield from keys_in(group, f"{above}{name}.")


def convert(value: Any, hint: Any, where: str, key: str) -> Any:
    """`value` as the type a field declares, or a ConfigError."""
    if groups_of(hint):
        return convert_group(value, hint, where, key)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return None if value is None else convert(value, arguments[0], where, key)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ConfigError(f"{where}: {key}: must be a group of names and values, not {value!r}.")
        return dict(value)
    if origin is Literal:
        value = {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML 1.1
        if value not in arguments:
            raise ConfigError(f'{where}: {key}: "{value}" is not one of {", ".join(arguments)}.')
        return value
    if origin is tuple:
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{where}: {key}: must be a list, not {value!r}.")
        return tuple(convert(item, arguments[0], where, key) for item in items)
    return convert_scalar(value, hint, f"{where}: {key}")


def convert_group(value: Any, hint: Any, where: str, key: str) -> Any:
    """A group of keys, of several the one that `kind` names; null is none where that may be, else an empty group."""
    options, or_null = groups_of(hint), " or null" if isinstance(hint, types.UnionType) else ""
    if value is None:
        return None if or_null else options[0]()
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} must be a group of keys{or_null}, not {value!r}.")
    kinds = {getattr(option, "kind", ""): option for option in options}
    named = value.get("kind", next(iter(kinds)))
    if not isinstance(named, str) or named not in kinds:
        raise ConfigError(f'{where}: {key}.kind: "{named}" is not one of {", ".join(kinds)}.')
    for name in value.keys() - field_types(kinds[named]).keys():
        if other := next((n for n, option in kinds.items() if name in field_types(option)), None):
            told = f"it belongs to {key}.kind {other}, and this is {named}"
            raise ConfigError(f"{where}: {key}.{name} would do nothing: {told}.")
    return build(kinds[named], value, where, f"{key}.")


def convert_scalar(value: Any, hint: Any, where: str) -> Any:
    if value == "auto" and (hint is int or where.endswith("train.strength")):
        return hint(0)  # what lets the program choose, wherever a number may be chosen for one
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(str(value))  # a whole number beyond all floats is infinite, not an OverflowError
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: must be a finite number, not {value}.")
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        raise ConfigError(f"{where} is {KINDS[hint]}, without keys of its own such as {', '.join(value)}.")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: must be {KINDS[hint]}, not {value!r}.")
    return value


def to_tree(config: Any) -> Any:
    """Plain values in the order of the fields, tuples as lists."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_tree(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return list(config) if isinstance(config, tuple) else config


def flat(tree: dict, above: str = "") -> dict[str, Any]:
    """A tree's settings by their whole keys: {"train": {"epochs": 2}} as {"train.epochs": 2}."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        values |= flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return values


def merge(base: dict, *others: dict) -> dict:
    """Each of the others on top of those before, group by group; another `kind` replaces its group whole."""
    merged = dict(base)
    for key, value in ((key, value) for over in others for key, value in over.items()):
        under = merged.get(key)
        both = isinstance(value, dict) and isinstance(under, dict)
        alike = both and value.get("kind", under.get("kind")) == under.get("kind", value.get("kind"))
        merged[key] = merge(under, value) if alike else value
    return merged
