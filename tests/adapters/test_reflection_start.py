"""Reflections along the gradient, against the dense skew(GᵀW): no output moves, and the first step is the steepest."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import tiny
from mlx.utils import tree_flatten
from test_gradient_start import BATCHES, TOKENS, dense_gradients, make_loss, model_of
from tolerances import IDENTITY, NUMERIC_GRADIENT, ROUNDING

from mlx_hybrid.adapters.attach import attach, hybrid_layers
from mlx_hybrid.adapters.frozen import dense_weight
from mlx_hybrid.adapters.householder import (
    Householder,
    gradient_reflections,
    leading_planes,
    paired_reflections,
)
from mlx_hybrid.adapters.start import apply_start, sketch_columns, sketch_gradients
from mlx_hybrid.config import build_config

K = 8
HELD = 0.95
"""Share of the steepest first step that the sketched one must reach, as for the second directions of LoRA-GA: the
sketch has 32 columns, which hold 0.9 to 1.0 of the energy of these gradients."""

each_mode = pytest.mark.parametrize("mode", ["", "affine-4", "nvfp4"])


def skew_of(v: np.ndarray, p: np.ndarray) -> np.ndarray:
    return (v @ p - p.T @ v.T) / 2


def drawn(n: int, d: int = 48) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.normal(size=(d, n)), rng.normal(size=(n, d)) * np.arange(n, 0, -1)[:, None]


def single(values: np.ndarray) -> mx.array:
    return mx.array(values.astype(np.float32))


@pytest.mark.parametrize("n", [3, 12, 30])
def test_the_planes_are_those_of_the_dense_skew_matrix(n):
    v, p = drawn(n)
    s = skew_of(v, p)
    found = np.array(leading_planes(single(v), single(p), 3), dtype=np.float64)
    sigma = np.linalg.svd(s, compute_uv=False)
    assert np.abs(found.T @ found - np.eye(3)).max() <= ROUNDING
    assert np.linalg.norm(s @ found, axis=0) == pytest.approx(sigma[0:6:2], rel=NUMERIC_GRADIENT)
    between = np.abs(found.T @ s @ found).max()  # none lies in another's plane
    assert between <= NUMERIC_GRADIENT * sigma[0]


def test_reflections_along_the_gradient_start_at_the_identity():
    v, p = drawn(6)
    random = paired_reflections(48, K, mx.random.key(0))
    u = gradient_reflections(random, single(v), single(p))
    assert mx.max(mx.abs(Householder(u).rotate(mx.eye(48)) - mx.eye(48))).item() <= IDENTITY
    assert mx.allclose(mx.linalg.norm(u, axis=0), mx.ones(K), atol=ROUNDING)
    assert mx.max(mx.abs(u - random)).item() > 0.1


def test_pairs_without_a_plane_stay_as_they_were():
    v, p = drawn(1)
    random = paired_reflections(48, K, mx.random.key(0))
    u = gradient_reflections(random, single(v), single(p))
    assert not mx.allclose(u[:, :2], random[:, :2])
    assert mx.array_equal(u[:, 2:], random[:, : K - 2])


def started(mode: str, reflection_start: str, **changes):
    """A model whose reflections are started, and its gradient on their leaves."""
    tree = {"reflections": K, "rank": 0, "start": "zeros", "reflection_start": reflection_start, **changes}
    config = build_config({"method": "hra", "adapter": tree}, "test").adapter
    model = model_of(mode)
    attach(model, config)
    if reflection_start == "gradient":
        *_, factors = sketch_gradients(
            model, make_loss, BATCHES, columns=sketch_columns(config), passes=4, seed=0
        )
        apply_start(model, factors)
    total: dict[str, mx.array] = {}
    for batch in BATCHES:
        _, gradients = nn.value_and_grad(model, make_loss(model))(*batch)
        flat = dict(tree_flatten(gradients))
        total = {name: total.get(name, 0) + value for name, value in flat.items()}
    return model, {
        name.removesuffix(".rotation.house_u"): value
        for name, value in total.items()
        if name.endswith("house_u")
    }


@each_mode
def test_the_first_step_turns_as_much_as_any_could(mode):
    """∂L/∂U of a pair is ±4 S u, so its squared norm is 32 σ² for u in a plane of S with singular value σ."""
    model, gradients = started(mode, "gradient")
    _, by_chance = started(mode, "random")
    exact = dense_gradients(mode)
    for name, layer in hybrid_layers(model).items():
        g, w = exact[name], np.array(dense_weight(layer.linear, mx.float32), dtype=np.float64)
        sigma = np.linalg.svd((g.T @ w - w.T @ g) / 2, compute_uv=False)
        best = 32 * np.square(sigma[0:K:2]).sum()
        reached = np.square(np.array(gradients[name], dtype=np.float64)).sum()
        assert HELD * best <= reached <= best * (1 + NUMERIC_GRADIENT)
        assert np.square(np.array(by_chance[name], dtype=np.float64)).sum() < 0.5 * best  # 0.09 to 0.27


@each_mode
def test_the_model_is_still_its_base(mode):
    plain = model_of(mode)(TOKENS)
    for changes in ({}, {"rank": 4, "start": "lora-ga"}, {"rank": 4, "start": "zeros"}):
        model, _ = started(mode, "gradient", **changes)
        gap = mx.max(mx.abs(model.eval()(TOKENS) - plain)).item()
        assert gap <= 4 * IDENTITY * mx.max(mx.abs(plain)).item()  # seven layers deep, twice


def test_a_low_rank_branch_from_zeros_stays_as_drawn():
    turned, _ = started("", "gradient", rank=4, start="zeros")
    drawn, _ = started("", "random", rank=4, start="zeros")
    for name, layer in hybrid_layers(turned).items():
        plain = hybrid_layers(drawn)[name]
        assert mx.array_equal(layer.low_rank.lora_a, plain.low_rank.lora_a)
        assert not mx.allclose(layer.rotation.house_u, plain.rotation.house_u)


def test_experts_share_the_planes_of_all():
    config = build_config(
        {"adapter": {"targets": ["experts"], "reflection_start": "gradient"}}, "test"
    ).adapter
    model = tiny("qwen3_moe")
    plain = model(TOKENS)
    attach(model, config)
    *_, factors = sketch_gradients(model, make_loss, [(TOKENS,)], columns=32, passes=4, seed=0)
    before = {name: layer.rotation.house_u for name, layer in hybrid_layers(model).items()}
    apply_start(model, factors)
    for name, layer in hybrid_layers(model).items():
        weights, f = np.array(layer.linear.weight, dtype=np.float64), factors[name]
        parts = [np.array(part, dtype=np.float64) for part in (f.u, f.sigma, f.v)]
        whole = sum((v * s) @ (u.T @ w) for u, s, v, w in zip(*parts, weights))
        s, u = (whole - whole.T) / 2, np.array(layer.rotation.house_u, dtype=np.float64)
        sigma = np.linalg.svd(s, compute_uv=False)
        assert np.square(s @ u[:, ::2]).sum() == pytest.approx(
            np.square(sigma[:8:2]).sum(), rel=NUMERIC_GRADIENT
        )
        assert not mx.allclose(layer.rotation.house_u, before[name])
    gap = mx.max(mx.abs(model.eval()(TOKENS) - plain)).item()
    assert gap <= IDENTITY * mx.max(mx.abs(plain)).item() * 4
