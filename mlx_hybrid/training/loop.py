"""The training loop: steps in, events out. It prints nothing and writes nothing."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.attach import refold, rotation_defect, rotations
from mlx_hybrid.adapters.store import adapter_state, set_state
from mlx_hybrid.adapters.strength import averaged
from mlx_hybrid.config import TrainConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.records.template import Example
from mlx_hybrid.training import batches, events
from mlx_hybrid.training.distributed import ALONE, LayOut, MachineLost, World
from mlx_hybrid.training.optimizer import BranchOptimizer, schedule
from mlx_hybrid.training.progress import PATIENCE, TIME, Progress, named_records, still
from mlx_hybrid.training.step import compiles, make_step
from mlx_hybrid.training.validation import Validations, intervals, validate

RISE = 0.1
"""Share of the base's validation loss by which it may rise over the first tenth of a run."""
MOST_HALVINGS = 4
SHORT = 10  # steps of a run that has no tenth to speak of
AVERAGES = 30
"""Iterates that an average takes of a run, about."""
EMA = 0.1
"""Memory of the exponential average, in shares of a run's steps."""
CACHE_EVERY = 50
"""Steps between returns of unused buffers: lengths vary, and the cache would keep one of each."""
MOST_DEFECT = 1e-5
"""Largest |R Rᵀ − I| that rounding should leave of a rotation."""


def total_steps(config: TrainConfig, examples: int) -> int:
    """Optimiser steps: `steps`, or as many as `epochs` passes take, at least one."""
    if config.steps:
        return config.steps
    micro = math.ceil(examples / config.batch_size) * config.epochs
    return max(1, round(micro / config.accumulate))


def first_tenth(steps: int) -> int:
    """The step at which a run whose loss has risen begins again."""
    return math.ceil(steps / 10)


def train(
    model: nn.Module,
    optimizer: BranchOptimizer,
    examples: list[Example],
    held_back: list[Example],
    config: TrainConfig,
    *,
    seed: int,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
    temperature: float = 1.0,
    world: World = ALONE,
    start: dict[str, mx.array] | None = None,
) -> Iterator[events.Event]:
    """Train from `progress.step` to the end, yielding one event for each thing worth knowing.

    `progress` is kept up to date, so that whoever handles CheckpointDue can save it; a run that a guard ended stays
    ended. `temperature` shifts the languages' shares (batches.py). Each machine of a `world` computes its part of every
    batch, and all yield the same events. A run that rises in its first tenth begins again at half its rates from its
    `start`, which a resumed one is given. Raises MlxHybridError when the loss stops being a number, and MachineLost
    when a machine is gone, after CheckpointDue where it went between two steps.
    """
    steps = total_steps(config, len(examples))
    plan, tenth = Validations.plan(held_back, examples, steps, config), first_tenth(steps)
    refold_every, (_, save_every) = steps_between_refolds(model), intervals(config, steps)
    compiled = compiles(config.compile)
    start = start or ({} if progress.step else dict(adapter_state(model)))
    groups_from = partial(
        batches.training_batches,
        examples,
        batch_size=config.batch_size,
        seed=seed,
        temperature=temperature,
        prompt=batches.PromptLoss.of(config),
        lay_out=world.share(layout(compiled)),
    )
    groups = groups_from(begin=progress.step * config.accumulate)

    course = schedule(config.schedule, steps, config.warmup)

    def rate(step: int) -> float:
        return 0.5**progress.halvings * course(step)

    model.train()
    how = {"accumulate": config.accumulate, "compiled": compiled, "hold": config.prompt_kl > 0}
    step = make_step(model, optimizer, world=world, **how)
    first = progress.step
    look = partial(validations, model, plan, config, progress, steps=steps, world=world)
    if held_back and math.isinf(progress.base_loss) and not progress.step:
        yield from look()
    while not progress.over(steps):
        begun = time.monotonic()
        optimizer.set_rate(rate(progress.step))
        mx.random.seed(step_seed(seed, progress.step, world.index))
        group = [next(groups) for _ in range(config.accumulate)]
        result = yield from saved_when_lost(progress, step, group)
        yield from count_step(progress, optimizer, group, result)
        if progress.step == first + 1 and (
            left := still((time.monotonic() - begun) * (steps - progress.step))
        ):
            yield events.Note(f"Step {progress.step} of {steps}{left}.")
        if progress.step % CACHE_EVERY == 0:
            mx.clear_cache()
        if progress.due(refold_every, steps) and world.any(refold(model) > 0):
            align(model, optimizer, world)
        take_average(progress, model, config.average, steps)
        seconds = time.monotonic() - begun
        progress.seconds += seconds
        progress.window.seconds += seconds
        limit = 0 if progress.over(steps) else config.max_minutes
        if limit and world.any(progress.out_of_time(limit)):
            progress.ended = TIME
        if progress.due(config.report_every, steps):
            yield progress.report(steps, optimizer.rates(rate(progress.step - 1)))
        early = progress.step == tenth and steps >= SHORT
        if progress.due(plan.every, steps) or early:
            yield from orthogonality(model, progress.step)
            raw = (yield from look()) if held_back else 0.0
            risen = early and raw > (1 + RISE) * progress.base_loss
            if risen and start and progress.halvings < MOST_HALVINGS:
                set_state(model, start, "the start")
                optimizer.begin_again()
                progress.begin_again()
                groups = groups_from(begin=0)
                yield from restarted(progress, tenth, raw)
            elif held_back and not progress.over(steps) and progress.out_of_patience(config.patience):
                progress.ended = PATIENCE
        if progress.step == tenth:
            start = {}
        if (yield from stopped(progress, steps, stop, world)):
            return
        if progress.step and progress.due(save_every, steps):
            yield events.CheckpointDue(progress.step)
            if not progress.over(steps):
                align(model, optimizer, world)
    yield from progress.verdict()
    yield events.Finished(progress.step, progress.seconds)


