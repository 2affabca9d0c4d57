"""Bounds of settings, said beside each and checked when a group of them is made."""

import math
from dataclasses import field, fields
from typing import Any

from mlx_hybrid.errors import ConfigError


def bounded(
    default: Any, least: float, most: float = math.inf, *, even: bool = False, sane: float | None = None
) -> Any:
    """A field whose values lie between two bounds, and come in pairs where they are `even`; those over `sane` are
    warned about."""
    return field(default=default, metadata={"least": least, "most": most, "even": even, "sane": sane})


class Bounded:
    """A group of settings that checks its bounds; subclasses add what else cannot be."""

    def __post_init__(self) -> None:
        """Raise ConfigError that begins with the key, for `build` to say of which group and file."""
        for setting in fields(self):  # type: ignore[arg-type]
            name, bounds = setting.name, setting.metadata
            value = getattr(self, name)
            if bounds and not value >= bounds["least"]:
                raise ConfigError(f"{name} must be at least {bounds['least']}, not {value}.")
            if bounds and value > bounds["most"]:
                raise ConfigError(f"{name} must be at most {bounds['most']}, not {value}.")
            if bounds and bounds["even"] and value % 2:
                raise ConfigError(f"{name} must be even, not {value}: {name} come in pairs; use {value + 1}.")
