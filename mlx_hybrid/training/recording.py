"""What a run writes: how it began, metrics, the log, checkpoints and the best adapter as its events come, its end."""

import contextlib
import dataclasses
import time

import numpy as np

from mlx_hybrid.adapters.store import read_adapter_config
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.config import Config, dump_config
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.files import write_text
from mlx_hybrid.records.files import Sources
from mlx_hybrid.run import Run, machine
from mlx_hybrid.training.events import CheckpointDue, Event, Finished, Interrupted, Note, NotFinite, Validated
from mlx_hybrid.training.material import Material, hash_examples
from mlx_hybrid.training.progress import Progress


def begin_run(
    config: Config, run: Run, material: Material, sources: Sources, *, resume: bool, ranks: int
) -> None:
    """Write run.json; a resumed run must have the config, but for its time limit, and the data it was begun with."""
    files = (*sources.train, *sources.valid, *sources.test)
    data_hash = hash_examples(material.train, material.valid, material.test)
    if resume:
        if untimed(run.config()) != untimed(config):
            raise ConfigError(
                f"{run.path}: its config.yaml is not the configuration asked for; resume takes none of its own."
            )
        if run.info().get("data_hash") != data_hash:
            raise ConfigError(f"{run.path}: the data changed since the run began; start a new run.")
        run.drop_unfinished()
        if run.config() != config:
            run.log(f"train.max_minutes is {config.train.max_minutes:g} from now on")
            write_text(run.path / "config.yaml", dump_config(config))
        run.update(status="running", error=None, ranks=ranks)
        return
    run.update(
        status="running", started=time.strftime("%Y-%m-%dT%H:%M:%S"), method=config.method, seed=config.seed,
        base=material.base.identity, data_hash=data_hash, data=[file.path.name for file in files],
        records={"train": len(material.train), "valid": len(material.valid), "test": len(material.test)},
        machine=machine(), ranks=ranks,
    )  # fmt: skip


def untimed(config: Config) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, max_minutes=0.0))


def handle(event: Event, config: Config, run: Run, material: Material, progress: Progress) -> None:
    """Write what an event calls for. Raises MlxHybridError where the disk does not take it."""
    try:
        write_event(event, config, run, material, progress)
    except (OSError, RuntimeError, MlxHybridError) as error:  # RuntimeError is MLX's word for a failed write
        told = (
            str(error) if isinstance(error, MlxHybridError) else f"{run.path}: cannot be written ({error})."
        )
        raise MlxHybridError(
            f"{told} Step {progress.step} is not saved, earlier checkpoints are whole; make room, and go on with: "
            f"mlx-hybrid finetune --resume {run.path}"
        ) from error


def write_event(event: Event, config: Config, run: Run, material: Material, progress: Progress) -> None:
    from mlx_hybrid.training.checkpoint import save_checkpoint

    run.record(event)
    if isinstance(event, Validated):
        run.log(f"step {event.step}: validation loss {event.loss:.4f}{event.standing}")
        if event.best:
            save_best(config, run, material, progress)
    if isinstance(event, Note):
        run.log(event.text)
    if isinstance(event, NotFinite):
        run.log(f"step {event.step}: not a number; its batches are in {run.keep_batches(event).name}")
    if isinstance(event, CheckpointDue):
        save_checkpoint(
            run.checkpoints,
            material.base.model,
            material.optimizer,
            progress,
            keep=config.train.keep_checkpoints,
        )
    if isinstance(event, Interrupted):
        run.update(status="interrupted", step=event.step)
    if isinstance(event, Finished):
        if not material.valid:
            save_best(config, run, material, progress)
        run.update(
            step=event.step, seconds=round(event.seconds, 1), best_step=progress.best_step or event.step,
            ended=progress.ended or "steps", beats_base=progress.beats_base,
        )  # fmt: skip


def save_best(config: Config, run: Run, material: Material, progress: Progress) -> None:
    from mlx_hybrid.adapters.store import save_adapter

    save_adapter(
        material.base.model, run.adapter, config=config.adapter, method=config.method,
        base=material.base.identity, seed=config.seed, extra={"step": progress.step},
    )  # fmt: skip


def note_end(run: Run, error: BaseException) -> None:
    """Write down how a run broke off: by a fault, or by a second Ctrl-C."""
    failed = isinstance(error, Exception)
    told = {"status": "failed", "error": str(error)} if failed else {"status": "interrupted"}
    with contextlib.suppress(OSError):  # the disk may be what failed
        run.update(**told)


def way_on(run: Run) -> str:
    """The step to go on from, and how, where there is one."""
    step = run.saved_step()
    if step is None:
        return ""
    return f" Step {step} is saved; go on with: mlx-hybrid finetune --resume {run.path}"


def mixing(run: Run) -> tuple[list[str], list[int], np.ndarray]:
    """Modules with both branches, the steps reported, and λ (modules, steps); empty where nothing is mixed."""
    info = read_adapter_config(run.adapter)
    config = info.adapter
    if config.mixing != "gradient" or not config.rank or config.orthogonal == "none":
        return [], [], np.empty((0, 0))
    modules = [name for name in info.modules if last_part(name) not in config.unitary]
    rows = [row for row in run.metrics() if len(row.get("mixing", [])) == len(modules)]
    if not rows:
        return [], [], np.empty((0, 0))
    return modules, [row["step"] for row in rows], np.array([row["mixing"] for row in rows]).T
