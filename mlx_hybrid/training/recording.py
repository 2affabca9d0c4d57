"""What a run writes as its events come: metrics, the log, checkpoints, the best adapter."""

from typing import Any

from mlx_hybrid.config import Config
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.training.events import CheckpointDue, Event, Finished, Interrupted, Note, NotFinite, Validated
from mlx_hybrid.training.material import Material
from mlx_hybrid.training.run import Run


def handle(event: Event, config: Config, run: Run, material: Material, progress: Any) -> None:
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


def write_event(event: Event, config: Config, run: Run, material: Material, progress: Any) -> None:
    from mlx_hybrid.training.checkpoint import save_checkpoint

    run.record(event)
    if isinstance(event, Validated):
        run.log(f"step {event.step}: validation loss {event.loss:.4f}{' (best)' if event.best else ''}")
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
            ended=progress.ended or "steps",
        )  # fmt: skip


def save_best(config: Config, run: Run, material: Material, progress: Any) -> None:
    from mlx_hybrid.adapters.store import save_adapter

    save_adapter(
        material.base.model, run.adapter, config=config.adapter, method=config.method,
        base=material.base.identity, seed=config.seed, extra={"step": progress.step},
    )  # fmt: skip
