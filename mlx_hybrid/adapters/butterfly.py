"""Rotations as pure functions: Householder chains and butterfly products of Cayley blocks.

Everything is a matmul, so every step runs on the GPU; factorisations from `mx.linalg` exist on the CPU stream only
and have no gradient. Row-vector convention: an activation `x` (…, d) is rotated as `x R`.
"""

import math
from functools import cache

import mlx.core as mx
import numpy as np
from jaxtyping import Float

CAYLEY_TERMS = 5  # doublings: 32 terms of the series, 1e-7 for ‖Q‖₂ ≤ 0.5
ROWS = 512  # of a (d, d) product that are alive at once
LARGEST_SKEW = 0.5  # ‖Q‖₂ beyond which a factor is folded away; the series is exact to float32 below it


@mx.custom_function
def invert_upper(m: Float[mx.array, "*batch k k"]) -> Float[mx.array, "*batch k k"]:
    """Inverse of upper-triangular `m` (…, k, k) by recursive 2×2 blocks.

    [[A, B], [0, C]]⁻¹ = [[A⁻¹, −A⁻¹ B C⁻¹], [0, C⁻¹]], log₂ k levels of matmuls. Exact to rounding where a nilpotent
    series blows up: ≤ 2.3e-6 at k = 32 with columns correlated 0.9. Gradient: dM = −M⁻ᵀ G M⁻ᵀ.
    """
    *batch, k, _ = m.shape
    size = 1 << max(0, (k - 1).bit_length())
    if size != k:  # pad to a power of two with ones on the diagonal
        width = [(0, 0)] * len(batch) + [(0, size - k)] * 2
        m = mx.pad(m, width) + mx.diag(mx.concatenate([mx.zeros(k), mx.ones(size - k)]))
    blocks = mx.expand_dims(1 / mx.diagonal(m, axis1=-2, axis2=-1), (-1, -2))
    width = 1
    while width < size:
        pairs = size // (2 * width)
        grid = m.reshape(*batch, pairs, 2, width, pairs, 2, width)
        upper = mx.diagonal(grid[..., :, 0, :, :, 1, :], axis1=-4, axis2=-2)
        upper = mx.moveaxis(upper, -1, -3)
        first, second = blocks[..., 0::2, :, :], blocks[..., 1::2, :, :]
        corner = -(first @ upper @ second)
        top = mx.concatenate([first, corner], axis=-1)
        bottom = mx.concatenate([mx.zeros_like(corner), second], axis=-1)
        blocks = mx.concatenate([top, bottom], axis=-2)
        width *= 2
    return blocks[..., 0, :k, :k]


@invert_upper.vjp
def invert_upper_vjp(m: mx.array, cotangent: mx.array, inverse: mx.array) -> mx.array:
    transposed = mx.swapaxes(inverse, -1, -2)
    return mx.triu(-(transposed @ cotangent @ transposed))


def householder_core(u: Float[mx.array, "d k"]) -> Float[mx.array, "k k"]:
    """T (k, k) with H₀ H₁ … H_{k−1} = I − U T Uᵀ, H_i = I − 2 uᵢuᵢᵀ/‖uᵢ‖², for the columns of U (d, k).

    Compact WY: T = (½ diag(UᵀU) + strict-upper(UᵀU))⁻¹. Columns need not be of unit length.
    Yuan et al. 2024 (HRA), arXiv 2405.17484; Joffrain et al. 2006 for the UT transform.
    """
    return core_of_gram(u.T @ u)


def core_of_gram(gram: Float[mx.array, "*batch k k"]) -> Float[mx.array, "*batch k k"]:
    """T of `householder_core` from UᵀU (…, k, k)."""
    return invert_upper(mx.triu(gram, 1) + 0.5 * gram * mx.eye(gram.shape[-1]))


def householder_matrix(u: Float[mx.array, "d k"]) -> Float[mx.array, "d d"]:
    """R = I − U T Uᵀ (d, d), dense; for merging and for tests."""
    return mx.eye(u.shape[0]) - u @ householder_core(u) @ u.T


