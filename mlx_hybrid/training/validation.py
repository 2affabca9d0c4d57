"""The loss on held-back records: which of them are scored and when, and whether it is the lowest yet.

Scoring is a budget: `train.validate_share` of the training time, by tokens, so that it is the same on every machine.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_hybrid.config import TrainConfig
from mlx_hybrid.records.template import Example
from mlx_hybrid.training.batches import language_quotas, validation_batches
from mlx_hybrid.training.distributed import ALONE, World
from mlx_hybrid.training.events import RAW, Validated
from mlx_hybrid.training.loss import make_target_losses
from mlx_hybrid.training.progress import Progress
from mlx_hybrid.training.step import arrays

A_STEP = 3.0  # what a token's training takes, in forward passes: one forward, two backward
FEWEST = 32  # records of a sample; where the budget is for fewer, validations are rarer
AT_LEAST = 3  # validations of a run: before it, half way, and at its end


def intervals(config: TrainConfig, steps: int) -> tuple[int, int]:
    """(steps between validations, before the budget has its say; between checkpoints)."""
    validate = config.validate_every or max(1, math.ceil(steps / 10))
    return validate, config.save_every or validate


@dataclass(frozen=True)
class Validations:
    """What a run validates with: a `sample` every so many steps, and `whole`, all of it, at both ends where it fits."""

    sample: list[Example]
    every: int
    whole: list[Example]

    @classmethod
    def plan(
        cls, held_back: list[Example], train: list[Example], steps: int, config: TrainConfig
    ) -> "Validations":
        """As many records and validations as the share of the run's tokens pays for.

        All records where they fit; else a sample of at least 32, with fewer validations where that many cost too much
        and `train.validate_every` does not ask for them.
        """
        every, _ = intervals(config, steps)
        if not held_back or not config.validate_share:
            return cls(held_back, every, held_back)
        records = steps * config.accumulate * config.batch_size
        budget = config.validate_share * A_STEP * records * mean_length(train) / mean_length(held_back)
        forms = 1 if config.average == "none" else 2
        times, size = 1 + forms * math.ceil(steps / every), len(held_back)
        if times * size <= budget:
            return cls(held_back, every, held_back)
        both_ends = size * (1 + forms)
        whole = held_back if 2 * both_ends <= budget else []
        count = int((budget - both_ends) / (times - 1 - forms)) if whole else int(budget / times)
        if count < FEWEST:
            count = min(FEWEST, size)
            if not config.validate_every:
                times = max(AT_LEAST, int(budget / (count * forms)))
                every = math.ceil(steps / (times - 1))
        sample = stratified(held_back, min(count, size))
        return cls(sample, every, whole or sample)


def mean_length(examples: list[Example]) -> float:
    return sum(len(e.tokens) for e in examples) / len(examples)


def stratified(examples: list[Example], count: int) -> list[Example]:
    """`count` of the examples, of each language and label in proportion, drawn alike every time and in their order."""
    strata = [f"{e.language}\n{e.label}" for e in examples]
    quotas = language_quotas(dict(Counter(strata)), 1.0, count)
    picked = []
    for place in np.random.default_rng(0).permutation(len(examples)):
        if quotas[strata[place]] > 0:
            quotas[strata[place]] -= 1
            picked.append(int(place))
    return [examples[place] for place in sorted(picked)]


def validate(
    model: nn.Module,
    plan: Validations,
    config: TrainConfig,
    progress: Progress,
    *,
    steps: int,
    world: World = ALONE,
    form: str = RAW,
) -> Validated:
    """Score the sample and note the result: the base's before the first step, and the best one since."""
    begun = time.monotonic()
    examples = plan.sample if progress.step and not progress.over(steps) else plan.whole
    sums = summed_losses(model, examples, batch_size=config.batch_size, world=world)
    chosen = {id(example) for example in plan.sample}
    own = np.array([id(example) in chosen for example in examples])
    names = np.array([example.language for example in examples])
    by_language = {str(name): mean_loss(sums[own & (names == name)]) for name in np.unique(names[own])}
    loss, seconds = mean_loss(sums[own]), time.monotonic() - begun
    whole = None if own.all() else mean_loss(sums)
    return Validated(progress.step, loss, progress.note(loss, form), seconds, by_language, form, whole)


def mean_loss(sums: np.ndarray) -> float:
    """Mean −log p over the tokens of some records, in nats, from what `summed_losses` gives."""
    loss, count = sums.sum(axis=0)
    return float(loss / max(1.0, count))


def summed_losses(
    model: nn.Module, examples: list[Example], *, batch_size: int, world: World = ALONE
) -> np.ndarray:
    """(examples, 2): Σ −log p over the trained tokens of each, and how many; several machines share the batches."""
    target_losses = make_target_losses(model)
    was_training = model.training
    model.eval()
    sums = np.zeros((len(examples), 2))
    batches = validation_batches(examples, batch_size=batch_size // world.size)
    for places, batch in islice(batches, world.index, None, world.size):
        losses = np.array(target_losses(*arrays(batch)[:3]))[: batch.trained].astype(np.float64)
        np.add.at(sums, places[batch.owners], np.stack([losses, np.ones_like(losses)], axis=1))
    model.train(was_training)
    return (
        np.array(world.sum(mx.array(sums.astype(np.float32)))).astype(np.float64) if world.size > 1 else sums
    )
