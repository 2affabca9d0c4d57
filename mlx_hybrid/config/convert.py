"""Plain values into a dataclass: every key known, every value of its field's type."""

import contextlib
import dataclasses
import math
import types
import typing
from typing import Any, Literal

from mlx_hybrid.errors import ConfigError, nearest

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def build(kind: type, tree: dict, where: str, prefix: str) -> Any:
    """A dataclass from a mapping, every key known and every value of its field's type."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        if key not in fields:
            raise ConfigError(f'{where}: unknown key "{prefix}{key}"; {nearest(str(key), fields)}')
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            value = {} if value is None else value  # a group whose keys are all commented out
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {prefix}{key} must be a group of keys, not {value!r}.")
            values[key] = build(hint, value, where, f"{prefix}{key}.")
        else:
            values[key] = convert(value, hint, f"{where}: {prefix}{key}")
    return kind(**values)


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type a field declares, or a ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value  # YAML 1.1
        if value not in arguments:
            raise ConfigError(f'{where}: "{value}" is not one of {", ".join(arguments)}.')
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{where}: must be a list, not {value!r}.")
        return tuple(convert(item, arguments[0], where) for item in items)
    if isinstance(hint, types.UnionType):
        raise TypeError(f"{where}: config fields have one type each")
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
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