def paired_reflections(d: int, k: int, key: mx.array) -> Float[mx.array, "{d} {k}"]:
    """U (d, k) of unit columns in equal pairs, so that R = I: each reflection is undone by the next."""
    half = mx.random.normal((d, k // 2), key=key)
    half = half / mx.linalg.norm(half, axis=0, keepdims=True)
    return mx.repeat(half, 2, axis=1)


def skew(q: Float[mx.array, "*batch t"], size: int) -> Float[mx.array, "*batch {size} {size}"]:
    """Skew-symmetric (…, b, b) from its strict upper triangle (…, b(b−1)/2), row by row (PEFT's order).

    As a product with a (t, b²) matrix of 0 and ±1: exact, and quicker than gathering, whose gradient scatters.
    """
    return (q @ mx.array(skew_basis(size))).reshape(*q.shape[:-1], size, size)


@cache
def skew_basis(size: int) -> np.ndarray:
    """(t, b²): row i is the skew matrix whose i-th free entry is 1."""
    rows, columns = np.triu_indices(size, 1)
    basis = np.zeros((len(rows), size, size), dtype=np.float32)
    basis[np.arange(len(rows)), rows, columns] = 1
    basis[np.arange(len(rows)), columns, rows] = -1
    return basis.reshape(len(rows), size * size)


@mx.custom_function
def cayley(q: Float[mx.array, "*batch b b"]) -> Float[mx.array, "*batch b b"]:
    """Cayley map R = (I − Q)(I + Q)⁻¹ of skew-symmetric Q (…, b, b): orthogonal with determinant 1.

    (I + Q)⁻¹ is the Neumann series summed by doubling, Π_{k<5} (I + (−Q)^(2^k)): no inverse, valid to float32 for
    ‖Q‖₂ ≤ 0.5. R(−Q) = R(Q)ᵀ, and R(0) = I to the bit. Gradient: dQ = −½ (I + R)ᵀ G (I + R)ᵀ.

    Liu et al. 2023 (BOFT), arXiv 2311.06243, section 4.
    """
    identity = mx.eye(q.shape[-1])
    power = -q
    inverse = identity + power
    for _ in range(CAYLEY_TERMS - 1):
        power = power @ power
        inverse = inverse + inverse @ power
    return 2 * inverse - identity


@cayley.vjp
def cayley_vjp(q: mx.array, cotangent: mx.array, rotation: mx.array) -> mx.array:
    sides = mx.swapaxes(rotation + mx.eye(rotation.shape[-1]), -1, -2)
    return -0.5 * (sides @ cotangent @ sides)


def rotate_factor(
    x: Float[mx.array, "*batch n d"], blocks: Float[mx.array, "*batch blocks b b"], level: int
) -> Float[mx.array, "*batch n d"]:
    """Rows `x` (…, n, D) times butterfly factor `level`, blocks (…, D/b, b, b).

    Factor i mixes half-blocks 2^i apart: within a chunk of b·2^i features, block t holds half-blocks t and t + 2^i
    (the order of PEFT's BOFT). Factor 0 is plain consecutive blocks.
    """
    *batch, n, width = x.shape
    b, stride = blocks.shape[-1], 1 << level
    chunks = width // (b * stride)
    x = x.reshape(*batch, n, chunks, 2, stride, b // 2).swapaxes(-3, -2)
    x = x.reshape(*batch, n, width // b, b).swapaxes(-3, -2)
    x = (x @ blocks).swapaxes(-3, -2)
    return x.reshape(*batch, n, chunks, stride, 2, b // 2).swapaxes(-3, -2).reshape(*batch, n, width)


def compose_butterfly(factors: Float[mx.array, "m blocks b b"]) -> Float[mx.array, "groups size size"]:
    """Dense blocks (d/B, B, B), B = b·2^(m−1), of R = F_{m−1} … F₀ from its factors (m, d/b, b, b).

    From F₀'s own blocks upwards: factor i joins pairs of (s, s) blocks, s = b·2^(i−1), and as the half-blocks that it
    mixes lie one in each of a pair, only half of each of its blocks meets either. d·B·b multiplications in all, once a
    step, and one batched product is left on the activations.
    """
    m, blocks, b, _ = factors.shape
    product = factors[0]
    for level in range(1, m):
        stride = 1 << level  # half-blocks in one of the pair
        pairs, s = blocks // stride, stride * b // 2
        halves = factors[level].reshape(pairs, stride, b, 2, b // 2)
        halves = mx.transpose(halves, (0, 3, 1, 2, 4))  # (pairs, 2, stride, b, b/2): by the half they read
        joined = halves @ product.reshape(pairs, 2, stride, b // 2, s)
        joined = joined.reshape(pairs, 2, stride, 2, b // 2, s)
        product = mx.transpose(joined, (0, 3, 2, 4, 1, 5)).reshape(pairs, 2 * s, 2 * s)
    return product


@mx.custom_function
def rotate_blocks(
    x: Float[mx.array, "*batch d"], dense: Float[mx.array, "blocks b b"]
) -> Float[mx.array, "*batch d"]:
    """x R for block-diagonal R: consecutive groups of B features of `x` (…, d), each times its own (B, B).

    The gradient, dX = G Rᵀ and dR = Xᵀ G by blocks, brings G into groups once for both, and keeps no grouped X.
    """
    return ungroup(group(x, dense.shape[0]) @ dense, x.shape)


@rotate_blocks.vjp
def rotate_blocks_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    x, dense = primals
    grouped, inputs = (mx.contiguous(group(a, dense.shape[0])) for a in (cotangent, x))
    back = ungroup(grouped @ mx.swapaxes(dense, -1, -2), x.shape)
    return back, mx.swapaxes(inputs, -1, -2) @ grouped


def group(x: Float[mx.array, "*batch d"], blocks: int) -> Float[mx.array, "{blocks} n b"]:
    """(…, d) as (blocks, n, d/blocks): each group of features on its own."""
    return x.reshape(-1, blocks, x.shape[-1] // blocks).swapaxes(0, 1)


def ungroup(grouped: Float[mx.array, "blocks n b"], shape: tuple[int, ...]) -> mx.array:
    return grouped.swapaxes(0, 1).reshape(shape)


def skew_norm(q: Float[mx.array, "*batch t"]) -> Float[mx.array, ""]:
    """An upper bound of max ‖Q‖₂ over all blocks: for skew Q, ‖Q‖₂ ≤ ‖Q‖_F/√2 = ‖triangle‖₂."""
    return mx.sqrt(mx.max(mx.sum(mx.square(q), axis=-1)))


def nearest_rotation(r: Float[mx.array, "*batch b b"]) -> Float[mx.array, "*batch b b"]:
    """One Newton–Schulz step towards orthogonality: R (3I − RᵀR)/2, quadratic near it."""
    return 1.5 * r - 0.5 * (r @ (mx.swapaxes(r, -1, -2) @ r))


def defect(r: Float[mx.array, "*batch b b"]) -> float:
    """max |R Rᵀ − I| over blocks (…, b, b)."""
    return float(mx.max(mx.abs(r @ mx.swapaxes(r, -1, -2) - mx.eye(r.shape[-1]))))


def householder_defect(u: Float[mx.array, "d k"]) -> float:
    """max |R Rᵀ − I| for R = I − U T Uᵀ: of U (T Uᵀ U Tᵀ − T − Tᵀ) Uᵀ, by rows, so that no (d, d) is formed."""
    core = householder_core(u)
    thin = u @ (core @ (u.T @ u) @ core.T - core - core.T)
    parts = (mx.max(mx.abs(thin[i : i + ROWS] @ u.T)).item() for i in range(0, u.shape[0], ROWS))
    return max(parts)


def dense_block_size(block_size: int, factors: int) -> int:
    """B = b·2^(m−1)."""
    return block_size << (factors - 1)


def nearest_blocks(d: int, block_size: int, factors: int) -> tuple[int, int]:
    """(b, m) near the ones asked whose dense block divides `d`: fewer factors first, then the largest even b."""
    for m in range(factors, 0, -1):
        if d % dense_block_size(block_size, m) == 0:
            return block_size, m
    for b in range(block_size, 1, -1):
        if b % 2 == 0 and d % b == 0:
            return b, 1
    return 0, 0


def triangle_size(size: int) -> int:
    """Free entries of a skew-symmetric (b, b)."""
    return math.comb(size, 2)
