"""What ends a run before its last step, and what warns: no number, a spike, no gain, no time."""

import math

from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.training.batches import Batch
from mlx_hybrid.training.events import Note
from mlx_hybrid.training.progress import LossLevel, Progress

PATIENCE = "patience"
TIME = "time"
SPIKE = 6.0  # mean absolute deviations: near five standard deviations of a normal variable
MEMORY = 0.95
SETTLING = 20  # steps before the level says anything
SHOWN_RECORDS = 8


def named_records(group: list[Batch]) -> str:
    return ", ".join([where for batch in group for where in batch.where][:SHOWN_RECORDS])


def is_finite(loss: float, norm: float) -> bool:
    return math.isfinite(loss) and math.isfinite(norm)


def no_number(group: list[Batch], step: int, rates: str) -> MlxHybridError:
    """The error of a step whose loss or gradient is not finite; `rates` names the settings of those that act."""
    return MlxHybridError(
        f"The loss stopped being a number at step {step}, on records {named_records(group)}; "
        f"the best adapter so far is kept. Lower {rates}, or look at those records."
    )


def spike(level: LossLevel, loss: float, group: list[Batch], step: int, rates: str) -> Note | None:
    """A warning when a step's loss (nats per token) stands far above its level, which then moves on.

    A spike enters the level as the highest loss that would not have been one, so that it hides none after it.
    """
    limit = level.mean + SPIKE * level.deviation
    spiked = level.steps >= SETTLING and loss > limit
    note = None
    if spiked:
        note = Note(
            f"Step {step}: the loss jumped to {loss:.2f} from {level.mean:.2f} ± {level.deviation:.2f}, on records "
            f"{named_records(group)}; if it stays there, lower {rates}."
        )
        loss = limit
    level.steps += 1
    share = max(1 - MEMORY, 1 / level.steps)  # a plain mean at first
    level.deviation += share * (abs(loss - level.mean) - level.deviation) if level.steps > 1 else 0.0
    level.mean += share * (loss - level.mean)
    return note


def out_of_time(progress: Progress, minutes: float) -> bool:
    return bool(minutes) and progress.seconds >= 60 * minutes


def out_of_patience(progress: Progress, patience: int) -> bool:
    return bool(patience) and progress.stale >= patience


def ending(progress: Progress) -> Note:
    """Why training ended early, as a sentence."""
    if progress.ended == TIME:
        return Note(f"Stopped at step {progress.step}: train.max_minutes is used up.")
    return Note(
        f"Stopped at step {progress.step}: {progress.stale} validations without a lower loss than "
        f"{progress.best_loss:.3f} at step {progress.best_step} (train.patience)."
    )


def worse_than_base(progress: Progress) -> Note:
    """That no adapter of the run beat its base, as a sentence."""
    return Note(
        f"No adapter of this run beats its base on the validation records: loss {progress.best_loss:.3f} at step "
        f"{progress.best_step} against {progress.base_loss:.3f} without one. Lower the learning rates, or add records."
    )
