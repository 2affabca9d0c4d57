"""The low-rank branch: its scale and its start."""

import math

import mlx.core as mx
import pytest

from mlx_hybrid.adapters.layer import low_rank_scale, random_down_projection


@pytest.mark.parametrize(("rank", "rslora", "scale"), [(16, True, 4.0), (16, False, 1.0), (4, True, 8.0)])
def test_the_scale_is_alpha_over_the_rank_or_its_root(rank, rslora, scale):
    assert low_rank_scale(16.0, rank, rslora) == scale


def test_the_down_projection_is_uniform_within_its_bound():
    a = random_down_projection(256, 64, mx.random.key(0))
    bound = 1 / math.sqrt(256)
    assert a.shape == (256, 64)
    assert random_down_projection(256, 64, mx.random.key(0), (3,)).shape == (3, 256, 64)
    assert bound * 0.99 < mx.max(mx.abs(a)).item() <= bound
    assert mx.std(a).item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
