"""Checkpoints: everything that stopping and going on needs, so that a resumed run equals one never stopped.

Random choices need no state: each step's are a function of the seed and its number.
"""

import dataclasses
import shutil
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.store import adapter_state, set_state
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import new_directory, read_json, write_json
from mlx_hybrid.run import checkpoints
from mlx_hybrid.training.optimizer import BranchOptimizer
from mlx_hybrid.training.progress import Progress, progress_from

FORMAT = 2
KEPT = 2  # the newest, and the one before should the disk fail under it


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: BranchOptimizer,
    progress: Progress,
    *,
    keep: int = KEPT,
    keep_start: bool = False,
) -> Path:
    """Write `folder/step-N` whole: adapter, optimiser, mixing state and progress. All but the newest `keep` go, and the
    start where that is to stay; when it is written again, all others do."""
    directory = folder / step_name(progress.step)
    with new_directory(directory) as fresh:
        mx.save_safetensors(str(fresh / "adapter.safetensors"), adapter_state(model))
        state = {saved_name(name): value for name, value in tree_flatten(optimizer.state)}
        mx.save_safetensors(str(fresh / "optimizer.safetensors"), state)
        if progress.average:
            mx.save_safetensors(str(fresh / "average.safetensors"), progress.average)
        told = dataclasses.asdict(dataclasses.replace(progress, average={}))
        write_json(fresh / "progress.json", {"format": FORMAT, **told})
    kept = checkpoints(folder)[-keep:] if progress.step else [directory]
    kept += [folder / step_name(0)] if keep_start else []
    for old in folder.glob("step-*"):
        if old not in kept:  # also what a kill left half removed
            shutil.rmtree(old, ignore_errors=True)
    return directory


def step_name(step: int) -> str:
    return f"step-{step:07d}"


def saved_start(folder: Path) -> dict[str, mx.array] | None:
    """The adapter that training began with, where it is still kept; read when it is used."""
    path = folder / step_name(0) / "adapter.safetensors"
    return mx.load(str(path)) if path.is_file() else None


def load_checkpoint(folder: Path, model: nn.Module, optimizer: BranchOptimizer) -> Progress:
    """Restore the newest checkpoint that can be read. Raises ConfigError when there is none."""
    faults = []
    for directory in reversed(checkpoints(folder)):
        try:
            return restore(directory, model, optimizer)
        except (ConfigError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{directory.name} ({error})")
    found = f"none of its checkpoints can be read: {'; '.join(faults)}" if faults else "no checkpoint there"
    raise ConfigError(f"{folder.parent}: {found}.")


def saved_name(name: str) -> str:
    """A leaf's name as adapters.safetensors has it too: that of its layer and its own, without its branch."""
    return name.replace(".rotation.", ".").replace(".low_rank.", ".")


def restore(directory: Path, model: nn.Module, optimizer: BranchOptimizer) -> Progress:
    saved = read_json(directory / "progress.json")
    if saved.pop("format", None) != FORMAT:
        raise ConfigError("another format")
    weights = mx.load(str(directory / "adapter.safetensors"))
    state = mx.load(str(directory / "optimizer.safetensors"))
    set_state(model, weights, str(directory / "adapter.safetensors"))
    names = {saved_name(name): name for name, _ in tree_flatten(optimizer.state)}
    if names.keys() != state.keys():
        raise ConfigError("its optimiser state belongs to another configuration")
    optimizer.put_state({names[name]: value for name, value in state.items()})
    progress = progress_from(saved)
    if progress.averaged:
        progress.average = mx.load(str(directory / "average.safetensors"))
    return progress
