"""What the main job has to tell beside the events of training."""

from dataclasses import dataclass
from pathlib import Path

from mlx_hybrid.evaluation.results import Results
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import Event


@dataclass(frozen=True)
class Prepared:
    """The data has been read; `reasons` counts what governance set aside, `run`/data/rejected.jsonl holds it."""

    run: Run
    kept: int
    rejected: int
    reasons: dict[str, int]
    train: int
    valid: int
    test: int
    read_as: str = ""
    """Which files were read as what, in one sentence."""


@dataclass(frozen=True)
class AdapterReady:
    """The best adapter was put on a fresh base, and changes its logits by up to `change`."""

    path: Path
    modules: int
    change: float


@dataclass(frozen=True)
class Evaluated:
    """Base against adapter on the held-out records (docs/evaluation.md)."""

    results: Results


@dataclass(frozen=True)
class Answered:
    """What base and adapter answered to a few prompts (jobs/samples.py), one row a prompt."""

    rows: list[dict]


JobEvent = Event | Prepared | AdapterReady | Evaluated | Answered
