"""A run told to a tracker as it goes: TensorBoard, trackio or Weights & Biases, each through its own package.

Told is what metrics.jsonl keeps, and the held-out figures at the end. It stays on this machine, TensorBoard's in the
run's folder, unless a tracker is told otherwise in its own way (TRACKIO_SPACE_ID, WANDB_MODE=online).
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from mlx_hybrid.config import flat, to_tree
from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.jobs.events import AdapterReady, Answered, Evaluated, JobEvent, Prepared
from mlx_hybrid.run import Run
from mlx_hybrid.training.recording import metrics_row

PROJECT = "mlx-hybrid"
Log = Callable[[dict[str, float], int], object]
"""Takes values and their step."""


@contextmanager
def tensorboard(package: Any, run: Run) -> Iterator[Log]:
    writer = importlib.import_module("tensorboard.summary").Writer(str(run.path / "tensorboard"))
    try:
        yield lambda values, step: [writer.add_scalar(name, value, step) for name, value in values.items()]
    finally:
        writer.close()


@contextmanager
def trackio(package: Any, run: Run) -> Iterator[Log]:
    package.init(project=PROJECT, name=run.name, config=flat(to_tree(run.config())), resume="allow")
    try:
        yield lambda values, step: package.log(values, step=step)
    finally:
        package.finish()


@contextmanager
def wandb(package: Any, run: Run) -> Iterator[Log]:
    mode, config = os.environ.get("WANDB_MODE", "offline"), to_tree(run.config())
    with package.init(project=PROJECT, name=run.name, config=config, dir=run.path, mode=mode) as started:
        yield lambda values, step: started.log(values, step=step)


TRACKERS = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb}


class Tracking(ExitStack):
    """Follows the events of a job inside a `with`."""

    def __init__(self, *names: str) -> None:
        """Raise ConfigError for a tracker that is not known or not installed."""
        super().__init__()
        for theirs in ("WANDB_ERROR_REPORTING", "GRADIO_ANALYTICS_ENABLED"):
            os.environ.setdefault(theirs, "false")  # nothing leaves this machine unasked
        self.packages, self.logs, self.step = {}, [], 0
        for name in names:
            if name not in TRACKERS:
                raise ConfigError(f'--log: no tracker "{name}"; {nearest(name, TRACKERS)}')
            try:
                self.packages[name] = importlib.import_module(name)
            except ImportError as error:
                raise ConfigError(f"--log {name}: {error}; pip install 'mlx-hybrid[{name}]'.") from None

    def follow(self, event: JobEvent) -> None:
        match event:
            case Prepared():
                own = self.packages.items()
                self.logs = [self.enter_context(TRACKERS[name](package, event.run)) for name, package in own]
                return
            case AdapterReady() | Answered():
                return
            case Evaluated():
                row = held_out(event)
            case _:
                row = metrics_row(event) or {}
        self.step = row.pop("step", self.step)
        values = {name: value for name, value in row.items() if type(value) in (int, float)}
        for log in self.logs if values else ():
            log(values, self.step)


def held_out(event: Evaluated) -> dict[str, float]:
    rows = (row for row in event.results.rows if row.language == "all" and not row.variant)
    return {f"held_out/{row.metric}/{row.model}": row.value for row in rows}
