"""FLOPs and bytes of one optimiser step, counted in the graph that MLX would compute.

FLOPs are those of matrix products, two for each multiplication and addition. Bytes are what every operation reads and
writes, once, as if none were fused; views move nothing. The logits are counted in one chunk and the inverses of the
reflections' small cores not at all: both are custom functions, which MLX does not export.
"""

import math
from collections.abc import Callable
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_hybrid.adapters import butterfly as orthogonal
from mlx_hybrid.training import loss
from mlx_hybrid.training.batches import Batch
from mlx_hybrid.training.optimizer import BranchOptimizer
from mlx_hybrid.training.step import arrays

VIEWS = {"Broadcast", "Transpose", "Reshape", "Squeeze", "ExpandDims", "Flatten", "Unflatten", "AsStrided", "Slice",
         "Split", "Depends", "StopGradient"}  # fmt: skip
PICKING = {"Gather", "GatherAxis", "Scatter", "ScatterAxis"}  # read and write what they pick, not the whole


def count(model: nn.Module, optimizer: BranchOptimizer, batch: Batch) -> tuple[int, int]:
    """(FLOPs, bytes) of a step of `lora` or `hybrid` on a dense base; model and optimiser stay as they are."""
    loss_and_gradient = nn.value_and_grad(model, loss.make_loss(model))
    before, state = model.trainable_parameters(), dict(tree_flatten(optimizer.state))

    def step(*given: mx.array) -> list[mx.array]:
        value, gradients = loss_and_gradient(*given)
        norm, lam = optimizer.step(model, gradients, mx.sum(given[3]))
        after = (model.trainable_parameters(), optimizer.state)
        return [value, norm, lam, *(leaf for _, leaf in tree_flatten(after))]

    seen: list[dict] = []
    with (
        mock.patch.object(loss, "loss_in_chunks", in_one_chunk),
        mock.patch.object(orthogonal, "invert_upper", lambda core: core),
    ):
        mx.export_function(seen.append, step, *arrays(batch))
    model.update(before)
    optimizer.put_state(state)
    return count_graph(seen)


def in_one_chunk(
    head: Callable, hidden: mx.array, targets: mx.array, weights: mx.array, _: int, leaves: dict
) -> mx.array:
    """What `loss_in_chunks` computes where no leaf of the head trains, its own gradient brought in by a sum that adds
    nothing."""
    value, slopes, _ = loss.loss_and_slopes(head, mx.stop_gradient(hidden), targets, weights, leaves)
    pull = mx.sum(hidden * mx.stop_gradient(slopes))
    return value + pull - mx.stop_gradient(pull)


def count_graph(nodes: list[dict]) -> tuple[int, int]:
    stored: dict[str, int] = {}
    flops = moved = 0
    for node in nodes:
        if node["type"] == "constants":
            stored |= {name: value.nbytes for name, value in node["constants"]}
        if node["type"] == "inputs":
            stored |= {name: nbytes(shape, kind) for name, shape, kind in node["inputs"]}
        if node["type"] != "primitive":
            continue
        read = sum(stored[name] for name in {name for name, *_ in node["inputs"]})
        for name, shape, kind in node["outputs"]:
            stored[name] = nbytes(shape, kind)
        written = sum(stored[name] for name, *_ in node["outputs"])
        if node["name"] in VIEWS:
            stored |= {name: min(stored[name], read) for name, *_ in node["outputs"]}
            continue
        moved += 2 * written if node["name"] in PICKING else read + written
        if node["name"] in ("Matmul", "AddMM"):
            flops += 2 * math.prod(node["outputs"][0][1]) * node["inputs"][0][1][-1]
    return flops, moved


def nbytes(shape: tuple[int, ...], kind: mx.Dtype) -> int:
    return math.prod(shape) * kind.size
