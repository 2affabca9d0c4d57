"""The loss on held-back records, and whether it is the lowest yet."""

import time
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_hybrid.config import TrainConfig
from mlx_hybrid.records.template import Example
from mlx_hybrid.training.batches import validation_batches
from mlx_hybrid.training.distributed import ALONE, World
from mlx_hybrid.training.events import Validated
from mlx_hybrid.training.loss import make_target_losses
from mlx_hybrid.training.progress import Progress
from mlx_hybrid.training.step import arrays


def validate(
    model: nn.Module, held_back: list[Example], config: TrainConfig, progress: Progress, world: World = ALONE
) -> Validated:
    """Measure the held-back records and note the result: the base's before the first step, and the best one since."""
    begun = time.monotonic()
    loss, by_language = validation_loss(model, held_back, batch_size=config.batch_size, world=world)
    best = bool(progress.step) and loss < progress.best_loss
    progress.stale = 0 if best and loss < progress.base_loss else progress.stale + 1
    if not progress.step:
        progress.base_loss, progress.stale = loss, 0
    elif best:
        progress.best_loss, progress.best_step = loss, progress.step
    return Validated(progress.step, loss, best, time.monotonic() - begun, by_language)


def validation_loss(
    model: nn.Module, examples: list[Example], *, batch_size: int, world: World = ALONE
) -> tuple[float, dict[str, float]]:
    """Mean −log p over the trained tokens of held-back examples, in nats: of all, and of each language.

    Several machines take the batches in turn.
    """
    target_losses = make_target_losses(model)
    was_training = model.training
    model.eval()
    names = sorted({example.language for example in examples})
    sums = np.zeros((len(names), 2))
    batches = validation_batches(examples, batch_size=batch_size // world.size)
    for batch in islice(batches, world.index, None, world.size):
        losses = np.array(target_losses(*arrays(batch)[:3]))[: batch.trained].astype(np.float64)
        for index, language in enumerate(batch.languages):
            own = losses[batch.owners == index]
            sums[names.index(language)] += own.sum(), len(own)
    model.train(was_training)
    if world.size > 1:
        sums = np.array(world.sum(mx.array(sums.astype(np.float32)))).astype(np.float64)
    loss, count = sums.sum(axis=0)
    means = sums[:, 0] / np.maximum(1, sums[:, 1])
    return float(loss / max(1, count)), dict(zip(names, means.tolist(), strict=True))
