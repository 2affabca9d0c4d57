"""DoRA against its definition in float64 and against mlx-lm's, where that works."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear
from tolerances import EFFECT, IDENTITY, ROUNDING
from toys import MODES, base_linear

from mlx_hybrid.adapters.frozen import dense_weight
from mlx_hybrid.adapters.layer import DoraLinear
from mlx_hybrid.adapters.targets import LayerPlan
from mlx_hybrid.config import LowRankConfig

PLAN = LayerPlan(low_rank=LowRankConfig(rank=4, magnitude=True))
SCALE = 8.0  # α/√r
AFFINE = ["", *(mode for mode in MODES if mode.startswith("affine"))]


def fresh(mode: str, *, bias: bool = False) -> DoraLinear:
    return DoraLinear(base_linear(mode, bias=bias), PLAN, mx.random.key(0))


def trained(mode: str, *, bias: bool = False) -> DoraLinear:
    layer = fresh(mode, bias=bias)
    layer.low_rank.lora_b = 0.1 * mx.random.normal(layer.low_rank.lora_b.shape)
    layer.m = layer.m * (1 + 0.1 * mx.random.normal(layer.m.shape))
    return layer


@pytest.mark.parametrize("mode", ["", *MODES])
@pytest.mark.parametrize("bias", [False, True])
def test_a_fresh_layer_is_its_base(mode, bias):
    layer, x = fresh(mode, bias=bias), mx.random.normal((3, 20, 64))
    y = layer.linear(x)
    assert mx.max(mx.abs(layer(x) - y)) <= 10 * IDENTITY * mx.max(
        mx.abs(y)
    )  # one quotient more than a rotation
    count = sum(value.size for _, value in tree_flatten(layer.trainable_parameters()))
    assert count == 4 * (64 + 96) + 96


@pytest.mark.parametrize("mode", ["", *MODES])
def test_it_is_the_definition_in_float64_and_fuses_to_itself(mode):
    layer, x = trained(mode, bias=True), mx.random.normal((20, 64))
    weight = np.array(dense_weight(layer.linear, mx.float32), dtype=np.float64)
    a, b, m = (np.array(v, dtype=np.float64) for v in layer.leaves().values())
    adapted = weight + SCALE * (a @ b).T
    adapted *= (m / np.linalg.norm(adapted, axis=1))[:, None]
    expected = np.array(x, dtype=np.float64) @ adapted.T + np.array(layer.linear.bias)
    assert np.abs(np.array(layer(x)) - expected).max() <= ROUNDING * np.abs(expected).max()
    assert np.abs(np.array(layer.merged_weight()) - adapted).max() <= ROUNDING
    assert np.abs(np.array(layer(x)) - np.array(layer.linear(x))).max() > EFFECT


@pytest.mark.parametrize("mode", ["", "affine-4", "affine-8"])
def test_it_equals_mlx_lm_s_where_that_works(mode):
    layer, x = trained(mode), mx.random.normal((20, 64))
    peer = DoRALinear.from_base(layer.linear, r=4, scale=SCALE)
    peer.update(layer.leaves())
    assert mx.max(mx.abs(peer(x) - layer(x))) <= ROUNDING * mx.max(mx.abs(layer(x)))


@pytest.mark.parametrize("mode", AFFINE)
def test_the_magnitude_s_gradient(mode):
    """∂Σy²/∂m = 2 Σ y²/m by rows, since y is linear in m."""
    layer, x = trained(mode), mx.random.normal((20, 64))

    def loss(m: mx.array) -> mx.array:
        layer.m = m
        return mx.sum(mx.square(layer(x)))

    m = layer.m
    gradient = mx.grad(loss)(m)
    layer.m = m
    expected = 2 * mx.sum(mx.square(layer(x)), axis=0) / m
    assert mx.max(mx.abs(gradient - expected)) <= ROUNDING * mx.max(mx.abs(expected))
