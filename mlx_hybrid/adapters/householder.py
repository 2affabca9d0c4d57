"""Rotations made of Householder reflections, in compact WY form.

    R = I − U T Uᵀ,  T = (½ diag(UᵀU) + strict-upper(UᵀU))⁻¹        U (in, k),  T (k, k)

A step is matmuls alone: factorisations of `mx.linalg` exist on the CPU stream only and have no gradient.
Yuan et al. 2024 (HRA), arXiv 2405.17484; Joffrain et al. 2006 for the UT transform.
"""

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float

ROWS = 512  # of a (d, d) product that are alive at once


class Householder(nn.Module):
    """R of k reflections, the columns of `house_u` (in, k); their lengths do not matter to R but by rounding."""

    refold_every = 10

    def __init__(self, u: Float[mx.array, "d k"]):
        super().__init__()
        self.house_u, self._core = u, None

    def rotate(self, x: mx.array) -> mx.array:
        """x R (…, in)."""
        return self.rotate_beside(x)[0]

    def rotate_beside(self, x: mx.array, down: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """x R = x − (x U) T Uᵀ (…, in) and x A (…, r), from one product with [U, A]."""
        u, k = self.house_u.astype(x.dtype), self.house_u.shape[1]
        both = x @ (u if down is None else mx.concatenate([u, down], axis=1))
        core = householder_core(self.house_u) if self._core is None else self._core
        return x - (both[..., :k] @ core.astype(x.dtype)) @ u.T, both[..., k:]

    def merge(self, weight: mx.array) -> mx.array:
        """W Rᵀ (…, out, in) in float32, thin products alone."""
        u = self.house_u
        return weight - ((weight @ u) @ householder_core(u).T) @ u.T

    def defect(self) -> float:
        """max |R Rᵀ − I|, of U (T Uᵀ U Tᵀ − T − Tᵀ) Uᵀ, by rows, so that no (in, in) is formed."""
        u, core = self.house_u, householder_core(self.house_u)
        thin = u @ (core @ (u.T @ u) @ core.T - core - core.T)
        return max(mx.max(mx.abs(thin[i : i + ROWS] @ u.T)).item() for i in range(0, u.shape[0], ROWS))

    def reach(self) -> mx.array:
        """0: no column has to be folded away however far it went."""
        return mx.array(0.0)

    def refold(self, reach: float | None = None) -> bool:
        """Renormalise the columns; nothing is folded, so False."""
        self.house_u = self.house_u / mx.linalg.norm(self.house_u, axis=0, keepdims=True)
        return False

    def settle(self, core: mx.array | None = None) -> None:
        """Form T once, or take it as formed with other layers'; to follow the leaves again, `unsettle`."""
        self._core = householder_core(self.house_u) if core is None else core

    @property
    def settled(self) -> bool:
        return self._core is not None

    def unsettle(self) -> None:
        self._core = None


@mx.custom_function
def invert_upper(m: Float[mx.array, "*batch k k"]) -> Float[mx.array, "*batch k k"]:
    """Inverse of upper-triangular `m` (…, k, k) by recursive 2×2 blocks, [[A, B], [0, C]]⁻¹ = [[A⁻¹, −A⁻¹ B C⁻¹], [0,
    C⁻¹]]. Exact to rounding where a nilpotent series blows up: ≤ 2.3e-6 at k = 32 with columns correlated 0.9."""
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
        upper = mx.moveaxis(mx.diagonal(grid[..., :, 0, :, :, 1, :], axis1=-4, axis2=-2), -1, -3)
        first, second = blocks[..., 0::2, :, :], blocks[..., 1::2, :, :]
        corner = -(first @ upper @ second)
        top = mx.concatenate([first, corner], axis=-1)
        bottom = mx.concatenate([mx.zeros_like(corner), second], axis=-1)
        blocks = mx.concatenate([top, bottom], axis=-2)
        width *= 2
    return blocks[..., 0, :k, :k]


@invert_upper.vjp
def invert_upper_vjp(m: mx.array, cotangent: mx.array, inverse: mx.array) -> mx.array:
    """dM = −M⁻ᵀ G M⁻ᵀ."""
    transposed = mx.swapaxes(inverse, -1, -2)
    return mx.triu(-(transposed @ cotangent @ transposed))


def householder_core(u: Float[mx.array, "d k"]) -> Float[mx.array, "k k"]:
    """T (k, k) with H₀ H₁ … H_{k−1} = I − U T Uᵀ, H_i = I − 2 uᵢuᵢᵀ/‖uᵢ‖², for the columns of U (d, k)."""
    return core_of_gram(u.T @ u)


def core_of_gram(gram: Float[mx.array, "*batch k k"]) -> Float[mx.array, "*batch k k"]:
    """T of `householder_core` from UᵀU (…, k, k)."""
    return invert_upper(mx.triu(gram, 1) + 0.5 * gram * mx.eye(gram.shape[-1]))


def paired_reflections(d: int, k: int, key: mx.array) -> Float[mx.array, "{d} {k}"]:
    """U (d, k) of unit columns in equal pairs, so that R = I: each reflection is undone by the next."""
    half = mx.random.normal((d, k // 2), key=key)
    return mx.repeat(half / mx.linalg.norm(half, axis=0, keepdims=True), 2, axis=1)
