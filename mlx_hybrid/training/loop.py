"""The training loop: steps in, events out. It prints nothing and writes nothing."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_hybrid.adapters.attach import hybrid_layers, refold
from mlx_hybrid.adapters.frozen import on_cpu
from mlx_hybrid.config import TrainConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.training.batches import Batch, training_batches, validation_batches
from mlx_hybrid.training.events import CheckpointDue, Event, Finished, Interrupted, Trained, Validated
from mlx_hybrid.training.examples import Example
from mlx_hybrid.training.loss import make_loss
from mlx_hybrid.training.optimizer import BranchOptimizer, schedule

CACHE_EVERY = (
    50  # steps between returns of unused buffers: lengths vary, and the cache would keep one of each
)
RENORMALISE_EVERY = (
    10  # steps between renormalisations of reflections, whose lengths matter to rounding alone
)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    seconds: float = 0.0


@dataclass
class Window:
    """Sums since the last report."""

    loss: float = 0.0
    trained: int = 0
    tokens: int = 0
    norm: float = 0.0
    mixing: list[float] = field(default_factory=list)
    seconds: float = 0.0


def total_steps(config: TrainConfig, examples: int) -> int:
    """Optimiser steps: `steps`, or as many as `epochs` passes take, at least one."""
    if config.steps:
        return config.steps
    micro = math.ceil(examples / config.batch_size) * config.epochs
    return max(1, round(micro / config.accumulate))


def arrays(batch: Batch) -> tuple[mx.array, ...]:
    return mx.array(batch.tokens), mx.array(batch.positions), mx.array(batch.targets), mx.array(batch.weights)


def make_step(model: nn.Module, optimizer: BranchOptimizer, *, accumulate: int, compiled: bool) -> Callable:
    """step(batches) → (loss sum, trained tokens, gradient norm, λ), one optimiser step over `accumulate` batches.

    Losses and token counts are summed over the batches and divided once.
    """
    loss_and_gradient = nn.value_and_grad(model, make_loss(model))
    state = [model.state, optimizer.state, mx.random.state]
    wrap = partial(mx.compile, inputs=state, outputs=state) if compiled else lambda function: function

    @wrap
    def whole(tokens: mx.array, positions: mx.array, targets: mx.array, weights: mx.array) -> tuple:
        loss, gradients = loss_and_gradient(tokens, positions, targets, weights)
        count = mx.sum(weights)
        norm, lam = optimizer.step(model, tree_map(lambda g: g / count, gradients))
        return loss, count, norm, lam

    @wrap
    def part(tokens: mx.array, positions: mx.array, targets: mx.array, weights: mx.array) -> tuple:
        loss, gradients = loss_and_gradient(tokens, positions, targets, weights)
        return loss, mx.sum(weights), gradients

    @wrap
    def update(gradients: dict, count: mx.array) -> tuple:
        return optimizer.step(model, tree_map(lambda g: g / count, gradients))

    def step(batches: list[Batch]) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        if accumulate == 1:
            result = whole(*arrays(batches[0]))
        else:
            loss, count, gradients = part(*arrays(batches[0]))
            for batch in batches[1:]:
                more_loss, more_count, more = part(*arrays(batch))
                loss, count = loss + more_loss, count + more_count
                gradients = tree_map(mx.add, gradients, more)
                mx.eval(loss, count, gradients)
            result = (loss, count, *update(gradients, count))
        mx.eval(state, result)
        return result

    return step


def compiles(setting: str) -> bool:
    """Whether to compile the step: on the CPU every fused kernel is a run of a C++ compiler, which may not be there."""
    return setting == "on" or (setting == "auto" and not on_cpu())


def validation_loss(model: nn.Module, examples: list[Example], *, batch_size: int) -> float:
    """Mean −log p over the trained tokens of held-back examples, in nats."""
    loss_sum = make_loss(model)
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in validation_batches(examples, batch_size=batch_size):
        total += float(loss_sum(*arrays(batch)))
        count += batch.trained
    model.train(was_training)
    return total / max(1, count)


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
) -> Iterator[Event]:
    """Train from `progress.step` to the end, yielding one event for each thing worth knowing.

    `progress` is kept up to date, so that whoever handles CheckpointDue can save it. Raises MlxHybridError when the
    loss stops being a number.
    """
    steps = total_steps(config, len(examples))
    validate_every, save_every = intervals(config, steps)
    rate = schedule(config.schedule, steps, config.warmup)
    batches = training_batches(
        examples, batch_size=config.batch_size, seed=seed, begin=progress.step * config.accumulate
    )
    model.train()
    step = make_step(model, optimizer, accumulate=config.accumulate, compiled=compiles(config.compile))
    refold_every = steps_between_refolds(model)
    window = Window()
    while progress.step < steps:
        begun = time.monotonic()
        optimizer.set_rate(rate(progress.step))
        mx.random.seed(step_seed(seed, progress.step))
        group = [next(batches) for _ in range(config.accumulate)]
        loss, count, norm, lam = step(group)
        progress.step += 1
        check_finite(loss, norm, group, progress.step)
        window = add(window, loss, count, norm, lam, group)
        if progress.step % CACHE_EVERY == 0:
            mx.clear_cache()
        last = progress.step == steps
        if progress.step % refold_every == 0 or last:
            refold(model)
        seconds = time.monotonic() - begun
        progress.seconds += seconds
        window.seconds += seconds
        if progress.step % config.report_every == 0 or last:
            yield report(window, progress, steps, config.learning_rate * rate(progress.step - 1))
            window = Window()
        if held_back and (progress.step % validate_every == 0 or last):
            yield validate(model, held_back, config, progress)
        if stop() and not last:
            yield CheckpointDue(progress.step)
            yield Interrupted(progress.step)
            return
        if progress.step % save_every == 0 or last:
            yield CheckpointDue(progress.step)
    yield Finished(progress.step, progress.seconds)


def steps_between_refolds(model: nn.Module) -> int:
    """1 where there is a butterfly: steps all of one sign take ‖Q‖₂ beyond the series' reach within ten."""
    butterfly = any(layer.plan.orthogonal == "butterfly" for layer in hybrid_layers(model).values())
    return 1 if butterfly else RENORMALISE_EVERY


