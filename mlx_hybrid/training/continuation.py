"""Going on from an adapter that is there: its values are where the new run starts."""

from pathlib import Path
from typing import Any

from mlx_hybrid.config import Config, to_tree
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import base_of, fingerprint


def settings_of(folder: Path, name: str, model: str | None) -> dict[str, Any]:
    """What a run that goes on from the adapter in `folder` must have, by key."""
    from mlx_hybrid.adapters.store import read_adapter_config

    info = read_adapter_config(folder)
    wanted = base_of(name, info.base["id"], model, "--model")
    adapter = {f"adapter.{key}": value for key, value in to_tree(info.adapter).items()}
    return {"start_from": name, "method": info.method, "model": wanted} | adapter


def check_base_of_start(config: Config, adapter: Path) -> None:
    """Raise what `load_start` would of the base, where its weights are on this machine."""
    from mlx_hybrid.adapters.store import read_adapter_config
    from mlx_hybrid.training.memory.shape import local_folder

    info, folder = read_adapter_config(adapter), local_folder(config.model)
    if folder:
        check_base(config, info, fingerprint(folder), folder)


def check_base(config: Config, info: Any, found: str, place: Path) -> None:
    if info.base.get("fingerprint") != found:
        raise ConfigError(
            f"{config.start_from}: was trained on {info.base.get('id')}, whose weights are not those of {place}."
        )


def load_start(config: Config, base: Any, folder: Path) -> None:
    """Put the adapter in `folder` into the attached model of `base`.

    Raises ConfigError for an adapter of another base, method or shape.
    """
    from mlx_hybrid.adapters.store import in_dtype_of, read_adapter_config, read_weights, set_state

    info = read_adapter_config(folder)
    check_base(config, info, base.identity["fingerprint"], base.path)
    if (info.method, info.adapter) != (config.method, config.adapter):
        raise ConfigError(
            f"{config.start_from}: is a {info.method} adapter of other settings; start_from goes on with its own."
        )
    set_state(base.model, in_dtype_of(base.model, info, read_weights(folder)), config.start_from)
