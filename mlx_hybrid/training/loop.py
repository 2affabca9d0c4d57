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
from mlx_hybrid.config import TrainConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.records.template import Example
from mlx_hybrid.training import batches, events
from mlx_hybrid.training.distributed import ALONE, LayOut, MachineLost, World
from mlx_hybrid.training.optimizer import BranchOptimizer, schedule
from mlx_hybrid.training.progress import PATIENCE, TIME, Progress, named_records
from mlx_hybrid.training.step import compiles, make_step
from mlx_hybrid.training.validation import validate

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


def intervals(config: TrainConfig, steps: int) -> tuple[int, int]:
    """(steps between validations, between checkpoints)."""
    validate = config.validate_every or max(1, math.ceil(steps / 10))
    return validate, config.save_every or validate


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
) -> Iterator[events.Event]:
    """Train from `progress.step` to the end, yielding one event for each thing worth knowing.

    `progress` is kept up to date, so that whoever handles CheckpointDue can save it; a run that a guard ended stays
    ended. `temperature` shifts the languages' shares (batches.py). Each machine of a `world` computes its part of every
    batch, and all yield the same events. Raises MlxHybridError when the loss stops being a number, and MachineLost when
    a machine is gone, after CheckpointDue where it went between two steps.
    """
    steps = total_steps(config, len(examples))
    validate_every, save_every = intervals(config, steps)
    refold_every = steps_between_refolds(model)
    rate = schedule(config.schedule, steps, config.warmup)
    compiled = compiles(config.compile)
    groups = batches.training_batches(
        examples,
        batch_size=config.batch_size,
        seed=seed,
        begin=progress.step * config.accumulate,
        temperature=temperature,
        prompt=batches.PromptLoss(config.prompt_weight, config.prompt_share),
        lay_out=world.share(layout(compiled)),
    )
    model.train()
    step = make_step(model, optimizer, accumulate=config.accumulate, compiled=compiled, world=world)
    if held_back and math.isinf(progress.base_loss) and not progress.step:
        yield validate(model, held_back, config, progress, world)
    while not progress.over(steps):
        begun = time.monotonic()
        optimizer.set_rate(rate(progress.step))
        mx.random.seed(step_seed(seed, progress.step, world.index))
        group = [next(groups) for _ in range(config.accumulate)]
        result = yield from saved_when_lost(progress, step, group)
        yield from count_step(progress, optimizer, group, result)
        if progress.step % CACHE_EVERY == 0:
            mx.clear_cache()
        if progress.due(refold_every, steps) and world.any(refold(model) > 0):
            align(model, optimizer, world)
        seconds = time.monotonic() - begun
        progress.seconds += seconds
        progress.window.seconds += seconds
        limit = 0 if progress.over(steps) else config.max_minutes
        if limit and world.any(progress.out_of_time(limit)):
            progress.ended = TIME
        if progress.due(config.report_every, steps):
            yield progress.report(steps, optimizer.rates(rate(progress.step - 1)))
        if progress.due(validate_every, steps):
            yield from orthogonality(model, progress.step)
            if held_back:
                yield validate(model, held_back, config, progress, world)
            if held_back and not progress.over(steps) and progress.out_of_patience(config.patience):
                progress.ended = PATIENCE
        if (yield from stopped(progress, steps, stop, world)):
            return
        if progress.due(save_every, steps):
            yield events.CheckpointDue(progress.step)
            if not progress.over(steps):
                align(model, optimizer, world)
    yield from progress.verdict()
    yield events.Finished(progress.step, progress.seconds)


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
