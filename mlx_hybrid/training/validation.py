"""The loss on held-back records, within a budget of the training time, by tokens: the same on every machine."""

import math
from collections import Counter
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_hybrid.config import TrainConfig
from mlx_hybrid.models.head import evaluating
from mlx_hybrid.records.examples import Example
from mlx_hybrid.training.batches import language_quotas, validation_batches
from mlx_hybrid.training.checkpoint import Progress
from mlx_hybrid.training.distributed import ALONE, World
from mlx_hybrid.training.events import RAW, Validated
from mlx_hybrid.training.loss import arrays, make_target_losses

A_STEP = 3.0  # what a token's training takes, in forward passes: one forward, two backward
FEWEST = 32  # records of a sample; where the budget is for fewer, validations are rarer
AT_LEAST = 3  # validations of a run: before it, half way, and at its end


def intervals(config: TrainConfig, steps: int) -> tuple[int, int]:
    """(steps between validations, before the budget has its say; between checkpoints)."""
    validate = config.validate_every or max(1, math.ceil(steps / 10))
    return validate, config.save_every or validate


def plan(
    held_back: list[Example], train: list[Example], steps: int, config: TrainConfig
) -> tuple[list[Example], int]:
    """What is scored, and every how many steps, as the share of the run's tokens pays for: all records where they fit,
    else a sample of at least 32, less often where that costs too much and `train.validate_every` does not ask."""
    (every, _), size = intervals(config, steps), len(held_back)
    if not held_back or not config.validate_share:
        return held_back, every
    records = steps * config.accumulate * config.batch_size
    length, own_length = (np.mean([len(e.tokens) for e in some]) for some in (train, held_back))
    budget = config.validate_share * A_STEP * records * length / own_length
    forms = 1 if config.average == "none" else 2
    times = 1 + forms * math.ceil(steps / every)
    if times * size <= budget:
        return held_back, every
    count = int(budget / times)
    if count < FEWEST:
        count = min(FEWEST, size)
        if not config.validate_every:
            times = max(AT_LEAST, int(budget / (count * forms)))
            every = math.ceil(steps / (times - 1))
    return stratified(held_back, count), every


def stratified(examples: list[Example], count: int) -> list[Example]:
    """`count` of the examples, of each language and label in proportion, drawn alike every time and in their order."""
    strata = [f"{e.language}\n{e.label}" for e in examples]
    quotas = language_quotas(dict(Counter(strata)), 1.0, count)
    picked = []
    for place in np.random.default_rng(0).permutation(len(examples)):
        quotas[strata[place]] -= 1
        if quotas[strata[place]] >= 0:
            picked.append(int(place))
    return [examples[place] for place in sorted(picked)]


def validate(
    model: nn.Module,
    sample: list[Example],
    batch_size: int,
    progress: Progress,
    world: World = ALONE,
    form: str = RAW,
) -> Validated:
    """Score the sample and note the result: the base's before the first step, and the best one since."""
    sums = summed_losses(model, sample, batch_size=batch_size, world=world)
    names = np.array([example.language for example in sample])
    by_language = {str(name): mean_loss(sums[names == name]) for name in np.unique(names)}
    loss = mean_loss(sums)
    return Validated(progress.step, loss, progress.note(loss, form), by_language, form)


def mean_loss(sums: np.ndarray) -> float:
    """Mean −log p over the tokens of some records, in nats, from what `summed_losses` gives."""
    loss, count = sums.sum(axis=0)
    return float(loss / max(1.0, count))


def summed_losses(
    model: nn.Module, examples: list[Example], *, batch_size: int, world: World = ALONE
) -> np.ndarray:
    """(examples, 2): Σ −log p over the trained tokens of each, and how many; several machines share the batches."""
    target_losses, sums = make_target_losses(model), np.zeros((len(examples), 2))
    batches = validation_batches(examples, batch_size=batch_size // world.size)
    with evaluating(model):
        for places, batch in islice(batches, world.index, None, world.size):
            losses = np.array(target_losses(*arrays(batch)[:3]))[: len(batch.owners)].astype(np.float64)
            np.add.at(sums, places[batch.owners], np.stack([losses, np.ones_like(losses)], axis=1))
    if world.size > 1:
        sums = np.array(world.sum(mx.array(sums.astype(np.float32)))).astype(np.float64)
    return sums


def least_strength(sums: dict[float, np.ndarray]) -> tuple[float, str]:
    """The least strength whose loss is within one standard error of the lowest, and why, as a sentence."""
    losses = {t: mean_loss(own) for t, own in sums.items()}
    best = min(losses, key=losses.get)
    error = standard_error(sums[best])
    least = min(t for t, loss in losses.items() if loss <= losses[best] + error)
    told = f"Strength {least:g}: validation loss {losses[least]:.3f}, the least strength within"
    return least, f"{told} one standard error ({error:.3f}) of the lowest, {losses[best]:.3f} at {best:g}."


def standard_error(sums: np.ndarray) -> float:
    """Of the mean over tokens, records being what varies: √(n / (n − 1) · Σ (lᵢ − μ cᵢ)²) / Σ cᵢ."""
    losses, counts = sums.T
    left = losses - mean_loss(sums) * counts
    return float(np.sqrt(len(sums) / max(1, len(sums) - 1) * np.sum(left**2)) / max(1.0, counts.sum()))
