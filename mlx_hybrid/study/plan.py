"""A comparison as a grid of cells: one method, one learning rate, one seed, one way of governing, each a run; and
the rate and batch size of each method: those of least validation loss, of as many trials for each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from mlx_hybrid.config import PRESETS, Config, dump_config, flat, load_config, override_tree, read_settings
from mlx_hybrid.errors import ConfigError, check_known, nearest
from mlx_hybrid.evaluation.evaluate import PIVOT
from mlx_hybrid.evaluation.sets import language_code
from mlx_hybrid.governance.rules import STAGES, unused_settings

ADDED = ("language", "quality", "exact", "near")  # stages that `--governance steps` adds one at a time
ROUNDS = 4  # times that the grid grows, while some method's best is at an end of it
Trial = tuple[float, int]  # learning rate, batch size; 0 is the config's own


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    method: str
    governance: str
    rate: float
    seed: int
    batch: int = 0

    @property
    def name(self) -> str:
        batch = f"-batch-{self.batch}" if self.batch else ""
        return f"{self.method}/{self.governance}/lr-{self.rate:g}{batch}-seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, and on what terms. `source`, `overrides` and `values` make each cell's config."""

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
    retain: str = "auto"  # text by which forgetting is measured: a file, `auto` for our own, or `none`
    pivot: str | None = None  # as it was asked for; None is what `evaluate` takes, as with `max_tokens`
    max_tokens: int | None = None  # of one translation

    def base(self) -> Config:
        return load_config(self.source, self.overrides, self.values)

    @property
    def reference(self) -> str:
        """The method that the others are held against."""
        return self.methods[0]

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
            steps = {"train.steps": train.steps, "train.validate_every": train.validate_every}
            own |= {key: max(1, round(count * scale)) for key, count in steps.items() if count}
            own["train.batch_size"] = cell.batch
        values = self.values | data | governance_values(cell.governance) | own
        return load_config(self.source, self.overrides, values)

    def terms(self) -> dict:
        """What must not change between two calls for one folder; methods, seeds, rates may."""
        config = dump_config(self.config(Cell("lora", "own", 1e-3, 0), {}))
        terms = {"config": sha256(config.encode()).hexdigest(), "noise": self.noise, "limit": self.limit}
        terms |= {"variants": list(self.variants), "pivot": language_code(self.pivot or PIVOT)}
        terms |= {"retain": self.retain, "max_tokens": self.max_tokens}
        return {key: value for key, value in terms.items() if value not in ("auto", None)}


def check_plan(plan: Plan) -> None:
    """Raise ConfigError for a plan that would not compare like with like."""
    for method in plan.methods:
        check_known(method, PRESETS, "--methods: unknown method")
    if len(set(plan.methods)) < len(plan.methods):
        raise ConfigError("--methods names one method twice.")
    for name in plan.governance:
        governance_values(name)
    trees = (read_settings(plan.source), override_tree(plan.overrides))
    given = {key for tree in trees for key in flat(tree.get("adapter") or {})}
    if fixed := sorted(given & {key for preset in PRESETS.values() for key in flat(preset)}):
        told = "is set for every method, so they would not be themselves; leave it to the methods."
        raise ConfigError(f"adapter.{fixed[0]} {told}")


def governance_settings(asked: tuple[str, ...]) -> tuple[str, ...]:
    """`--governance`: `steps` is off, then each stage added to those before; other names stand for themselves."""
    steps = ("off", *(f"to-{name}" for name in ADDED))
    settings = (own for name in asked for own in (steps if name == "steps" else (name,)))
    return tuple(dict.fromkeys(settings)) or ("own",)


def governance_values(name: str) -> dict[str, Any]:
    """Config values of a governance setting: `own` is the source's, `off`, `on`, a stage alone, or `to-STAGE`. No
    language loses too much: the planted faults are many."""
    free = {"governance.enabled": True, "governance.max_reject_share": 1.0}
    if name in (whole := {"own": {}, "off": {"governance.enabled": False}, "on": free}):
        return whole[name]
    stage = name.removeprefix("to-")
    if stage not in STAGES:
        known = nearest(name, (*whole, "steps", *STAGES))
        raise ConfigError(f'--governance: unknown setting "{name}"; {known}')
    stages = (*ADDED[: ADDED.index(stage) + 1], "unicode") if name != stage and stage in ADDED else (stage,)
    unused = {f"governance.{key}": value for key, value in unused_settings(stages).items()}
    return {**free, "governance.only": list(stages), **unused}


def final_cells(plan: Plan, chosen: dict[str, Trial]) -> list[Cell]:
    """Every method, governance setting and seed at the method's chosen rate and batch size. Seeds go round first, so
    that a comparison stopped early has every method."""
    grid = product(range(plan.seeds), plan.governance, plan.methods)
    return [Cell(m, governance, chosen[m][0], seed, chosen[m][1]) for seed, governance, m in grid]


def tune(
    methods: Sequence[str],
    rates: Sequence[float],
    batches: Sequence[int],
    losses: Callable[[list[tuple[str, Trial]]], list[float]],
) -> dict[str, dict[Trial, float]]:
    """Trial → loss of each method, over the same grid for all: every rate with every batch size, and while the best of
    some method is at an end of either, one step past that end, as large as the last."""
    tried: dict[str, dict[Trial, float]] = {method: {} for method in methods}
    axes = [tuple(rates), tuple(batches) or (0,)]
    for _ in range(ROUNDS + 1):
        pairs = product(product(*axes), methods)
        trials = [(method, trial) for trial, method in pairs if trial not in tried[method]]
        for (method, trial), loss in zip(trials, losses(trials), strict=True):
            tried[method][trial] = loss
        chosen = zip(*(min(own, key=own.get) for own in tried.values()))
        wider = [past_ends(axis, set(ends)) for axis, ends in zip(axes, chosen)]
        if wider == axes:
            break
        axes = wider
    return tried


def past_ends(axis: tuple, chosen: set) -> tuple:
    """The axis with a step past each of its ends that is chosen; batches are whole and hold a record at least."""
    ends = (axis[:2], axis[:-3:-1]) if len(axis) > 1 else ()
    steps = [end * end / inner for end, inner in ends if end in chosen]
    whole = isinstance(axis[0], int)
    return tuple(sorted({*axis, *(max(1, round(s)) if whole else float(f"{s:.3g}") for s in steps)}))