def step_seed(seed: int, step: int) -> int:
    """The seed of one step's dropout, so that a resumed run draws what an unbroken one would."""
    return (seed << 32) + step


def validate(
    model: nn.Module, held_back: list[Example], config: TrainConfig, progress: Progress
) -> Validated:
    begun = time.monotonic()
    loss = validation_loss(model, held_back, batch_size=config.batch_size)
    best = loss < progress.best_loss
    if best:
        progress.best_loss, progress.best_step = loss, progress.step
    return Validated(progress.step, loss, best, time.monotonic() - begun)


def check_finite(loss: mx.array, norm: mx.array, group: list[Batch], step: int) -> None:
    if math.isfinite(loss.item()) and math.isfinite(norm.item()):
        return
    records = ", ".join([where for batch in group for where in batch.where][:8])
    raise MlxHybridError(
        f"The loss stopped being a number at step {step}, on records {records}; the best adapter so far is kept. "
        "Lower train.learning_rate, or look at those records."
    )


def add(
    window: Window, loss: mx.array, count: mx.array, norm: mx.array, lam: mx.array, group: list[Batch]
) -> Window:
    window.loss += loss.item()
    window.trained += int(count.item())
    window.tokens += sum(int(batch.tokens.size) for batch in group)
    window.norm = norm.item()
    window.mixing = lam.tolist()
    return window


def report(window: Window, progress: Progress, steps: int, rate: float) -> Trained:
    return Trained(
        step=progress.step,
        steps=steps,
        loss=window.loss / max(1, window.trained),
        learning_rate=rate,
        gradient_norm=window.norm,
        tokens=window.tokens,
        trained_tokens=window.trained,
        tokens_per_second=window.tokens / max(1e-9, window.seconds),
        peak_memory_gb=mx.get_peak_memory() / 1e9,
        mixing=tuple(window.mixing),
        seconds=progress.seconds,
    )
