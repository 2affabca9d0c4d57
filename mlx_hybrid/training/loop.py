"""The training loop: steps in, events out. It prints nothing and writes nothing."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_hybrid.adapters.attach import hybrid_layers, refold
from mlx_hybrid.adapters.frozen import on_cpu
from mlx_hybrid.adapters.gradient_start import check_started
from mlx_hybrid.adapters.store import adapter_state, set_state
from mlx_hybrid.config import TrainConfig
from mlx_hybrid.training.batches import POOL, Batch, make_batch, training_batches, validation_batches
from mlx_hybrid.training.events import CheckpointDue, Event, Finished, Interrupted, Note, NotFinite, Validated
from mlx_hybrid.training.examples import Example
from mlx_hybrid.training.guards import (
    PATIENCE,
    TIME,
    ending,
    is_finite,
    no_number,
    out_of_patience,
    out_of_time,
    spike,
)
from mlx_hybrid.training.loss import make_loss, make_target_losses
from mlx_hybrid.training.optimizer import BranchOptimizer, schedule
from mlx_hybrid.training.packing import make_packed_batch, packs_exactly
from mlx_hybrid.training.progress import Progress, Window, add, report
from mlx_hybrid.training.ranks import ONE, RankLost, Ranks

WEIGHTS = 3  # their place in what `arrays` gives
CACHE_EVERY = (
    50  # steps between returns of unused buffers: lengths vary, and the cache would keep one of each
)
RENORMALISE_EVERY = (
    10  # steps between renormalisations of reflections, whose lengths matter to rounding alone
)


def total_steps(config: TrainConfig, examples: int) -> int:
    """Optimiser steps: `steps`, or as many as `epochs` passes take, at least one."""
    if config.steps:
        return config.steps
    micro = math.ceil(examples / config.batch_size) * config.epochs
    return max(1, round(micro / config.accumulate))


def arrays(batch: Batch) -> tuple[mx.array, ...]:
    """(tokens, positions, targets, weights), and the segments of packed rows, of what this rank is to compute."""
    batch = batch.part or batch
    parts = (batch.tokens, batch.positions, batch.targets, batch.weights, batch.segments)
    return tuple(mx.array(part) for part in parts if part is not None)


def make_step(
    model: nn.Module, optimizer: BranchOptimizer, *, accumulate: int, compiled: bool, ranks: Ranks = ONE
) -> Callable:
    """step(batches) → (loss sum, trained tokens, gradient norm, λ), one optimiser step over `accumulate` batches.

    Losses and token counts are summed over the batches and the ranks, and divided once. Raises MlxHybridError for an
    adapter that has yet to start from the gradient.
    """
    check_started(model)
    loss_and_gradient = nn.value_and_grad(model, make_loss(model))
    state = [model.state, optimizer.state, mx.random.state]
    wrap = partial(mx.compile, inputs=state, outputs=state) if compiled else lambda function: function

    @wrap
    def whole(*batch: mx.array) -> tuple:
        loss, gradients = loss_and_gradient(*batch)
        count = mx.sum(batch[WEIGHTS])
        norm, lam = optimizer.step(model, gradients, count)
        return loss, count, norm, lam

    @wrap
    def part(*batch: mx.array) -> tuple:
        loss, gradients = loss_and_gradient(*batch)
        return loss, mx.sum(batch[WEIGHTS]), gradients

    @wrap
    def update(gradients: dict, count: mx.array) -> tuple:
        return optimizer.step(model, gradients, count)

    def step(batches: list[Batch]) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        if accumulate == 1 and ranks.size == 1:
            result = whole(*arrays(batches[0]))
        else:
            loss, count, gradients = part(*arrays(batches[0]))
            for batch in batches[1:]:
                more_loss, more_count, more = part(*arrays(batch))
                loss, count = loss + more_loss, count + more_count
                gradients = tree_map(mx.add, gradients, more)
                mx.eval(loss, count, gradients)
            loss, count, gradients = ranks.total((loss, count, gradients))
            result = (loss, count, *update(gradients, count))
        mx.eval(state, result)
        return result

    return step


def compiles(setting: str) -> bool:
    """Whether to compile the step: on the CPU every fused kernel is a run of a C++ compiler, which may not be there."""
    return setting == "on" or (setting == "auto" and not on_cpu())


def validation_loss(
    model: nn.Module, examples: list[Example], *, batch_size: int, ranks: Ranks = ONE
) -> tuple[float, dict[str, float]]:
    """Mean −log p over the trained tokens of held-back examples, in nats: of all, and of each language.

    Several ranks take the batches in turn, and all get the same means.
    """
    target_losses = make_target_losses(model)
    was_training = model.training
    model.eval()
    sums: dict[str, list] = {}
    batches = validation_batches(examples, batch_size=batch_size // ranks.size)
    for batch in islice(batches, ranks.rank, None, ranks.size):
        losses = np.array(target_losses(*arrays(batch)[:3]))[: batch.trained].astype(np.float64)
        for index, language in enumerate(batch.languages):
            own = losses[batch.owners == index]
            entry = sums.setdefault(language, [0.0, 0])
            entry[0] += float(own.sum())
            entry[1] += len(own)
    model.train(was_training)
    sums = summed(ranks.gather(sums))
    total = sum(loss for loss, _ in sums.values()) / max(1, sum(count for _, count in sums.values()))
    return total, {name: loss / max(1, count) for name, (loss, count) in sorted(sums.items())}


def summed(parts: list[dict[str, list]]) -> dict[str, list]:
    """[loss, tokens] of each language, added up in the order of the ranks."""
    sums: dict[str, list] = {}
    for part in parts:
        for language, (loss, count) in part.items():
            before = sums.get(language, [0.0, 0])
            sums[language] = [before[0] + loss, before[1] + count]
    return sums


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
    ranks: Ranks = ONE,
) -> Iterator[Event]:
    """Train from `progress.step` to the end, yielding one event for each thing worth knowing.

    `progress` is kept up to date, so that whoever handles CheckpointDue can save it; a run that a guard ended stays
    ended. `temperature` shifts the languages' shares (batches.py). Of several `ranks` each computes its part of every
    batch, and all yield the same events. Raises MlxHybridError when the loss stops being a number, and RankLost when
    a rank is gone, after CheckpointDue where it went between two steps.
    """
    steps = total_steps(config, len(examples))
    validate_every, save_every = intervals(config, steps)
    rate = schedule(config.schedule, steps, config.warmup)
    lay_out, pool = make_batch, POOL
    if config.packing == "auto":
        if not ranks.any(not packs_exactly(model)):
            lay_out, pool = make_packed_batch, 1
        else:
            yield Note(
                "Records are not packed: this model would mix them; similar lengths are batched instead."
            )
    batches = training_batches(
        examples, batch_size=config.batch_size, seed=seed, begin=progress.step * config.accumulate,
        temperature=temperature, pool=pool, lay_out=ranks.split(lay_out),
    )  # fmt: skip
    model.train()
    step = make_step(
        model, optimizer, accumulate=config.accumulate, compiled=compiles(config.compile), ranks=ranks
    )
    refold_every = steps_between_refolds(model)
    while progress.step < steps and not progress.ended:
        begun = time.monotonic()
        optimizer.set_rate(rate(progress.step))
        mx.random.seed(step_seed(seed, progress.step, ranks.rank))
        group = [next(batches) for _ in range(config.accumulate)]
        loss, count, norm, lam = yield from saved_when_lost(progress, step, group)
        loss, count, norm = loss.item(), int(count.item()), norm.item()
        progress.step += 1
        if not is_finite(loss, norm):
            yield NotFinite(progress.step, tuple(group))
            raise no_number(group, progress.step)
        add(progress.window, (loss, count), norm, lam.tolist(), group)
        warning = spike(progress.level, loss / max(1, count), group, progress.step)
        if warning:
            yield warning
        if progress.step % CACHE_EVERY == 0:
            mx.clear_cache()
        last = progress.step == steps
        if (progress.step % refold_every == 0 or last) and ranks.any(refold(model) > 0):
            align(model, optimizer, ranks)
        seconds = time.monotonic() - begun
        progress.seconds += seconds
        progress.window.seconds += seconds
        if not last and config.max_minutes and ranks.any(out_of_time(progress, config.max_minutes)):
            progress.ended = TIME
        if progress.step % config.report_every == 0 or last or progress.ended:
            yield report(progress, steps, config.learning_rate * rate(progress.step - 1))
            progress.window = Window()
        if held_back and (progress.step % validate_every == 0 or last or progress.ended):
            yield validate(model, held_back, config, progress, ranks)
            if not last and not progress.ended and out_of_patience(progress, config.patience):
                progress.ended = PATIENCE
        asked = yield from saved_when_lost(progress, ranks.any, stop())
        if asked and not last and not progress.ended:
            yield CheckpointDue(progress.step)
            yield Interrupted(progress.step)
            return
        if progress.step % save_every == 0 or last or progress.ended:
            yield CheckpointDue(progress.step)
            if not last and not progress.ended:
                align(model, optimizer, ranks)
    if progress.ended:
        yield ending(progress)
    yield Finished(progress.step, progress.seconds)


def steps_between_refolds(model: nn.Module) -> int:
    """1 where there is a butterfly: steps all of one sign take ‖Q‖₂ beyond the series' reach within ten."""
    butterfly = any(layer.plan.orthogonal == "butterfly" for layer in hybrid_layers(model).values())
    return 1 if butterfly else RENORMALISE_EVERY


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of one step's dropout: a resumed run draws what an unbroken one would, and no two ranks the same."""
    return ((seed << 32) + (rank << 48) + step) % (1 << 64)


