"""What a run has to tell, one frozen value per fact; somebody else decides how it looks."""

from dataclasses import dataclass


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


@dataclass(frozen=True)
class Trained:
    """A stretch of steps is done; the loss is their mean over trained tokens, in nats."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    trained_tokens: int
    tokens_per_second: float
    peak_memory_gb: float
    mixing: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Validated:
    """The held-back records were scored; `best` says whether the loss is the lowest yet."""

    step: int
    loss: float
    best: bool
    seconds: float


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
    """All steps are done."""

    step: int
    seconds: float


Event = Note | Started | Trained | Validated | CheckpointDue | Interrupted | Finished
