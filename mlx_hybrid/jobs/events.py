"""What the main job tells beside the events of training, and trackers that are told of it as it goes."""

import importlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from mlx_hybrid.config import flat, to_tree
from mlx_hybrid.errors import ConfigError, check_known
from mlx_hybrid.evaluation.results import Results
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import Event
from mlx_hybrid.training.recording import metrics_row

TRACKERS = ("tensorboard", "trackio", "wandb")
Log = Callable[[dict[str, float], int], object]  # takes values and their step


class Prepared(NamedTuple):
    """The data has been read; `reasons` counts what governance set aside, `run`/data/rejected.jsonl holds it, and
    `read_as` says which files were read as what."""

    run: Run
    kept: int
    rejected: int
    reasons: dict[str, int]
    train: int
    valid: int
    test: int
    read_as: str = ""


class AdapterReady(NamedTuple):
    """The best adapter was put on a fresh base, and changes its logits by up to `change`."""

    modules: int
    change: float


class Evaluated(NamedTuple):
    """Base against adapter on the held-out records (docs/evaluation.md)."""

    results: Results


class Answered(NamedTuple):
    """What base and adapter answered to a few prompts, one row a prompt."""

    rows: list[dict]


JobEvent = Event | Prepared | AdapterReady | Evaluated | Answered


class Tracking(ExitStack):
    """Tells TensorBoard, trackio or Weights & Biases of a job, inside a `with`. All stays on this machine, unless a
    tracker is told otherwise in its own way (TRACKIO_SPACE_ID, WANDB_MODE=online)."""

    def __init__(self, *names: str) -> None:
        """Raise ConfigError for a tracker that is not known or not installed."""
        super().__init__()
        for theirs in ("WANDB_ERROR_REPORTING", "GRADIO_ANALYTICS_ENABLED"):
            os.environ.setdefault(theirs, "false")  # nothing leaves this machine unasked
        self.packages, self.logs, self.step = {}, [], 0
        for name in names:
            check_known(name, TRACKERS, "--log: no tracker")
            try:
                self.packages[name] = importlib.import_module(name)
            except ImportError as error:
                raise ConfigError(f"--log {name}: {error}; pip install 'mlx-hybrid[{name}]'.") from None

    def follow(self, event: JobEvent) -> None:
        if isinstance(event, Prepared):
            self.logs = [self.begun(name, package, event.run) for name, package in self.packages.items()]
        if isinstance(event, Evaluated):
            rows = (row for row in event.results.rows if row.language == "all" and not row.variant)
            row = {f"held_out/{row.metric}/{row.model}": row.value for row in rows}
        else:
            row = metrics_row(event) or {}
        self.step = row.pop("step", self.step)
        values = {name: value for name, value in row.items() if type(value) in (int, float)}
        for log in self.logs if values else ():
            log(values, self.step)

    def begun(self, name: str, package: Any, run: Run) -> Log:
        """What takes the values of a run, which ends with the `with`."""
        config = to_tree(run.config())
        if name == "tensorboard":
            writer = importlib.import_module("tensorboard.summary").Writer(str(run.path / "tensorboard"))
            self.callback(writer.close)
            return lambda values, step: [writer.add_scalar(key, value, step) for key, value in values.items()]
        if name == "trackio":
            package.init(project="mlx-hybrid", name=run.name, config=flat(config), resume="allow")
            self.callback(package.finish)
            return lambda values, step: package.log(values, step=step)
        mode = os.environ.get("WANDB_MODE", "offline")
        wandb = package.init(project="mlx-hybrid", name=run.name, config=config, dir=run.path, mode=mode)
        return self.enter_context(wandb).log
