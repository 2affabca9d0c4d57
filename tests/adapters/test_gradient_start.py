"""Starts from the gradient, against exact dense gradients of the dequantised weights."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from tolerances import ROUNDING
from toys import tiny_llama

from mlx_hybrid.adapters.attach import attach, dequantise, hybrid_layers
from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.adapters.start import apply_start, scale_to_inputs, sketch_gradients
from mlx_hybrid.config import build_config

RANK = 4
TOKENS = mx.array(np.random.default_rng(0).integers(3, 250, (4, 40)))
BATCHES = [(TOKENS[:2],), (TOKENS[2:],)]

TOP, NEXT = 0.99, 0.95
"""Shares of the energy of the true leading directions that the sketch must hold: the project's own targets."""


def make_loss(model):
    return lambda tokens: mx.sum(nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]))


def model_of(mode: str):
    return use_fast_products(tiny_llama(mode))


def dense_gradients(mode: str) -> dict[str, np.ndarray]:
    """∂L/∂W of every projection, by ordinary training of the dequantised model."""
    model = model_of(mode)
    dequantise(model)
    model.set_dtype(mx.float32)
    total: dict[str, np.ndarray] = {}
    for batch in BATCHES:
        _, gradients = nn.value_and_grad(model, make_loss(model))(*batch)
        for name, value in tree_flatten(gradients):
            total[name] = total.get(name, 0) + np.array(value, dtype=np.float64)
    return {name.removesuffix(".weight"): value for name, value in total.items() if "proj" in name}


def adapted(mode: str, start: str, orthogonal: str = "none"):
    model = model_of(mode)
    config = build_config(
        {
            "method": "hybrid",
            "adapter": {"orthogonal": orthogonal, "rank": RANK, "start": start, "reflections": 4},
        },
        "t",
    ).adapter
    attach(model, config)
    return model


def sketch(model, passes: int = 4, seed: int = 0):
    return list(sketch_gradients(model, make_loss, BATCHES, columns=2 * RANK + 16, passes=passes, seed=seed))


@pytest.mark.parametrize("mode", ["", "affine-4", "nvfp4"])
def test_the_sketch_holds_the_leading_directions_of_the_dense_gradient(mode):
    model = adapted(mode, "lora-ga", "householder")
    *passes, factors = sketch(model)
    assert passes == [1, 2, 3, 4]
    exact = dense_gradients(mode)
    assert set(factors) == set(exact) == set(hybrid_layers(model))
    for name, gradient in exact.items():
        sigma = np.linalg.svd(gradient, compute_uv=False)
        found = factors[name]
        v, u = (
            np.array(found[1][:, :RANK], dtype=np.float64),
            np.array(found[0][:, RANK : 2 * RANK], dtype=np.float64),
        )
        assert np.abs(v.T @ v - np.eye(RANK)).max() <= ROUNDING
        assert np.square(gradient @ v).sum() >= TOP * np.square(sigma[:RANK]).sum()
        assert np.square(u.T @ gradient).sum() >= NEXT * np.square(sigma[RANK : 2 * RANK]).sum()


def test_the_sketch_leaves_the_adapter_as_it_was():
    model = adapted("affine-4", "gradient", "householder")
    before = {name: value + 0 for name, value in tree_flatten(model.parameters())}
    trainable = {name for name, _ in tree_flatten(model.trainable_parameters())}
    sketch(model, passes=2)
    after = dict(tree_flatten(model.parameters()))
    assert set(after) == set(before)
    assert all(mx.array_equal(after[name], before[name]) for name in before)
    assert {name for name, _ in tree_flatten(model.trainable_parameters())} == trainable


def test_the_sketch_depends_on_its_seed_alone():
    first, same, other = (sketch(adapted("", "lora-ga"), passes=2, seed=seed)[-1] for seed in (1, 1, 2))
    name = next(iter(first))
    assert mx.array_equal(first[name][1], same[name][1])
    assert not mx.array_equal(first[name][1], other[name][1])


