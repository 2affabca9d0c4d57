"""Bounds of the settings, and settings that contradict each other."""

from typing import Any

from mlx_hybrid.config.settings import Config
from mlx_hybrid.errors import ConfigError

AT_LEAST = {
    "adapter.reflections": 2, "adapter.block_size": 0, "adapter.factors": 1, "adapter.rank": 0,
    "adapter.start_records": 1, "adapter.start_passes": 2, "adapter.start_oversampling": 0, "adapter.layers": 0,
    "train.batch_size": 1, "train.accumulate": 1, "train.steps": 0, "train.max_tokens": 2,
    "train.validate_every": 0, "train.report_every": 1, "train.save_every": 0, "train.learning_rate": 0,
    "train.orthogonal_learning_rate": 0, "train.weight_decay": 0, "train.clip": 0, "train.epochs": 0,
    "train.keep_checkpoints": 1, "train.patience": 0, "train.max_minutes": 0, "data.temperature": 0.1,
    "train.warmup": 0, "data.valid_share": 0, "data.test_share": 0, "adapter.dropout": 0, "seed": 0,
}  # fmt: skip
AT_MOST = {
    "seed": 2**32 - 1,
    "train.warmup": 1,
    "data.valid_share": 0.5,
    "data.test_share": 0.5,
    "adapter.dropout": 0.9,
}


def check(config: Config, where: str) -> None:
    """Raises ConfigError for a setting out of bounds or at odds with another."""
    for bounds, beyond, word in ((AT_LEAST, float.__lt__, "at least"), (AT_MOST, float.__gt__, "at most")):
        for key, bound in bounds.items():
            value = get_key(config, key)
            if beyond(float(value), float(bound)) or value != value:
                raise ConfigError(f"{where}: {key} must be {word} {bound}, not {value}.")
    if config.name in (".", "..", "last") or set(config.name) & set("/\\"):
        raise ConfigError(
            f'{where}: name "{config.name}" cannot be a run\'s; use a plain word, or -o for a path.'
        )
    adapter = config.adapter
    if not config.train.epochs and not config.train.steps:
        raise ConfigError(f"{where}: train.epochs and train.steps are both 0, so nothing would be trained.")
    if adapter.reflections % 2:
        raise ConfigError(
            f"{where}: adapter.reflections is {adapter.reflections}, but reflections come in pairs; "
            f"use {adapter.reflections + 1}."
        )
    if adapter.start_passes % 2:
        raise ConfigError(f"{where}: adapter.start_passes must be even, not {adapter.start_passes}.")
    if adapter.start != "zeros" and adapter.rank == 0:
        raise ConfigError(
            f"{where}: adapter.start {adapter.start} needs a low-rank branch; set adapter.rank."
        )
    if adapter.reflection_start == "gradient" and adapter.orthogonal != "householder":
        raise ConfigError(f"{where}: adapter.reflection_start gradient needs adapter.orthogonal householder.")
    if adapter.block_size % 2:
        raise ConfigError(f"{where}: adapter.block_size must be even, not {adapter.block_size}.")
    if adapter.magnitude and (adapter.orthogonal != "none" or adapter.start != "zeros" or not adapter.rank):
        raise ConfigError(
            f"{where}: adapter.magnitude (DoRA) needs a low-rank branch from zeros and no orthogonal branch; "
            "use method dora."
        )
    if adapter.orthogonal == "none" and adapter.unitary:
        raise ConfigError(
            f"{where}: adapter.unitary needs an orthogonal branch; set adapter.orthogonal to householder or butterfly."
        )
    if config.method != "full" and adapter.orthogonal == "none" and adapter.rank == 0:
        raise ConfigError(f"{where}: nothing to train: adapter.rank is 0 and adapter.orthogonal is none.")
    if config.method == "full" and (adapter.orthogonal != "none" or adapter.rank):
        raise ConfigError(f"{where}: method full trains the weights themselves; leave adapter out.")


def get_key(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config
