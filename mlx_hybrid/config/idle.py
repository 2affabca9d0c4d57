"""Settings that act on nothing under the method of a run: refused where somebody asks for one."""

from operator import attrgetter
from pathlib import Path
from typing import Any

from mlx_hybrid.config import reading
from mlx_hybrid.config.convert import flat, merge, to_tree
from mlx_hybrid.config.settings import Config
from mlx_hybrid.errors import ConfigError

HARMLESS = {
    "train.weight_decay": 0.0,
    "train.orthogonal_learning_rate": 0.0,
    "train.prompt_hold": "loss",
    "adapter.mixing": "off",
    "adapter.layers": 0,
    "adapter.unitary": (),
}
"""Values that ask for nothing, so that nothing is what they get."""


def load_run_config(path: Path | None, overrides: tuple[str, ...] = (), values: dict | None = None) -> Config:
    """As `load_config`, for one new run: whatever somebody set acts. A setting that does nothing under the run's method
    is refused in `overrides`, and in a file that would have it do nothing by itself. In a file that another method was
    asked for, it goes back to its default, since files serve several methods; the config.yaml of a run is taken as it
    is. Raises ConfigError with the setting that acts."""
    config = reading.load_config(path, overrides, values)
    idle, given = idle_settings(config), flat(reading.override_tree(overrides))
    for key in (key for key in idle if key in given):
        refuse(config, key, f"--set {key}", {})
    if path is None:
        return config
    written = flat(reading.read_settings(path))
    own = all(written.get(key) == attrgetter(key)(config) for key in ("method", "start_from"))
    if own and path.with_name("run.json").is_file():
        return config
    in_file = [key for key in idle if key in written.keys() - (values or {}).keys()]
    refuse_in_file(path, in_file)
    if "train.prompt_hold" in in_file and config.train.prompt_hold == "base":
        in_file.append("train.prompt_weight")  # it was the base's
    usual = reading.build_config({"method": config.method, "start_from": config.start_from}, "preset")
    defaults = (reading.nested(key, attrgetter(key)(usual)) for key in in_file if key not in given)
    return reading.build_config(merge(to_tree(config), *defaults), "config")


def idle_settings(config: Config) -> dict[str, str]:
    """Why a setting does nothing under the method of `config`, and what acts, by its key."""
    adapter, train = config.adapter, config.train
    decided = f"train.steps is {train.steps} and decides; with train.steps=0 it acts"
    idle = {"train.epochs": decided} if train.steps else {}
    if not train.prompt_weight:
        idle |= dict.fromkeys(("train.prompt_hold", "train.prompt_share"), "train.prompt_weight is 0")
    elif not config.has_base:
        idle["train.prompt_hold"] = "there is no base to go back to, and loss acts"
    if adapter.full:
        unused = (f"adapter.{key}" for key in ("mixing", "unitary", "targets", "layers"))
        keys = ("train.orthogonal_learning_rate", *unused)
        return idle | dict.fromkeys(keys, "every weight is trained, and train.learning_rate acts")
    if train.rates == "share":
        idle["train.orthogonal_learning_rate"] = "one rate serves all branches; train.rates leaf has two"
    if not adapter.low_rank:
        if train.rates == "leaf" and train.orthogonal_learning_rate:
            idle["train.learning_rate"] = "there is no low-rank branch; train.orthogonal_learning_rate acts"
        idle["train.weight_decay"] = "rotations do not decay, and adapter.low_rank.rank adds what does"
    if not adapter.rotation:
        idle["train.orthogonal_learning_rate"] = "there is no orthogonal branch; train.learning_rate acts"
    if not (adapter.low_rank and adapter.rotation):
        idle["adapter.mixing"] = "it takes two branches, adapter.rotation and adapter.low_rank"
    return idle


def refuse_in_file(path: Path, keys: list[str]) -> None:
    """Raise ConfigError for one of these keys that does nothing by the file alone either. A value that is the default
    or the preset's is no wish: a saved config.yaml holds every value."""
    try:
        alone = reading.load_config(path)
    except ConfigError:
        return  # whole only with what was given beside it
    usual = reading.build_config({"method": alone.method}, "preset")
    for key in (key for key in idle_settings(alone) if key in keys):
        refuse(alone, key, f"{path}: {key}", {key: attrgetter(key)(usual)})


def refuse(config: Config, key: str, told: str, usual: dict[str, Any]) -> None:
    """Raise ConfigError for an idle setting, unless its value is the usual one or asks for nothing."""
    if attrgetter(key)(config) not in [known[key] for known in (usual, HARMLESS) if key in known]:
        why = idle_settings(config)[key]
        raise ConfigError(f"{told} would do nothing with method {config.method}: {why}.")
