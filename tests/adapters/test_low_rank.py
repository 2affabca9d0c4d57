"""The low-rank branch: its scale and its start."""

import math

import mlx.core as mx
import pytest

from mlx_hybrid.adapters.layer import LowRank
from mlx_hybrid.config import LowRankConfig


@pytest.mark.parametrize(("rank", "rslora", "scale"), [(16, True, 4.0), (16, False, 1.0), (4, True, 8.0)])
def test_the_scale_is_alpha_over_the_rank_or_its_root(rank, rslora, scale):
    assert LowRank(8, 8, LowRankConfig(rank=rank, rslora=rslora), mx.random.key(0)).scale == scale


def test_the_down_projection_is_uniform_within_its_bound():
    a, stacked = (LowRank(256, 8, LowRankConfig(rank=64), mx.random.key(0), s).lora_a for s in ((), (3,)))
    bound = 1 / math.sqrt(256)
    assert a.shape == (256, 64)
    assert stacked.shape == (3, 256, 64)
    assert bound * 0.99 < mx.max(mx.abs(a)).item() <= bound
    assert mx.std(a).item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
