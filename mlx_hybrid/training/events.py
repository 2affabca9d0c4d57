"""What a run has to tell, one frozen value per fact; somebody else decides how it looks."""

from typing import NamedTuple

RAW = "raw"  # the weights as they are, beside an average of them


class Note(NamedTuple):
    """A sentence for the person at the terminal."""

    text: str


class Started(NamedTuple):
    """Training begins."""

    steps: int
    first_step: int
    modules: int
    trainable: int
    records: int
    machines: int = 1


class Trained(NamedTuple):
    """A stretch of steps is done; the loss is their mean over trained tokens, in nats. `rates` has the last step's rate
    of each branch there is, `mixing` λ of each layer that has both."""

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


class Validated(NamedTuple):
    """The held-back records were scored; `best` says whether the loss, in nats per token, is the lowest yet. At step 0
    it is that of what the run begins with, never the best. `form` is what was scored: the raw weights or an average."""

    step: int
    loss: float
    best: bool
    by_language: dict[str, float]
    form: str = RAW

    @property
    def standing(self) -> str:
        """What the result stands for, in brackets for a line of text."""
        form = "" if self.form == RAW else f" of the average ({self.form})"
        told = " (best so far)" if self.best else ""
        return form + (told if self.step else " (before training)")


class Orthogonality(NamedTuple):
    """How far the rotations are from orthogonal: the largest |R Rᵀ − I| of any adapted layer."""

    step: int
    defect: float


class CheckpointDue(NamedTuple):
    """The state should be saved now, before the next step."""

    step: int


class Interrupted(NamedTuple):
    """A stop was asked for; the last step is complete."""

    step: int


class Finished(NamedTuple):
    """Training is done: all its steps, or as many as the guards allowed."""

    step: int
    seconds: float


Event = Note | Started | Trained | Validated | Orthogonality | CheckpointDue | Interrupted | Finished