@pytest.mark.parametrize("start", ["gradient", "lora-ga"])
@pytest.mark.parametrize("mode", ["", "affine-4"])
def test_a_started_layer_is_still_its_base_to_the_bit(start, mode):
    plain = model_of(mode)(TOKENS)
    model = adapted(mode, start)
    factors = sketch(model, passes=2)[-1]
    apply_start(model, factors)
    assert mx.array_equal(model(TOKENS), plain)
    assert set(factors) == set(hybrid_layers(model))


@pytest.mark.parametrize("mode", ["", "affine-4"])
def test_the_first_step_of_lora_ga_is_the_best_of_its_rank(mode):
    """A small step of plain SGD has cosine √(Σ_{i≤2r} σ²/Σσ²) to the dense step, the most that rank 2r allows."""
    model = adapted(mode, "lora-ga")
    apply_start(model, sketch(model, passes=6)[-1])
    exact = dense_gradients(mode)
    before = {name: layer.merged_weight() for name, layer in hybrid_layers(model).items()}
    rate = 1e-7  # the second-order term of the step vanishes
    total = None
    for batch in BATCHES:
        _, gradients = nn.value_and_grad(model, make_loss(model))(*batch)
        flat = dict(tree_flatten(gradients))
        total = flat if total is None else {name: total[name] + value for name, value in flat.items()}
    for name, layer in hybrid_layers(model).items():
        a, b = total[f"{name}.low_rank.lora_a"], total[f"{name}.low_rank.lora_b"]
        low_rank = layer.low_rank
        first_order = -rate * low_rank.scale * (low_rank.lora_a0 @ b + a @ low_rank.lora_b0).T
        step = np.array(first_order, dtype=np.float64)
        sigma = np.linalg.svd(exact[name], compute_uv=False)
        best = math.sqrt(np.square(sigma[: 2 * RANK]).sum() / np.square(sigma).sum())
        cosine = -(step * exact[name]).sum() / np.linalg.norm(step) / np.linalg.norm(exact[name])
        assert best * 0.98 <= cosine <= best * (1 + ROUNDING)
        assert np.linalg.matrix_rank(step, tol=1e-4 * np.linalg.norm(step)) == 2 * RANK
        assert mx.array_equal(layer.merged_weight(), before[name])  # nothing has moved yet


def test_a_scaled_start_sees_activations_as_a_random_one_does():
    model = adapted("", "gradient")
    apply_start(model, sketch(model, passes=2)[-1])
    before = {name: np.array(layer.low_rank.lora_a) for name, layer in hybrid_layers(model).items()}
    logits = np.array(model(TOKENS))
    inputs = inputs_of(model, TOKENS[:, :-1])
    scale_to_inputs(model, make_loss, BATCHES)
    assert np.array_equal(np.array(model(TOKENS)), logits)
    for name, layer in hybrid_layers(model).items():
        x, a = inputs[name], np.array(layer.low_rank.lora_a, dtype=np.float64)
        seen = np.sqrt(np.square(x @ a).mean(axis=0))
        assert np.allclose(seen, np.sqrt(np.square(x).mean() / 3), rtol=1e-3)  # Σ in float32 over 156 rows
        unit = before[name] / np.linalg.norm(before[name], axis=0)
        assert np.abs(a / np.linalg.norm(a, axis=0) - unit).max() <= ROUNDING
        assert np.abs(a - before[name]).max() > 100 * ROUNDING


def inputs_of(model, tokens) -> dict[str, np.ndarray]:
    """The inputs (n, in) of every adapted layer on a plain forward pass."""
    seen: dict[str, list] = {}

    class Spy(nn.Module):
        def __init__(self, name, layer):
            super().__init__()
            self._name, self.layer = name, layer

        def __call__(self, x):
            seen.setdefault(self._name, []).append(np.array(x, dtype=np.float64).reshape(-1, x.shape[-1]))
            return self.layer(x)

    layers = hybrid_layers(model)
    model.update_modules(tree_unflatten([(name, Spy(name, layer)) for name, layer in layers.items()]))
    model(tokens)
    model.update_modules(tree_unflatten(list(layers.items())))
    return {name: np.concatenate(parts) for name, parts in seen.items()}