def saved_when_lost(progress: Progress, ask: Callable, *given: Any) -> Generator[CheckpointDue, None, Any]:
    """ask(*given) between two steps: should a rank be lost over it, the state is whole and is saved first."""
    try:
        return ask(*given)
    except RankLost:
        yield CheckpointDue(progress.step)
        raise


def align(model: nn.Module, optimizer: BranchOptimizer, ranks: Ranks) -> None:
    """Give every rank the first one's adapter and moments: chips of two kinds round differently, and may fold at
    different steps."""
    if ranks.size == 1:
        return
    adapter, state = adapter_state(model), dict(tree_flatten(optimizer.state))
    names = [sorted(adapter), sorted(state)]
    arrays = iter(ranks.of_first([*(adapter[n] for n in names[0]), *(state[n] for n in names[1])]))
    if not ranks.leads:
        set_state(model, dict(zip(names[0], arrays)), "the first rank's adapter")
        optimizer.put_state(dict(zip(names[1], arrays)))


def validate(
    model: nn.Module, held_back: list[Example], config: TrainConfig, progress: Progress, ranks: Ranks = ONE
) -> Validated:
    begun = time.monotonic()
    loss, by_language = validation_loss(model, held_back, batch_size=config.batch_size, ranks=ranks)
    best = loss < progress.best_loss
    progress.stale = 0 if best else progress.stale + 1
    if best:
        progress.best_loss, progress.best_step = loss, progress.step
    return Validated(progress.step, loss, best, time.monotonic() - begun, by_language)
