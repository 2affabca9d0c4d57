"""Plain values into a dataclass: every key known, every value of its field's type."""

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from mlx_hybrid.config.aliases import ALIASES
from mlx_hybrid.errors import ConfigError, nearest

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def build(kind: type, tree: dict, where: str, prefix: str) -> Any:
    """A dataclass from a mapping, every key known and every value of its field's type.

    Raises ConfigError that says where, which key, and the nearest known one.
    """
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
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def groups_of(hint: Any) -> list[type]:
    """The groups of keys that a field may hold, one for each kind of a union."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return [option for option in options if dataclasses.is_dataclass(option)]


def keys_in(kind: type, above: str = "") -> Iterator[str]:
    """Every key of the groups in a group, from that group on."""
    for name, hint in field_types(kind).items():
        for group in groups_of(hint):
            inner = f"{above}{name}."
            yield from (inner + key for key in field_types(group))
            yield from keys_in(group, inner)


def convert(value: Any, hint: Any, where: str, key: str) -> Any:
    """`value` as the type a field declares, or a ConfigError."""
    if groups_of(hint):
        return convert_group(value, hint, where, key)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else convert(value, arguments[0], where, key)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise ConfigError(f"{where}: {key}: must be a group of names and values, not {value!r}.")
        return dict(value)
    if origin is Literal:
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value  # YAML 1.1
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
    options = groups_of(hint)
    may_be_none = isinstance(hint, types.UnionType)
    if value is None:
        return None if may_be_none else options[0]()
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where}: {key} must be a group of keys{' or null' if may_be_none else ''}, not {value!r}."
        )
    kinds = {getattr(option, "kind", ""): option for option in options}
    named = value.get("kind", next(iter(kinds)))
    if not isinstance(named, str) or named not in kinds:
        raise ConfigError(f'{where}: {key}.kind: "{named}" is not one of {", ".join(kinds)}.')
    kind = kinds[named]
    for name in value.keys() - field_types(kind).keys():
        if other := next((n for n, option in kinds.items() if name in field_types(option)), None):
            raise ConfigError(
                f"{where}: {key}.{name} would do nothing: it belongs to {key}.kind {other}, and this is {named}."
            )
    return build(kind, value, where, f"{key}.")


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
        raise ConfigError(f"{where} is {NAMES[hint]}, without keys of its own such as {', '.join(value)}.")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: must be {NAMES[hint]}, not {value!r}.")
    return value