def validations(
    model: nn.Module,
    plan: Validations,
    config: TrainConfig,
    progress: Progress,
    *,
    steps: int,
    world: World,
) -> Generator[events.Event, None, float]:
    """Score the weights, and their average where there is one; the loss of the weights is returned."""
    raw = validate(model, plan, config, progress, steps=steps, world=world)
    yield raw
    if progress.averaged > 1:
        own = adapter_state(model)
        set_state(model, progress.average, "the average")
        yield validate(model, plan, config, progress, steps=steps, world=world, form=config.average)
        set_state(model, own, "the weights")
    return raw.loss


def take_average(progress: Progress, model: nn.Module, kind: str, steps: int) -> None:
    """Let the weights count in their average, at some thirty of the run's steps."""
    every = max(1, steps // AVERAGES)
    begun = progress.step > steps * {"ema": 0.1, "last": 0.75}.get(kind, math.inf)
    if begun and progress.due(every, steps):
        progress.averaged += 1
        weight = 1 / progress.averaged
        if kind == "ema":
            weight = max(weight, 1 - math.exp(-every / (EMA * steps)))
        state = adapter_state(model)
        progress.average = averaged(progress.average, state, weight) if progress.average else dict(state)


def restarted(progress: Progress, step: int, loss: float) -> Iterator[events.Event]:
    """What there is to say of a run that begins again, and the order to keep where it stands."""
    factor = 0.5**progress.halvings
    yield events.Note(
        f"Step {step}: the validation loss rose from {progress.base_loss:.3f} to {loss:.3f}, by more than "
        f"{100 * RISE:.0f} %; the run begins again with {factor:g} of its learning rates."
    )
    yield events.Restarted(step, factor)


def layout(compiled: bool) -> LayOut:
    """How records become a batch: in few widths where each new one is compiled, else as wide as the longest."""
    return partial(batches.make_batch, bucket=batches.length_bucket if compiled else batches.own_width)


def count_step(
    progress: Progress, optimizer: BranchOptimizer, group: list[batches.Batch], result: tuple[mx.array, ...]
) -> Iterator[events.Event]:
    """Count what a step gave. Raises MlxHybridError, its batches told, for a loss that is no number."""
    loss, count, norm, lam = (value.tolist() for value in result)
    progress.step += 1
    if not (math.isfinite(loss) and math.isfinite(norm)):
        yield events.NotFinite(progress.step, tuple(group))
        raise MlxHybridError(
            f"The loss stopped being a number at step {progress.step}, on records {named_records(group)}; "
            f"the best adapter so far is kept. Lower {optimizer.rate_settings()}, or look at those records."
        )
    progress.window.add(loss, count, norm, lam[: len(optimizer.shared())], group)


def orthogonality(model: nn.Module, step: int) -> Iterator[events.Event]:
    """How orthogonal the rotations are, where there are some; with a warning where rounding has won."""
    defect = rotation_defect(model)
    if defect is not None:
        yield events.Orthogonality(step, defect)
    if defect is not None and defect > MOST_DEFECT:
        yield events.Note(
            f"Step {step}: a rotation is {defect:.1g} from orthogonal (at most {MOST_DEFECT:g} is expected); "
            "lower the learning rate."
        )


def stopped(
    progress: Progress, steps: int, stop: Callable[[], bool], world: World
) -> Generator[events.Event, None, bool]:
    """Whether any machine was asked to stop, with steps still to go; the state is saved then."""
    asked = yield from saved_when_lost(progress, world.any, stop())
    if not asked or progress.over(steps):
        return False
    yield events.CheckpointDue(progress.step)
    yield events.Interrupted(progress.step)
    return True


def steps_between_refolds(model: nn.Module) -> int:
    """As often as the rotation that needs it most."""
    return min((rotation.refold_every for rotation in rotations(model)), default=10)


def step_seed(seed: int, step: int, machine: int = 0) -> int:
    """The seed of one step's dropout: a resumed run draws what an unbroken one would, and no two machines the same."""
    return ((seed << 32) + (machine << 48) + step) % (1 << 64)


def saved_when_lost(progress: Progress, ask: Callable, *given: Any) -> Generator[events.Event, None, Any]:
    """ask(*given) between two steps: should a machine be lost over it, the state is whole and is saved first."""
    try:
        return ask(*given)
    except MachineLost:
        yield events.CheckpointDue(progress.step)
        raise


def align(model: nn.Module, optimizer: BranchOptimizer, world: World) -> None:
    """Give every machine the first one's adapter and moments: chips of two kinds round and fold differently."""
    if world.size > 1:
        set_state(model, world.of_first(adapter_state(model)), "the first machine's adapter")
        optimizer.put_state(world.of_first(dict(tree_flatten(optimizer.state))))
