"""What the main job has to tell beside the events of training."""

from typing import NamedTuple

from mlx_hybrid.evaluation.results import Results
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import Event


class Prepared(NamedTuple):
    """The data has been read; `reasons` counts what governance set aside, `run`/data/rejected.jsonl holds it, and
    `read_as` says which files were read as what."""

    run: Run
    kept: int
    rejected: int
    reasons: dict[str, int]
    train: int
    valid: int
    test: int
    read_as: str = ""


class AdapterReady(NamedTuple):
    """The best adapter was put on a fresh base, and changes its logits by up to `change`."""

    modules: int
    change: float


class Evaluated(NamedTuple):
    """Base against adapter on the held-out records (docs/evaluation.md)."""

    results: Results


class Answered(NamedTuple):
    """What base and adapter answered to a few prompts (jobs/held_out.py), one row a prompt."""

    rows: list[dict]


JobEvent = Event | Prepared | AdapterReady | Evaluated | Answered
