"""One optimiser step: the gradient of some batches, and what the optimiser makes of it."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_hybrid.adapters.frozen import on_cpu
from mlx_hybrid.training.batches import Batch
from mlx_hybrid.training.distributed import ALONE, World
from mlx_hybrid.training.loss import make_loss
from mlx_hybrid.training.optimizer import BranchOptimizer

WEIGHTS = 3  # their place in what `arrays` gives


def arrays(batch: Batch) -> tuple[mx.array, ...]:
    """(tokens, positions, targets, weights) of what this machine is to compute."""
    batch = batch.part or batch
    return tuple(mx.array(part) for part in (batch.tokens, batch.positions, batch.targets, batch.weights))


def make_step(
    model: nn.Module,
    optimizer: BranchOptimizer,
    *,
    accumulate: int,
    compiled: bool,
    world: World = ALONE,
    hold: bool = False,
) -> Callable:
    """step(batches) → (loss sum, trained tokens, gradient norm, λ), one optimiser step over `accumulate` batches.

    Losses and token counts are summed over the batches and the machines, and divided once; `hold` is make_loss's."""
    loss_and_gradient = nn.value_and_grad(model, make_loss(model, hold=hold))
    state = [model.state, optimizer.state, mx.random.state]
    wrap = partial(mx.compile, inputs=state, outputs=state) if compiled else lambda function: function

    @wrap
    def whole(*batch: mx.array) -> tuple:
        loss, gradients = loss_and_gradient(*batch)
        count = mx.sum(mx.abs(batch[WEIGHTS]))
        norm, lam = optimizer.step(model, gradients, count)
        return loss, count, norm, lam

    @wrap
    def part(*batch: mx.array) -> tuple:
        loss, gradients = loss_and_gradient(*batch)
        return loss, mx.sum(mx.abs(batch[WEIGHTS])), gradients

    @wrap
    def update(gradients: dict, count: mx.array) -> tuple:
        return optimizer.step(model, gradients, count)

    def step(batches: list[Batch]) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        if accumulate == 1 and world.size == 1:
            result = whole(*arrays(batches[0]))
        else:
            loss, count, gradients = part(*arrays(batches[0]))
            for batch in batches[1:]:
                more_loss, more_count, more = part(*arrays(batch))
                loss, count = loss + more_loss, count + more_count
                gradients = tree_map(mx.add, gradients, more)
                mx.eval(loss, count, gradients)
            loss, count = world.sum(mx.stack([loss, count]))
            result = (loss, count, *update(world.mean_gradients(gradients), count / world.size))
        mx.eval(state, result)
        return result

    return step


def compiles(setting: str) -> bool:
    """Whether to compile the step: on the CPU every fused kernel is a run of a C++ compiler, which may not be there."""
    return setting == "on" or (setting == "auto" and not on_cpu())
