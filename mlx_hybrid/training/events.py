"""What a run has to tell, one frozen value per fact; somebody else decides how it looks."""

from dataclasses import dataclass, field

from mlx_hybrid.training.batches import Batch

RAW = "raw"
"""The weights as they are, beside an average of them."""


@dataclass(frozen=True)
class Note:
    """A sentence for the person at the terminal."""

    text: str


@dataclass(frozen=True)
class Started:
    """Training begins."""

    steps: int
    first_step: int
    modules: int
    trainable: int
    records: int
    machines: int = 1


@dataclass(frozen=True)
class Trained:
    """A stretch of steps is done; the loss is their mean over trained tokens, in nats.

    `rates` has the last step's rate of each branch there is, `mixing` λ of each layer that has both.
    """

    step: int
    steps: int
    loss: float
    rates: dict[str, float]
    gradient_norm: float
    tokens: int
    trained_tokens: int
    tokens_per_second: float
    peak_memory_gb: float
    mixing: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Validated:
    """The held-back records were scored; `best` says whether the loss, in nats per token, is the lowest yet.

    At step 0 it is the base's, which is never the best. `form` is what was scored: the raw weights or an average, and
    `whole` the loss on all of the held-back records, where `loss` is that on a sample.
    """

    step: int
    loss: float
    best: bool
    seconds: float
    by_language: dict[str, float] = field(default_factory=dict)
    form: str = RAW
    whole: float | None = None

    @property
    def standing(self) -> str:
        """What the result stands for, in brackets for a line of text."""
        form = "" if self.form == RAW else f" of the average ({self.form})"
        return f"{form} (base)" if not self.step else f"{form} (best so far)" if self.best else form


@dataclass(frozen=True)
class Restarted:
    """The validation loss rose over the first steps: the run begins again, its rates at `factor` of what they were."""

    step: int
    factor: float


@dataclass(frozen=True)
class Orthogonality:
    """How far the rotations are from orthogonal: the largest |R Rᵀ − I| of any adapted layer."""

    step: int
    defect: float


@dataclass(frozen=True)
class NotFinite:
    """The loss or the gradient of a step is not a number; these were its batches, and an error follows."""

    step: int
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class CheckpointDue:
    """The state should be saved now, before the next step."""

    step: int


@dataclass(frozen=True)
class Interrupted:
    """A stop was asked for; the last step is complete."""

    step: int


@dataclass(frozen=True)
class Finished:
    """Training is done: all its steps, or as many as the guards allowed."""

    step: int
    seconds: float


Told = Note | Started | Trained | Validated | Restarted | Orthogonality
Event = Told | NotFinite | CheckpointDue | Interrupted | Finished
