"""Where a run stands, and what ends it before its last step.

Saved whole with every checkpoint, so that a resumed run also reports what an unbroken one would.
"""

import math
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_hybrid.training.batches import Batch
from mlx_hybrid.training.events import RAW, Note, Trained

PATIENCE, TIME = "patience", "time"
"""Why a run may end early."""
SHOWN_RECORDS = 8
LONG = 10.0  # seconds


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

    def add(self, loss: float, weight: float, norm: float, lam: list[float], group: list[Batch]) -> None:
        """Count one step: its summed loss and weights, gradient norm and λ of each layer that shares its step."""
        self.loss += loss
        self.weight += weight
        self.trained += sum(batch.answers for batch in group)
        self.tokens += sum(int(batch.tokens.size) for batch in group)
        self.norm, self.mixing = norm, lam


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
    best_form: str = RAW
    """What the best validation was of: the raw weights or their average."""
    halvings: int = 0
    """How often the rates were halved, because the loss rose over the first steps."""
    averaged: int = 0
    """Iterates in the average."""
    average: dict[str, mx.array] = field(default_factory=dict, repr=False, compare=False)
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

    def note(self, loss: float, form: str) -> bool:
        """Note a validation loss, the base's before the first step; whether it is the lowest since."""
        if not self.step:
            self.base_loss = loss
            return False
        best = loss < self.best_loss
        if best:
            self.best_loss, self.best_step, self.best_form = loss, self.step, form
        if best and loss < self.base_loss:
            self.stale = 0
        elif form == RAW:
            self.stale += 1
        return best

    def begin_again(self) -> None:
        """Forget all but the base, the time used and how often this happened."""
        fresh = Progress(base_loss=self.base_loss, seconds=self.seconds, halvings=self.halvings + 1)
        self.__dict__.update(fresh.__dict__)

    def out_of_time(self, minutes: float) -> bool:
        return bool(minutes) and self.seconds >= 60 * minutes

    def out_of_patience(self, patience: int) -> bool:
        return bool(patience) and self.stale >= patience

    def report(self, steps: int, rates: dict[str, float]) -> Trained:
        """The event of the window that ends here; the next one begins."""
        window, self.window = self.window, Window()
        return Trained(
            step=self.step,
            steps=steps,
            loss=window.loss / max(1e-9, window.weight),
            rates=rates,
            gradient_norm=window.norm,
            tokens=window.tokens,
            trained_tokens=window.trained,
            tokens_per_second=window.tokens / max(1e-9, window.seconds),
            peak_memory_gb=mx.get_peak_memory() / 1e9,
            mixing=tuple(window.mixing),
            seconds=self.seconds,
        )

    def verdict(self) -> list[Note]:
        """Why training ended early, and that no adapter beat its base, each where it is so."""
        best, told = f"{self.best_loss:.3f} at step {self.best_step}", []
        if self.ended == TIME:
            told.append(f"Stopped at step {self.step}: train.max_minutes is used up.")
        elif self.ended == PATIENCE:
            told.append(
                f"Stopped at step {self.step}: {self.stale} validations without a lower loss than {best} "
                "(train.patience)."
            )
        if not self.beats_base:
            told.append(
                "No adapter of this run beats the model it began with on the validation records: loss "
                f"{best} against {self.base_loss:.3f}. Lower the learning rates, or add records."
            )
        return [Note(text) for text in told]


def progress_from(saved: dict) -> Progress:
    """A Progress from its plain values. Raises TypeError for unknown ones."""
    saved.pop("level", None)  # of older versions
    return Progress(**(saved | {"window": Window(**saved.get("window", {}))}))


def still(seconds: float) -> str:
    """What is left of some work, in words, where that is long enough to be waited for."""
    if seconds < LONG:
        return ""
    return (
        f", some {seconds / 60:.0f} minutes left" if seconds >= 90 else f", some {seconds:.0f} seconds left"
    )


def named_records(group: list[Batch]) -> str:
    return ", ".join([where for batch in group for where in batch.where][:SHOWN_RECORDS])
