"""Where a run stands; saved whole, so that a resumed run also reports what an unbroken one would."""

import math
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_hybrid.training.batches import Batch
from mlx_hybrid.training.events import Trained


@dataclass
class Window:
    """Sums since the last report."""

    loss: float = 0.0
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


def add(window: Window, losses: tuple[float, int], norm: float, lam: list[float], group: list[Batch]) -> None:
    """Count one step: its (summed loss, trained tokens), gradient norm and λ of each layer that shares its step."""
    window.loss += losses[0]
    window.trained += losses[1]
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
        loss=window.loss / max(1, window.trained),
        rates=rates,
        gradient_norm=window.norm,
        tokens=window.tokens,
        trained_tokens=window.trained,
        tokens_per_second=window.tokens / max(1e-9, window.seconds),
        peak_memory_gb=mx.get_peak_memory() / 1e9,
        mixing=tuple(window.mixing),
        seconds=progress.seconds,
    )
