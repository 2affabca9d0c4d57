"""The loss on held-back records, and whether it is the lowest yet."""

import time
from itertools import islice

import mlx.nn as nn
import numpy as np

from mlx_hybrid.config import TrainConfig
from mlx_hybrid.records.template import Example
from mlx_hybrid.training.batches import validation_batches
from mlx_hybrid.training.distributed import ONE, Ranks
from mlx_hybrid.training.events import Validated
from mlx_hybrid.training.loss import make_target_losses
from mlx_hybrid.training.progress import Progress
from mlx_hybrid.training.step import arrays


def validate(
    model: nn.Module, held_back: list[Example], config: TrainConfig, progress: Progress, ranks: Ranks = ONE
) -> Validated:
    """Measure the held-back records and note the result: the base's before the first step, and the best one since."""
    begun = time.monotonic()
    loss, by_language = validation_loss(model, held_back, batch_size=config.batch_size, ranks=ranks)
    best = bool(progress.step) and loss < progress.best_loss
    progress.stale = 0 if best and loss < progress.base_loss else progress.stale + 1
    if not progress.step:
        progress.base_loss, progress.stale = loss, 0
    elif best:
        progress.best_loss, progress.best_step = loss, progress.step
    return Validated(progress.step, loss, best, time.monotonic() - begun, by_language)


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
