"""Activations made of products and sums against NumPy in float64, and in the place of MLX's own."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_hybrid.models import activations
from mlx_hybrid.models.base import BUNDLED_FOLDER, load_weights

pytestmark = pytest.mark.skipif(
    not activations.exponentials_are_slow(), reason="MLX's own are as quick as can be here"
)
SIGMOID = 2e-7  # three roundings of float32 at 1
SLOPE = 5e-6  # σ's error times x u'(x), up to 25 of x σ(u) where it still bends
POINTS = np.concatenate([np.linspace(-30, 30, 20_001), [-1e4, -200.0, 200.0, 1e4]])


def of(function, values=POINTS):
    return np.array(function(mx.array(values.astype(np.float32))), np.float64)


def exact_sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def exact_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_the_sigmoid_is_flat_where_float32_is():
    points = POINTS.astype(np.float32).astype(np.float64)
    assert np.abs(of(activations.sigmoid) - exact_sigmoid(points)).max() <= SIGMOID
    assert of(activations.sigmoid, np.array([-1e6, -18.5, 18.5, 1e6])).tolist() == [0, 0, 1, 1]
    assert np.isnan(of(activations.sigmoid, np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("quick", "exact"),
    [(activations.silu, lambda x: x * exact_sigmoid(x)), (activations.gelu_approx, exact_gelu)],
    ids=["silu", "gelu"],
)
def test_activations_and_their_slopes_are_those_of_float64(quick, exact):
    points = POINTS.astype(np.float32).astype(np.float64)
    assert (np.abs(of(quick) - exact(points)) <= SIGMOID * np.maximum(1, np.abs(points))).all()
    step = 1e-5
    slopes = (exact(points + step) - exact(points - step)) / (2 * step)
    found = of(mx.grad(lambda x: mx.sum(quick(x))))
    near = np.abs(points) < 100  # beyond, a difference of 1e-5 is lost
    assert np.abs(found - slopes)[near].max() <= SLOPE
    compiled = partial(mx.compile, shapeless=True)(lambda x: quick(x) * x)
    np.testing.assert_allclose(of(compiled), of(quick) * points, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["silu", "gelu_approx"])
def test_other_types_have_their_own(name):
    x = mx.random.normal((64,)).astype(mx.bfloat16)
    own = {"silu": activations.SILU, "gelu_approx": activations.GELU_APPROX}[name]
    assert mx.array_equal(getattr(activations, name)(x), own(x))


def test_models_ask_for_them_by_name(monkeypatch):
    """From the first model on, though it be built without its weights: what is compiled once keeps what it found."""
    monkeypatch.setattr(nn, "silu", activations.SILU)
    load_weights(BUNDLED_FOLDER, "bundled", lazy=True)
    assert nn.silu is activations.silu
    x = mx.random.normal((64,))
    assert mx.array_equal(nn.GELU("precise")(x), activations.gelu_approx(x))
