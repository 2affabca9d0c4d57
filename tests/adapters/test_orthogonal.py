"""Rotations against NumPy in float64: Cayley, butterfly in PEFT's order, Householder chains, and their gradients."""

import mlx.core as mx
import numpy as np
import pytest
import reference
from jaxtyping import TypeCheckError
from tolerances import (
    CAYLEY,
    CORRELATED,
    DEFECT,
    EFFECT,
    IDENTITY,
    NUMERIC_GRADIENT,
    ROUNDING,
)

from mlx_hybrid.adapters import householder
from mlx_hybrid.adapters.butterfly import (
    LARGEST_SKEW,
    Butterfly,
    cayley,
    compose_butterfly,
    defect,
    dense_block_size,
    nearest_blocks,
    nearest_rotation,
    rotate_blocks,
    rotate_factor,
    skew,
)
from mlx_hybrid.adapters.householder import Householder, householder_core, invert_upper, paired_reflections


def triangles(norm: float, *shape: int, size: int, seed: int = 0) -> np.ndarray:
    """Upper triangles of skew matrices whose spectral norm is `norm`, each."""
    drawn = np.random.default_rng(seed).normal(size=(*shape, size * (size - 1) // 2))
    largest = np.linalg.norm(reference.skew_matrix(drawn, size), 2, axis=(-2, -1))
    return drawn * (norm / largest)[..., None]


def columns(d: int, k: int, correlation: float, seed: int = 0) -> np.ndarray:
    """(d, k) columns of different lengths, any two of which correlate so much on average."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(d, 1))
    mixed = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=(d, k))
    return mixed * rng.uniform(0.5, 2.0, size=k)


def householder_matrix(u: mx.array) -> mx.array:
    return Householder(u).rotate(mx.eye(len(u)))


def single(values: np.ndarray) -> mx.array:
    return mx.array(values.astype(np.float32))


def gap(ours: mx.array, exact: np.ndarray) -> float:
    return float(np.abs(np.array(ours, dtype=np.float64) - exact).max())


@pytest.mark.parametrize("size", [2, 4, 8, 16])
@pytest.mark.parametrize("norm", [0.01, 0.2, LARGEST_SKEW])
def test_cayley_by_doubling_equals_solve(size, norm):
    q = triangles(norm, 5, size=size)
    exact = reference.cayley(reference.skew_matrix(q, size))
    rotation = cayley(skew(single(q), size))
    assert gap(rotation, exact) <= CAYLEY
    assert gap(rotation, np.broadcast_to(np.eye(size), exact.shape)) > norm / 2  # a rotation by about 2‖Q‖


@pytest.mark.parametrize("size", [2, 8])
def test_cayley_is_a_rotation(size):
    q = skew(single(triangles(LARGEST_SKEW, 7, size=size)), size)
    rotation = cayley(q)
    assert defect(rotation) <= CAYLEY
    assert np.allclose(np.linalg.det(np.array(rotation, dtype=np.float64)), 1, atol=ROUNDING)
    assert mx.max(mx.abs(cayley(-q) - mx.swapaxes(rotation, -1, -2))).item() <= CAYLEY


def test_cayley_of_zero_is_the_identity_to_the_bit():
    assert mx.array_equal(cayley(mx.zeros((3, 8, 8))), mx.broadcast_to(mx.eye(8), (3, 8, 8)))


def test_skew_fills_the_upper_triangle_row_by_row():
    q = np.arange(1.0, 7.0)
    matrix = np.array(skew(single(q), 4))
    assert matrix[0].tolist() == [0, 1, 2, 3]
    assert matrix[1].tolist() == [-1, 0, 4, 5]
    assert matrix[2].tolist() == [-2, -4, 0, 6]
    assert np.array_equal(matrix, -matrix.T)


@pytest.mark.parametrize("size", [2, 8])
def test_the_reach_bounds_the_spectral_norm(size):
    layer = Butterfly(6 * size, size, 4)
    layer.oft_q = single(triangles(0.3, 4, 6, size=size))
    bound = layer.reach().item()
    assert 0.3 * (1 - ROUNDING) <= bound <= 0.3 * np.sqrt(size / 2) * (1 + ROUNDING)


@pytest.mark.parametrize(("k", "batch"), [(1, ()), (2, (3,)), (5, ()), (8, (2, 3)), (32, ())])
def test_invert_upper_equals_the_inverse(k, batch):
    rng = np.random.default_rng(1)
    matrix = np.triu(rng.normal(size=(*batch, k, k)) * 0.3, 1) + np.eye(k) * rng.uniform(0.5, 2, size=k)
    exact = np.linalg.inv(matrix)
    assert gap(invert_upper(single(matrix)), exact) <= ROUNDING * np.abs(exact).max()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("k", [2, 6, 8, 32])
def test_householder_equals_the_product_of_reflections(k, correlation):
    u = columns(64, k, correlation)
    exact = reference.householder(u)
    ours = householder_matrix(single(u))
    assert gap(ours, exact) <= (CORRELATED if correlation == 0.9 else ROUNDING)
    assert gap(ours, np.eye(64)) > 0.1
    assert defect(ours) <= (CORRELATED if correlation == 0.9 else DEFECT)
    assert np.linalg.det(np.array(ours, dtype=np.float64)) == pytest.approx(1, abs=10 * DEFECT)


@pytest.mark.parametrize("stretch", [1.0, 1.01])
def test_the_thin_defect_is_the_dense_one(stretch, monkeypatch):
    monkeypatch.setattr(householder, "ROWS", 24)  # three pieces of 64
    u = single(columns(64, 6, 0.3))
    if stretch != 1:  # no longer the core of these reflections
        exact = householder_core(u)
        monkeypatch.setattr(householder, "householder_core", lambda _: stretch * exact)
    dense = defect(householder_matrix(u) if stretch == 1 else mx.eye(64) - stretch * (u @ exact @ u.T))
    assert abs(Householder(u).defect() - dense) <= CAYLEY
    assert (dense > EFFECT) == (stretch != 1)


def test_the_defect_of_a_wide_layer_needs_no_square_matrix():
    d = 4096
    u = mx.random.normal((d, 8))
    mx.eval(u)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    assert Householder(u).defect() <= DEFECT
    assert mx.get_peak_memory() - before < 4 * d * d / 2  # bytes; half of one float32 square


def test_reversed_reflections_are_the_transpose():
    u = single(columns(48, 6, 0.3))
    forward, backward = householder_matrix(u), householder_matrix(u[:, ::-1])
    assert mx.max(mx.abs(backward - forward.T)).item() <= ROUNDING
    assert mx.max(mx.abs(backward - forward)).item() > EFFECT


def test_equal_pairs_start_at_the_identity_and_can_leave_it():
    u = paired_reflections(64, 8, mx.random.key(3))
    assert mx.allclose(mx.linalg.norm(u, axis=0), mx.ones(8), atol=ROUNDING)
    assert gap(householder_matrix(u), np.eye(64)) <= IDENTITY
    direction = mx.random.normal((64, 64))
    gradient = mx.grad(lambda u: mx.sum(householder_matrix(u) * direction))(u)
    assert mx.all(mx.isfinite(gradient)).item()
    assert mx.max(mx.abs(gradient)).item() > 0.1


@pytest.mark.parametrize(("b", "level"), [(8, 0), (8, 1), (8, 2), (4, 2), (2, 3)])
def test_a_butterfly_factor_mixes_the_features_that_peft_mixes(b, level):
    d = 64
    blocks = reference.cayley(reference.skew_matrix(triangles(0.4, d // b, size=b), b))
    x = np.random.default_rng(2).normal(size=(3, d))
    ours = rotate_factor(single(x), single(blocks), level)
    assert gap(ours, x @ reference.butterfly_factor(blocks, level)) <= ROUNDING
    half = b // 2
    mixed = (
        np.abs(reference.butterfly_factor(blocks, level))
        .reshape(d // half, half, d // half, half)
        .sum((1, 3))
    )
    assert {abs(i - j) for i, j in zip(*np.nonzero(mixed > 1e-12))} == {0, 1 << level}


def test_the_order_of_peft_is_the_one_it_documents():
    """`block_butterfly_perm` of PEFT, for 32 features in blocks of 8."""
    assert reference.butterfly_order(32, 8, 0).tolist() == list(range(32))
    expected = [*range(4), *range(8, 12), *range(4, 8), *range(12, 16)]
    assert reference.butterfly_order(32, 8, 1).tolist() == expected + [16 + i for i in expected]
    assert reference.butterfly_order(32, 8, 2)[:20].tolist() == [
        *range(4), *range(8, 12), *range(16, 20), *range(24, 28), *range(4, 8),
    ]  # fmt: skip


@pytest.mark.parametrize(("b", "m"), [(8, 1), (8, 2), (8, 3), (8, 4), (4, 4), (2, 3)])
def test_compose_butterfly_equals_the_product_of_permuted_blocks(b, m):
    d, dense = 64, dense_block_size(b, m)
    factors = reference.cayley(reference.skew_matrix(triangles(0.4, m, d // b, size=b), b))
    exact = reference.butterfly(factors)
    blocks = compose_butterfly(single(factors))
    assert blocks.shape == (d // dense, dense, dense)
    whole = rotate_blocks(mx.eye(d), blocks)
    assert gap(whole, exact) <= ROUNDING
    assert gap(whole, np.eye(d)) > 0.1
    if m > 1:
        assert gap(whole, reference.butterfly(factors[::-1])) > 0.1  # the order of factors matters


def test_negated_factors_in_reverse_are_the_transpose():
    b, m, d = 8, 3, 64
    q = triangles(0.4, m, d // b, size=b)
    whole = rotate_blocks(mx.eye(d), compose_butterfly(cayley(skew(single(q), b))))
    backward = cayley(skew(single(-q), b))
    product = mx.eye(d)
    for level in range(m):
        product = rotate_factor(product, backward[level], level)
    assert mx.max(mx.abs(product - whole.T)).item() <= ROUNDING
    assert mx.max(mx.abs(product - whole)).item() > EFFECT


def test_a_newton_schulz_step_squares_the_defect():
    rotation = cayley(skew(single(triangles(0.4, 4, size=8)), 8))
    off = rotation + 1e-3 * mx.random.normal(rotation.shape)
    before, after = defect(off), defect(nearest_rotation(off))
    assert before > 1e-3
    assert after <= before**2 * 8
    assert mx.max(mx.abs(nearest_rotation(off) - rotation)).item() < 1e-2


@pytest.mark.parametrize(
    ("d", "b", "m", "expected"),
    [(64, 8, 4, (8, 4)), (96, 8, 4, (8, 3)), (72, 8, 4, (8, 1)), (36, 8, 2, (6, 1)), (33, 8, 2, (0, 0))],
)
def test_nearest_blocks_divide(d, b, m, expected):
    assert nearest_blocks(d, b, m) == expected


def butterfly_exact(q):
    """The diagonal blocks of the whole product."""
    whole = reference.butterfly(reference.cayley(reference.skew_matrix(q, 4)))
    return np.stack([whole[i : i + 8, i : i + 8] for i in range(0, len(whole), 8)])


FUNCTIONS = {
    "cayley": (lambda q: cayley(skew(q, 8)), lambda q: reference.cayley(reference.skew_matrix(q, 8)),
               triangles(0.45, 3, size=8)),
    "butterfly": (lambda q: compose_butterfly(cayley(skew(q, 4))), butterfly_exact, triangles(0.3, 2, 4, size=4)),
    "householder": (householder_matrix, reference.householder, columns(24, 4, 0.5)),
    "paired householder": (householder_matrix, reference.householder, np.repeat(columns(24, 2, 0.0), 2, axis=1)),
    "invert_upper": (invert_upper, lambda m: np.linalg.inv(np.triu(m)), np.triu(columns(6, 6, 0.1)) + 2 * np.eye(6)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_equal_central_differences(name):
    ours, exact, point = FUNCTIONS[name]
    direction = np.random.default_rng(5).normal(size=exact(point).shape)
    gradient = np.array(mx.grad(lambda p: mx.sum(ours(p) * single(direction)))(single(point)))
    numeric = np.zeros_like(point)
    for index in np.ndindex(point.shape):
        numeric[index] = reference.central_difference(
            lambda p: float((exact(p) * direction).sum()), point, index
        )
    assert np.abs(numeric).max() > 0.1
    assert np.abs(gradient - numeric).max() <= NUMERIC_GRADIENT * np.abs(numeric).max()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: rotate_blocks(mx.zeros((3, 8)), mx.zeros((2, 4, 5))),
        lambda: cayley(mx.zeros((2, 8, 4))),
        lambda: householder_core(mx.zeros((4, 8, 8))),
        lambda: householder_matrix(mx.zeros((8, 4), dtype=mx.int32)),
    ],
)
def test_wrong_shapes_are_caught_under_test(wrong):
    with pytest.raises(TypeCheckError):
        wrong()
