"""The nearest to a Metal test that runs anywhere: a whole training step holds no primitive that Metal lacks."""

import io
import math
import re

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from scene import METHODS, changed, examples, material

from mlx_hybrid.adapters.attach import rotations
from mlx_hybrid.training import loop
from mlx_hybrid.training.batches import make_batch
from mlx_hybrid.training.optimizer import make_step

CPU_ONLY = {"Inverse", "QRF", "SVD", "Cholesky", "LUF", "Eig", "Eigh"}
"""Primitives of mx.linalg whose evaluation on a GPU throws (mlx/backend/metal/primitives.cpp)."""


def primitives(*outputs: mx.array) -> set[str]:
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    return set(re.findall(r'label ="([A-Za-z]+)', text.getvalue()))


def test_the_list_names_what_the_graph_names():
    square = mx.eye(4) * 2
    graphs = {
        "Inverse": mx.linalg.inv(square, stream=mx.cpu), "QRF": mx.linalg.qr(square, stream=mx.cpu)[0],
        "SVD": mx.linalg.svd(square, stream=mx.cpu)[1], "Cholesky": mx.linalg.cholesky(square, stream=mx.cpu),
        "LUF": mx.linalg.lu(square, stream=mx.cpu)[1], "Eig": mx.linalg.eig(square, stream=mx.cpu)[0],
        "Eigh": mx.linalg.eigh(square, stream=mx.cpu)[0],
    }  # fmt: skip
    for name, output in graphs.items():
        assert name in primitives(output)

    @mx.custom_function
    def hidden(x):
        return mx.linalg.inv(x, stream=mx.cpu)

    assert "Inverse" in primitives(mx.checkpoint(lambda x: hidden(x) @ x)(square))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings", [{}, {"accumulate": 2, "grad_checkpoint": True}], ids=["plain", "recomputed"]
)
def test_a_training_step_holds_nothing_that_metal_lacks(method, settings, monkeypatch):
    settings = changed(**settings)
    drop = {} if method in ("full", "hra", "boft") else {"dropout": 0.1}
    model, optimizer = material(method, settings, mode="affine-4", **drop)
    model.train()
    step = make_step(model, optimizer, compiled=False)
    batches = [make_batch(examples(2, seed=s)) for s in range(settings.accumulate)]
    monkeypatch.setattr(loop.mx, "eval", lambda *_: None)
    outputs = step(batches)
    for rotation in rotations(model):
        rotation.refold(math.inf)
    leaves = [v for _, v in tree_flatten([model.trainable_parameters(), model.parameters(), optimizer.state])]
    found = primitives(*outputs, *leaves)
    assert {"Matmul", "Sqrt"} <= found
    assert not found & CPU_ONLY
