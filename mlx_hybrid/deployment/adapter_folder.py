"""Where an adapter lies: a folder, or a repository of the Hub that is fetched."""

from pathlib import Path

from mlx_hybrid.adapters.store import CONFIG_FILE, WEIGHTS_FILE
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import fetch, is_hub_id

PEFT_WEIGHTS = "adapter_model.safetensors"


def adapter_folder(name: str) -> Path | None:
    """The folder of the adapter that a path or a Hub id names; None where it names something else.

    Raises ConfigError for an id that cannot be had, and for a PEFT adapter, which `import` brings in.
    """
    folder = Path(name)
    if not folder.exists() and is_hub_id(name):
        folder = fetch(name)
    if not (folder / CONFIG_FILE).is_file():
        return None
    if (folder / PEFT_WEIGHTS).is_file() and not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(f"{name}: is a PEFT adapter; `mlx-hybrid import {folder}` brings it in.")
    return folder
