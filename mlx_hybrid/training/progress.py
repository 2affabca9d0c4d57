"""Where a run stands, what ends it before its last step, and what it warns of.

Saved whole with every checkpoint, so that a resumed run also reports what an unbroken one would.
"""

import math
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.training.batches import Batch
from mlx_hybrid.training.events import Note, Trained

PATIENCE, TIME = "patience", "time"
"""Why a run may end early."""
SPIKE = 6.0  # mean absolute deviations: near five standard deviations of a normal variable
MEMORY = 0.95
SETTLING = 20  # steps before the level says anything
SHOWN_RECORDS = 8


@dataclass
class Window:
    """Sums since the last report."""

    loss: float = 0.0
    weight: float = 0.0
    trained: int = 0
    tokens: int = 0
    norm: float = 0.0
    mixing: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class LossLevel:
    """Where the loss of a step usually lies: running mean and mean absolute deviation, in nats per token."""

    mean: float = 0.0
    deviation: float = 0.0
    steps: int = 0


@dataclass
class Progress:
    """Steps done, the best validation so far, and what the guards have seen."""

    step: int = 0
    base_loss: float = math.inf
    """The validation loss before the first step."""
    best_loss: float = math.inf
    best_step: int = 0
    seconds: float = 0.0
    stale: int = 0
    """Validations since the best one."""
    ended: str = ""
    """Why training ended before its last step; empty while it has not."""
    level: LossLevel = field(default_factory=LossLevel)
    window: Window = field(default_factory=Window)

    @property
    def beats_base(self) -> bool:
        """Whether the best adapter's validation loss is below its base's; also where nothing was validated."""
        return self.best_loss < self.base_loss or math.isinf(self.base_loss)

    def over(self, steps: int) -> bool:
        """Whether the last of `steps` is done, or a guard ended the run."""
        return self.step >= steps or bool(self.ended)

    def due(self, every: int, steps: int) -> bool:
        """Whether it is time for what comes every so many steps, and once more at the end."""
        return self.step % every == 0 or self.over(steps)


def progress_from(saved: dict) -> Progress:
    """A Progress from its plain values. Raises TypeError for unknown ones."""
    nested = {"level": LossLevel(**saved.get("level", {})), "window": Window(**saved.get("window", {}))}
    return Progress(**(saved | nested))


def add(
    window: Window, losses: tuple[float, float], norm: float, lam: list[float], group: list[Batch]
) -> None:
    """Count one step: its (summed loss, summed weights), gradient norm and λ of each layer that shares its step."""
    window.loss += losses[0]
    window.weight += losses[1]
    window.trained += sum(batch.answers for batch in group)
    window.tokens += sum(int(batch.tokens.size) for batch in group)
    window.norm = norm
    window.mixing = lam


def add_time(progress: Progress, seconds: float) -> None:
    progress.seconds += seconds
    progress.window.seconds += seconds


def report(progress: Progress, steps: int, rates: dict[str, float]) -> Trained:
    """The event of the window that ends here."""
    window = progress.window
    return Trained(
        step=progress.step,
        steps=steps,
        loss=window.loss / max(1e-9, window.weight),
        rates=rates,
        gradient_norm=window.norm,
        tokens=window.tokens,
        trained_tokens=window.trained,
        tokens_per_second=window.tokens / max(1e-9, window.seconds),
        peak_memory_gb=mx.get_peak_memory() / 1e9,
        mixing=tuple(window.mixing),
        seconds=progress.seconds,
    )


def named_records(group: list[Batch]) -> str:
    return ", ".join([where for batch in group for where in batch.where][:SHOWN_RECORDS])


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
        "No adapter of this run beats the model it began with on the validation records: loss "
        f"{progress.best_loss:.3f} at step {progress.best_step} against {progress.base_loss:.3f}. "
        "Lower the learning rates, or add records."
    )
