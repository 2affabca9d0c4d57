"""The training loop: steps in, events out. It prints nothing and writes nothing."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.attach import refold, rotations
from mlx_hybrid.adapters.frozen import on_cpu
from mlx_hybrid.adapters.store import adapter_state, set_state
from mlx_hybrid.adapters.strength import averaged
from mlx_hybrid.config import TrainConfig
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.records.examples import Example
from mlx_hybrid.training import events
from mlx_hybrid.training.batches import Batch, Hold, make_batch, training_batches
from mlx_hybrid.training.checkpoint import PATIENCE, TIME, Progress
from mlx_hybrid.training.distributed import ALONE, MachineLost, World
from mlx_hybrid.training.optimizer import BranchOptimizer, make_step, schedule
from mlx_hybrid.training.validation import intervals, plan, validate

AVERAGES = 30  # iterates that an average takes of a run, about
AVERAGED_FROM = {"ema": 0.1, "last": 0.75}  # share of a run's steps before an average begins
EMA = 0.1  # memory of the exponential average, in shares of a run's steps
CACHE_EVERY = 50  # steps between returns of unused buffers, of which the cache would keep one a length
RISE = 0.1  # of the base's validation loss, after which a run begins again at half its rates
MOST_HALVINGS = 4
SHORT = 10  # steps of a run that has no tenth to speak of
MOST_DEFECT = 1e-5  # largest |R Rᵀ − I| that rounding should leave of a rotation


def total_steps(config: TrainConfig, examples: int) -> int:
    """Optimiser steps: `steps`, or as many as `epochs` passes take, at least one."""
    micro = math.ceil(examples / config.batch_size) * config.epochs
    return config.steps or max(1, round(micro / config.accumulate))


def step_seed(seed: int, step: int, machine: int = 0) -> int:
    """The seed of one step's dropout: a resumed run draws what an unbroken one would, and no two machines the same."""
    return ((seed << 32) + (machine << 48) + step) % (1 << 64)


def align(model: nn.Module, optimizer: BranchOptimizer, world: World) -> None:
    """Give every machine the first one's adapter and moments: chips of two kinds round and fold differently."""
    if world.size > 1:
        set_state(model, world.of_first(adapter_state(model)), "the first machine's adapter")
        optimizer.put_state(world.of_first(dict(tree_flatten(optimizer.state))))


