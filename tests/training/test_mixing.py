"""λ of each layer from gradient norms."""

import mlx.core as mx
import pytest
from jaxtyping import TypeCheckError

from mlx_hybrid.training.optimizer import EMA, LARGEST_SHARE, SMALLEST_SHARE, BranchOptimizer, shares


def test_equal_norms_share_equally():
    assert shares(mx.ones((2, 4))).tolist() == [0.5] * 4


def test_branches_of_another_scale_share_equally_too():
    assert shares(mx.array([[100.0, 100.0], [0.01, 0.01]])).tolist() == pytest.approx([0.5, 0.5])


def test_the_share_is_the_relative_norm():
    # relative norms: orthogonal 0.5 and 1.5, low rank 1 and 1
    assert shares(mx.array([[1.0, 3.0], [2.0, 2.0]])).tolist() == pytest.approx([0.5 / 1.5, 1.5 / 2.5])


def test_shares_stay_within_their_bounds():
    lam = shares(mx.array([[1e6, 1e-6], [1e-6, 1e6]])).tolist()
    assert lam == pytest.approx([LARGEST_SHARE, SMALLEST_SHARE])


def test_without_gradients_the_share_is_half():
    assert shares(mx.zeros((2, 3))).tolist() == [0.5] * 3
    assert shares(mx.array([[0.0, 0.0], [1.0, 1.0]])).tolist() == pytest.approx([SMALLEST_SHARE] * 2)


@pytest.mark.parametrize(
    "wrong", [lambda: shares(mx.ones((3, 4))), lambda: shares(mx.ones((2, 4), dtype=mx.int32))]
)
def test_wrong_shapes_are_caught_under_test(wrong):
    with pytest.raises(TypeCheckError):
        wrong()


def mixed(mixing: str) -> BranchOptimizer:
    """An optimiser of two layers, for its mixing alone."""
    optimizer = BranchOptimizer.__new__(BranchOptimizer)
    optimizer.mixed, optimizer.mixing = ["a", "b"], mixing
    optimizer.mix = {"norms": mx.zeros((2, 2)), "started": mx.array(False)}
    return optimizer


def squares(*norms: float) -> dict[str, mx.array]:
    """Of the gradients of both branches of one layer and then the other."""
    names = [f"{layer}.{leaf}" for layer in "ab" for leaf in ("rotation.house_u", "low_rank.lora_a")]
    return {name: mx.array(norm**2) for name, norm in zip(names, norms, strict=True)}


def test_norms_are_averaged_from_the_first_value_on():
    optimizer = mixed("gradient")
    optimizer.update_mixing(squares(4.0, 2.0, 1.0, 1.0), 1.0)
    assert optimizer.mix["norms"].tolist() == [[4.0, 1.0], [2.0, 1.0]]
    optimizer.update_mixing(squares(16.0, 4.0, 2.0, 2.0), 2.0)
    assert optimizer.mix["norms"][0, 0].item() == pytest.approx(EMA * 4 + (1 - EMA) * 8)
    assert optimizer.mix["norms"][1, 0].item() == pytest.approx(2.0)


def test_inverted_the_smaller_gradient_takes_the_larger_part():
    found = {}
    for mixing in ("gradient", "inverted"):
        found[mixing] = mixed(mixing).update_mixing(squares(3.0, 1.0, 1.0, 3.0), 1.0).tolist()
    assert found["inverted"] == pytest.approx([1 - lam for lam in found["gradient"]])
    assert found["gradient"][0] > 0.5 > found["inverted"][0]
