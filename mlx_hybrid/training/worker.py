"""What the ranks other than the first do: the same steps on their part of each batch, writing and saying nothing.

The first one reads the data and the configuration, and tells the others: `announce`, then `begin`.
"""

import dataclasses
import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from mlx_hybrid.config import Config, build_config, to_tree
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.records.template import Example
from mlx_hybrid.run import machine
from mlx_hybrid.training.distributed import Ranks
from mlx_hybrid.training.events import NotFinite
from mlx_hybrid.training.loop import align, train
from mlx_hybrid.training.material import Material, attach_adapter, check_fits, how_to_need_less
from mlx_hybrid.training.memory.limits import running_out
from mlx_hybrid.training.progress import Progress, progress_from

SAME = ("mlx-hybrid", "mlx", "mlx-lm")  # versions that every rank must have


def announce(ranks: Ranks, config: Config, material: Material, *, force: bool) -> None:
    """Hand the job out. Raises ConfigError with the words of a rank that cannot take it."""
    if ranks.size == 1:
        return
    job = {
        "config": to_tree(config), "force": force, "versions": machine()["versions"],
        "fingerprint": material.base.identity["fingerprint"], "folder": str(Path.cwd()),
        "train": [dataclasses.astuple(e) for e in material.train],
        "valid": [dataclasses.astuple(e) for e in material.valid],
    }  # fmt: skip
    ranks.exchange(json.dumps(job).encode())
    for rank, fault in enumerate(ranks.gather("")):
        if fault:
            raise ConfigError(f"Rank {rank} cannot take part: {fault}")


def begin(ranks: Ranks, material: Material, progress: Progress) -> None:
    """Let the others start where the first one stands: at its step, with its adapter and moments."""
    if ranks.size == 1:
        return
    ranks.exchange(json.dumps(dataclasses.asdict(progress)).encode())
    ranks.hurry()
    align(material.base.model, material.optimizer, ranks)


def work(ranks: Ranks, stop: Callable[[], bool]) -> None:
    """Take part in the first rank's job, if there is one. Raises RankLost when another rank is gone."""
    ranks.heed(stop)
    told = ranks.exchange(b"")[0]
    if not told:
        return
    job, fault, material = json.loads(told), "", None
    config = build_config(job["config"], "rank 0")
    try:
        material = take(job, config, ranks)
    except (MlxHybridError, OSError, RuntimeError, ValueError) as error:
        fault = str(error) or type(error).__name__
    if any(said != "" for said in ranks.gather(fault)):
        return
    started = ranks.exchange(b"")[0]
    if not started:
        return
    ranks.hurry()
    progress = progress_from(json.loads(started))
    align(material.base.model, material.optimizer, ranks)
    with running_out(lambda: how_to_need_less(config, material.train, ranks=ranks.size)):
        for event in train(
            material.base.model, material.optimizer, material.train, material.valid, config.train,
            seed=config.seed, progress=progress, stop=stop, temperature=config.data.temperature, ranks=ranks,
        ):  # fmt: skip
            if isinstance(event, NotFinite):
                return  # the first rank says so


def take(job: dict[str, Any], config: Config, ranks: Ranks) -> Material:
    """Base, adapter and examples of a job. Raises MlxHybridError where this machine is not as the first one."""
    from mlx_hybrid.models.base import load_base
    from mlx_hybrid.training.memory.limits import set_limits

    versions = machine()["versions"]
    for name in SAME:
        if versions[name] != job["versions"][name]:
            raise ConfigError(f"{name} is {versions[name]} there, {job['versions'][name]} on the first one.")
    sets = [[Example(*values) for values in job[name]] for name in ("train", "valid")]
    folder = Path(job["folder"])
    with chdir(folder if folder.is_dir() else Path.cwd()):  # a run is resumed in the folder it was begun in
        check_fits(config, sets[0], ranks=ranks.size, force=job["force"])
        base = load_base(config.model)
    set_limits()
    if base.identity["fingerprint"] != job["fingerprint"]:
        raise ConfigError(f"{config.model}: has other weights there than on the first one.")
    material = Material(base, None, *sets, test=[])
    attach_adapter(config, material)
    return material