@dataclass
class Training:
    """Training from `progress.step` to the end: iterated, it yields one event for each thing worth knowing.

    `progress` is kept up to date, so that whoever handles CheckpointDue can save it; a run that a guard ended stays
    ended. `temperature` shifts the languages' shares (batches.py). Each machine of a `world` computes its part of every
    batch, and all yield the same events. Prompts are held `to_base`, or by their loss. A run whose validation loss has
    risen after its first tenth begins again at half its rates. Raises MlxHybridError when the loss stops being a
    number, and MachineLost when a machine is gone, after CheckpointDue where it went between two steps.
    """

    model: nn.Module
    optimizer: BranchOptimizer
    examples: list[Example]
    held_back: list[Example]
    config: TrainConfig
    seed: int
    progress: Progress
    stop: Callable[[], bool] = lambda: False
    temperature: float = 1.0
    world: World = ALONE
    to_base: bool = False

    def __post_init__(self) -> None:
        config = self.config
        self.steps = total_steps(config, len(self.examples))
        self.sample, self.every = plan(self.held_back, self.examples, self.steps, config)
        self.course = schedule(config.schedule, self.steps, config.warmup)
        self.tenth = math.ceil(self.steps / 10)
        # as often as the rotation that needs it most
        self.refold_every = min((rotation.refold_every for rotation in rotations(self.model)), default=10)
        # on the CPU every fused kernel is a run of a C++ compiler, which may not be there
        compiled = {"on": True, "off": False, "auto": not on_cpu()}[config.compile]
        how = {"batch_size": config.batch_size, "seed": self.seed, "temperature": self.temperature}
        how |= {"hold": Hold(config.prompt_weight, config.prompt_share, self.to_base)}
        how |= {"lay_out": self.world.share(partial(make_batch, exact=not compiled))}
        self.batches_from = partial(training_batches, self.examples, **how)
        self.batches = self.batches_from(begin=self.progress.step * config.accumulate)
        self.step = make_step(
            self.model, self.optimizer, compiled=compiled, world=self.world, to_base=self.to_base
        )

    def rate(self, step: int) -> float:
        return 0.5**self.progress.halvings * self.course(step)

    def __iter__(self) -> Iterator[events.Event]:
        config, progress, steps = self.config, self.progress, self.steps
        _, save_every = intervals(config, steps)
        self.model.train()
        if self.held_back and math.isinf(progress.base_loss) and not progress.step:
            progress.start = dict(adapter_state(self.model)) if steps >= SHORT else {}
            yield from self.validations()
        while not progress.over(steps):
            yield from self.one_step()
            if progress.due(config.report_every, steps):
                yield progress.report(steps, self.optimizer.rates(self.rate(progress.step - 1)))
            early = progress.step == self.tenth and bool(progress.start)
            if early or progress.due(self.every, steps):
                yield from self.judged(early)
            if progress.step == self.tenth:
                progress.start = {}
            if (yield from self.stopped()):
                return
            if progress.step and progress.due(save_every, steps):
                yield events.CheckpointDue(progress.step)
                if not progress.over(steps):
                    align(self.model, self.optimizer, self.world)
        yield from progress.verdict()
        yield events.Finished(progress.step, progress.seconds)

    def one_step(self) -> Iterator[events.Event]:
        """A step, with the folds, the average and the time that come of it."""
        model, optimizer, progress, world = self.model, self.optimizer, self.progress, self.world
        begun = time.monotonic()
        optimizer.set_rate(self.rate(progress.step))
        mx.random.seed(step_seed(self.seed, progress.step, world.index))
        group = list(islice(self.batches, self.config.accumulate))
        self.count(group, (yield from self.saved_when_lost(self.step, group)))
        if progress.step % CACHE_EVERY == 0:
            mx.clear_cache()
        if progress.due(self.refold_every, self.steps) and world.any(refold(model) > 0):
            align(model, optimizer, world)
        self.take_average()
        seconds = time.monotonic() - begun
        progress.seconds += seconds
        progress.window.seconds += seconds
        limit = 0 if progress.over(self.steps) else 60 * self.config.max_minutes
        if limit and world.any(progress.seconds >= limit):
            progress.ended = TIME

    def count(self, group: list[Batch], result: tuple[mx.array, ...]) -> None:
        """Count what a step gave. Raises MlxHybridError, its records told, for a loss that is no number."""
        progress, window = self.progress, self.progress.window
        loss, weight, norm, lam = (value.tolist() for value in result)
        progress.step += 1
        if not (math.isfinite(loss) and math.isfinite(norm)):
            records = ", ".join([where for batch in group for where in batch.where][:8])
            rates = " and ".join(f"train.{name}" for name in self.optimizer.rates())
            raise MlxHybridError(
                f"The loss stopped being a number at step {progress.step}, on records {records}; the best adapter so "
                f"far is kept. Lower {rates}, or look at those records."
            )
        window.loss += loss
        window.weight += weight
        window.trained += sum(batch.answers for batch in group)
        window.tokens += sum(int(batch.tokens.size) for batch in group)
        window.norm, window.mixing = norm, lam[: len(self.optimizer.shared())]

    def take_average(self) -> None:
        """Let the weights count in their average, at some thirty of the run's steps."""
        progress, kind, every = self.progress, self.config.average, max(1, self.steps // AVERAGES)
        begun = progress.step > self.steps * AVERAGED_FROM.get(kind, math.inf)
        if begun and progress.due(every, self.steps):
            progress.averaged += 1
            weight = 1 / progress.averaged
            if kind == "ema":
                weight = max(weight, 1 - math.exp(-every / (EMA * self.steps)))
            state = adapter_state(self.model)
            progress.average = averaged(progress.average, state, weight) if progress.average else dict(state)

    def judged(self, early: bool) -> Iterator[events.Event]:
        """Look at the rotations and the validation loss, which may have risen `early` or been low for the last time."""
        progress = self.progress
        if turned := rotations(self.model):
            defect = max(rotation.defect() for rotation in turned)
            yield events.Orthogonality(progress.step, defect)
            if defect > MOST_DEFECT:
                yield events.Note(
                    f"Step {progress.step}: a rotation is {defect:.1g} from orthogonal (at most {MOST_DEFECT:g} is "
                    "expected); lower the learning rate."
                )
        if self.held_back:
            loss = yield from self.validations()
            risen = early and loss > (1 + RISE) * progress.base_loss
            if risen and progress.halvings < MOST_HALVINGS:
                yield from self.begin_again(loss)
            elif not progress.over(self.steps) and 0 < self.config.patience <= progress.stale:
                progress.ended = PATIENCE

    def begin_again(self, loss: float) -> Iterator[events.Event]:
        progress, step = self.progress, self.progress.step
        set_state(self.model, progress.start, "the start")
        self.optimizer.begin_again()
        progress.begin_again()
        self.batches = self.batches_from(begin=0)
        yield events.Note(
            f"Step {step}: the validation loss rose from {progress.base_loss:.3f} to {loss:.3f}, by more than "
            f"{100 * RISE:.0f} %; the run begins again with {0.5**progress.halvings:g} of its learning rates."
        )
        yield events.CheckpointDue(0)

    def validations(self) -> Generator[events.Event, None, float]:
        """Score the weights, whose loss is returned, and their average where there is one."""
        score = partial(validate, self.model, self.sample, self.config.batch_size, self.progress, self.world)
        raw = score()
        yield raw
        if self.progress.averaged > 1:
            own = adapter_state(self.model)
            set_state(self.model, self.progress.average, "the average")
            yield score(form=self.config.average)
            set_state(self.model, own, "the weights")
        return raw.loss

    def stopped(self) -> Generator[events.Event, None, bool]:
        """Whether any machine was asked to stop, with steps still to go; the state is saved then."""
        asked = yield from self.saved_when_lost(self.world.any, self.stop())
        if not asked or self.progress.over(self.steps):
            return False
        yield events.CheckpointDue(self.progress.step)
        yield events.Interrupted(self.progress.step)
        return True

    def saved_when_lost(self, ask: Callable, *given: Any) -> Generator[events.Event, None, Any]:
        """ask(*given) between two steps: should a machine be lost over it, the state is whole and is saved first."""
        try:
            return ask(*given)
        except MachineLost:
            yield events.CheckpointDue(self.progress.step)
            raise
