"""A comparison as a grid of cells: one method, one learning rate, one seed, one way of governing, each a run."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_hybrid.config import PRESETS, Config, dump_config, load_config, override_tree, read_settings
from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.evaluation.evaluate import PIVOT
from mlx_hybrid.evaluation.sets import language_code
from mlx_hybrid.governance.rules import STAGES, unused_settings
from mlx_hybrid.study.tuning import Trial

ADDED = ("language", "quality", "exact", "near")
"""Stages that `--governance steps` adds one at a time, after the structure and Unicode checks that always run."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    method: str
    governance: str
    rate: float
    seed: int
    batch: int = 0
    """Batch size; 0 leaves it to the config."""

    @property
    def name(self) -> str:
        batch = f"-batch-{self.batch}" if self.batch else ""
        return f"{self.method}/{self.governance}/lr-{self.rate:g}{batch}-seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, and on what terms. `source` and `overrides` make each cell's config."""

    source: Path
    overrides: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...]
    seeds: int
    rates: tuple[float, ...] = ()
    batches: tuple[int, ...] = ()
    governance: tuple[str, ...] = ()
    noise: float = 0.0
    limit: int = 0
    variants: tuple[str, ...] = ()
    retain: str = "auto"
    """Text by which forgetting is measured: a file, `auto` for our own, or `none`."""
    pivot: str | None = None
    """As it was asked for; None is what `evaluate` takes, whether a record is in it or not."""
    max_tokens: int | None = None
    """Of one translation; None is what `evaluate` takes."""

    def base(self) -> Config:
        return load_config(self.source, self.overrides, self.values)

    @property
    def reference(self) -> str:
        """The method that the others are held against."""
        return self.methods[0]

    def first(self, method: str, trial: Trial) -> Cell:
        """The cell of the first seed and the first governance setting: what rates are chosen by."""
        return Cell(method, self.governance[0], trial.rate, 0, trial.batch)

    def config(self, cell: Cell, data: dict[str, Any]) -> Config:
        """The whole configuration of a cell: the plan's own, its method's preset, its rate and seed. Where the source
        has two rates, they move together; with another batch size as many records are trained on."""
        train = self.base().train
        own = {"method": cell.method, "seed": cell.seed, "evaluate": False, "name": ""}
        own["train.learning_rate"] = cell.rate
        if train.orthogonal_learning_rate and train.learning_rate:
            ratio = train.orthogonal_learning_rate / train.learning_rate
            own["train.orthogonal_learning_rate"] = cell.rate * ratio
        if cell.batch:
            scale = train.batch_size / cell.batch
            own["train.batch_size"] = cell.batch
            for key in ("steps", "validate_every"):
                steps = getattr(train, key)
                own[f"train.{key}"] = max(1, round(steps * scale)) if steps else 0
        values = self.values | data | governance_values(cell.governance) | own
        return load_config(self.source, self.overrides, values)

    def terms(self) -> dict:
        """What must not change between two calls for one folder; methods, seeds, rates may."""
        config = dump_config(self.config(Cell("lora", "own", 1e-3, 0), {}))
        terms = {
            "config": hashlib.sha256(config.encode()).hexdigest(),
            "noise": self.noise,
            "limit": self.limit,
        }
        terms |= {"variants": list(self.variants), "pivot": language_code(self.pivot or PIVOT)}
        terms |= {"retain": self.retain} if self.retain != "auto" else {}
        return terms | ({"max_tokens": self.max_tokens} if self.max_tokens else {})


def check_plan(plan: Plan) -> None:
    """Raise ConfigError for a plan that would not compare like with like."""
    for method in plan.methods:
        if method not in PRESETS:
            raise ConfigError(f'--methods: unknown method "{method}"; {nearest(method, PRESETS)}')
    if len(set(plan.methods)) < len(plan.methods):
        raise ConfigError("--methods names one method twice.")
    if low := [rate for rate in plan.rates if rate <= 0]:
        raise ConfigError(f"--lrs: a learning rate must be above zero, not {low[0]:g}.")
    if low := [batch for batch in plan.batches if batch < 1]:
        raise ConfigError(f"--batch-sizes: a batch has at least one record, not {low[0]}.")
    for name in plan.governance:
        governance_values(name)
    trees = (read_settings(plan.source), *(override_tree((override,)) for override in plan.overrides))
    given = set().union(*(settings_in(tree.get("adapter") or {}) for tree in trees))
    decided = {key for preset in PRESETS.values() for key in settings_in(preset)}
    if fixed := sorted(given & decided):
        told = "is set for every method, so they would not be themselves; leave it to the methods."
        raise ConfigError(f"adapter.{fixed[0]} {told}")


def settings_in(tree: dict, prefix: str = "") -> set[str]:
    """The dotted keys of a group and of the groups in it."""
    inner = [settings_in(value, f"{prefix}{key}.") for key, value in tree.items() if isinstance(value, dict)]
    return {f"{prefix}{key}" for key, value in tree.items() if not isinstance(value, dict)}.union(*inner)


def governance_settings(asked: tuple[str, ...]) -> tuple[str, ...]:
    """`--governance`: `steps` is off, then each stage added to those before; other names stand for themselves."""
    steps = ("off", *(f"to-{name}" for name in ADDED))
    settings = (own for name in asked for own in (steps if name == "steps" else (name,)))
    return tuple(dict.fromkeys(settings)) or ("own",)


def governance_values(name: str) -> dict[str, Any]:
    """Config values of a governance setting: `own` is the source's, `off`, `on`, a stage alone, or `to-STAGE`. No
    language loses too much: the planted faults are many."""
    if name == "own":
        return {}
    if name == "off":
        return {"governance.enabled": False}
    free = {"governance.enabled": True, "governance.max_reject_share": 1.0}
    if name == "on":
        return free
    stage = name.removeprefix("to-")
    if stage not in STAGES:
        known = nearest(name, ("own", "off", "on", "steps", *STAGES))
        raise ConfigError(f'--governance: unknown setting "{name}"; {known}')
    stages = (*ADDED[: ADDED.index(stage) + 1], "unicode") if name != stage and stage in ADDED else (stage,)
    unused = {f"governance.{key}": value for key, value in unused_settings(stages).items()}
    return {**free, "governance.only": list(stages), **unused}


def final_cells(plan: Plan, chosen: dict[str, Trial]) -> list[Cell]:
    """Every method, governance setting and seed at the method's chosen rate. Seeds go round first, so that a comparison
    stopped early has every method."""
    return [
        Cell(method, governance, chosen[method].rate, seed, chosen[method].batch)
        for seed in range(plan.seeds)
        for governance in plan.governance
        for method in plan.methods
    ]
