"""Going on from an adapter that is there: its values are where the new run starts."""

from pathlib import Path
from typing import Any

from mlx_hybrid.base_model import base_of
from mlx_hybrid.config import Config, to_tree
from mlx_hybrid.errors import ConfigError


def settings_of(folder: Path, name: str, model: str | None) -> dict[str, Any]:
    """What a run that goes on from the adapter in `folder` must have, by key."""
    from mlx_hybrid.adapters.store import read_adapter_config

    info = read_adapter_config(folder)
    wanted = base_of(name, info.base["id"], model, "--model")
    adapter = {f"adapter.{key}": value for key, value in to_tree(info.adapter).items()}
    return {"start_from": name, "method": info.method, "model": wanted} | adapter


def load_start(config: Config, base: Any, folder: Path) -> None:
    """Put the adapter in `folder` into the attached model of `base`.

    Raises ConfigError for an adapter of another base, method or shape.
    """
    from mlx_hybrid.adapters.store import read_adapter_config, read_weights, set_state

    info = read_adapter_config(folder)
    if info.base.get("fingerprint") != base.identity["fingerprint"]:
        raise ConfigError(
            f"{config.start_from}: was trained on {info.base.get('id')}, whose weights are not those of {base.path}."
        )
    if (info.method, info.adapter) != (config.method, config.adapter):
        raise ConfigError(
            f"{config.start_from}: is a {info.method} adapter of other settings; start_from goes on with its own."
        )
    set_state(base.model, read_weights(folder), config.start_from)
