"""Rotations made of butterfly factors, whose blocks are Cayley maps of skew-symmetric matrices.

    R = F_{m−1} … F₀,  F_i = Cayley(Q_i) · base_i in blocks (b, b) that mix half-blocks 2^i apart

The product is block-diagonal with dense blocks of B = b·2^(m−1): they are composed once a step, and one batched
product is left on the activations. Liu et al. 2023 (BOFT), arXiv 2311.06243.
"""

from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from jaxtyping import Float

CAYLEY_TERMS = 5  # doublings: 32 terms of the series, 1e-7 for ‖Q‖₂ ≤ 0.5
LARGEST_SKEW = 0.5  # ‖Q‖₂ beyond which a factor is folded away; the series is exact to float32 below it


class Butterfly(nn.Module):
    """R of m factors: `oft_q` (m, in/b, b(b−1)/2) is trained, `oft_base` (m, in/b, b, b) holds what was folded."""

    refold_every = 1  # steps all of one sign take ‖Q‖₂ beyond the series' reach within ten

    def __init__(self, d_in: int, block_size: int, factors: int):
        super().__init__()
        blocks = d_in // block_size
        self.block_size, self.dense_size = block_size, dense_block_size(block_size, factors)
        self.oft_q = mx.zeros((factors, blocks, block_size * (block_size - 1) // 2))
        self.oft_base = mx.broadcast_to(mx.eye(block_size), (factors, blocks, block_size, block_size)) + 0
        self._dense = None
        self.freeze(keys=["oft_base"])

    def rotate(self, x: mx.array) -> mx.array:
        """x R (…, in)."""
        dense = self.dense_blocks() if self._dense is None else self._dense
        return rotate_blocks(x, dense.astype(x.dtype))

    def rotate_beside(self, x: mx.array, down: mx.array) -> tuple[mx.array, mx.array]:
        return self.rotate(x), x @ down

    def merge(self, weight: mx.array) -> mx.array:
        """W Rᵀ (…, out, in) in float32."""
        return rotate_blocks(weight, mx.swapaxes(self.dense_blocks(), -1, -2))

    def dense_blocks(self) -> mx.array:
        """R as dense blocks (in/B, B, B), formed anew in the backward pass, which costs less than keeping them."""
        return mx.checkpoint(lambda q, base: compose_butterfly(turned(q, base)))(self.oft_q, self.oft_base)

    def defect(self) -> float:
        return defect(self.dense_blocks())

    def reach(self) -> mx.array:
        """An upper bound of the largest ‖Q‖₂ among the blocks: for skew Q, ‖Q‖₂ ≤ ‖Q‖_F/√2 = ‖triangle‖₂."""
        return mx.max(mx.linalg.norm(self.oft_q, axis=-1))

    def refold(self, reach: float | None = None) -> bool:
        """Fold Q into `oft_base` where its `reach` (read anew if None) is beyond the series; whether it was. R stays
        but for one Newton–Schulz step, and Adam's moments: the tangent space is the same up to the fold's rotation."""
        if (self.reach().item() if reach is None else reach) <= LARGEST_SKEW:
            return False
        self.oft_base = nearest_rotation(turned(self.oft_q, self.oft_base))
        self.oft_q = mx.zeros_like(self.oft_q)
        return True

    def settle(self) -> None:
        """Form R once; to follow the leaves again, `unsettle`."""
        self._dense = self.dense_blocks()

    @property
    def settled(self) -> bool:
        return self._dense is not None

    def unsettle(self) -> None:
        self._dense = None


def turned(q: mx.array, base: mx.array) -> mx.array:
    """A butterfly's factors (m, in/b, b, b): Cayley(Q) · base."""
    return cayley(skew(q, base.shape[-1])) @ base


def skew(q: Float[mx.array, "*batch t"], size: int) -> Float[mx.array, "*batch {size} {size}"]:
    """Skew-symmetric (…, b, b) from its strict upper triangle (…, b(b−1)/2), row by row (PEFT's order)."""
    # a product with 0 and ±1 is exact, and quicker than gathering, whose gradient scatters
    return (q @ mx.array(skew_basis(size))).reshape(*q.shape[:-1], size, size)


@cache
def skew_basis(size: int) -> np.ndarray:
    """(t, b²): row i is the skew matrix whose i-th free entry is 1."""
    rows, columns = np.triu_indices(size, 1)
    basis = np.zeros((len(rows), size, size), dtype=np.float32)
    basis[np.arange(len(rows)), rows, columns] = 1
    return (basis - basis.swapaxes(1, 2)).reshape(len(rows), size * size)


@mx.custom_function
def cayley(q: Float[mx.array, "*batch b b"]) -> Float[mx.array, "*batch b b"]:
    """Cayley map R = (I − Q)(I + Q)⁻¹ of skew-symmetric Q (…, b, b): orthogonal with determinant 1. (I + Q)⁻¹ is the
    Neumann series summed by doubling, Π_{k<5} (I + (−Q)^(2^k)): no inverse, valid to float32 for ‖Q‖₂ ≤ 0.5. R(−Q) =
    R(Q)ᵀ, and R(0) = I to the bit."""
    identity, power = mx.eye(q.shape[-1]), -q
    inverse = identity + power
    for _ in range(CAYLEY_TERMS - 1):
        power = power @ power
        inverse = inverse + inverse @ power
    return 2 * inverse - identity


@cayley.vjp
def cayley_vjp(q: mx.array, cotangent: mx.array, rotation: mx.array) -> mx.array:
    """dQ = −½ (I + R)ᵀ G (I + R)ᵀ."""
    sides = mx.swapaxes(rotation + mx.eye(rotation.shape[-1]), -1, -2)
    return -0.5 * (sides @ cotangent @ sides)


def rotate_factor(x: Float[mx.array, "*batch n d"], blocks: mx.array, level: int) -> mx.array:
    """Rows `x` (…, n, D) times butterfly factor `level`, blocks (…, D/b, b, b). Within a chunk of b·2^level features
    block t holds half-blocks t and t + 2^level: the order of PEFT's BOFT."""
    *batch, n, width = x.shape
    b, stride = blocks.shape[-1], 1 << level
    chunks = width // (b * stride)
    x = x.reshape(*batch, n, chunks, 2, stride, b // 2).swapaxes(-3, -2)
    x = x.reshape(*batch, n, width // b, b).swapaxes(-3, -2)
    x = (x @ blocks).swapaxes(-3, -2)
    return x.reshape(*batch, n, chunks, stride, 2, b // 2).swapaxes(-3, -2).reshape(*batch, n, width)


def compose_butterfly(factors: Float[mx.array, "m blocks b b"]) -> Float[mx.array, "groups size size"]:
    """Dense blocks (d/B, B, B), B = b·2^(m−1), of R = F_{m−1} … F₀ from its factors (m, d/b, b, b). Factor i joins
    pairs of (s, s) blocks, s = b·2^(i−1), from F₀'s own upwards. The half-blocks that it mixes lie one in each of a
    pair, so only half of each of its blocks meets either: d·B·b multiplications in all."""
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
def rotate_blocks(x: Float[mx.array, "*batch d"], dense: Float[mx.array, "blocks b b"]) -> mx.array:
    """x R for block-diagonal R: consecutive groups of B features of `x` (…, d), each times its own (B, B)."""
    return (group(x, dense.shape[0]) @ dense).swapaxes(0, 1).reshape(x.shape)


@rotate_blocks.vjp
def rotate_blocks_vjp(primals: tuple, cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    """dX = G Rᵀ and dR = Xᵀ G by blocks; G comes into groups once for both, and no grouped X is kept."""
    x, dense = primals
    grouped, inputs = (mx.contiguous(group(a, dense.shape[0])) for a in (cotangent, x))
    back = (grouped @ mx.swapaxes(dense, -1, -2)).swapaxes(0, 1).reshape(x.shape)
    return back, mx.swapaxes(inputs, -1, -2) @ grouped


def group(x: Float[mx.array, "*batch d"], blocks: int) -> Float[mx.array, "{blocks} n b"]:
    """(…, d) as (blocks, n, d/blocks): each group of features on its own."""
    return x.reshape(-1, blocks, x.shape[-1] // blocks).swapaxes(0, 1)


def nearest_rotation(r: Float[mx.array, "*batch b b"]) -> Float[mx.array, "*batch b b"]:
    """One Newton–Schulz step towards orthogonality: R (3I − RᵀR)/2, quadratic near it."""
    return 1.5 * r - 0.5 * (r @ (mx.swapaxes(r, -1, -2) @ r))


def defect(r: Float[mx.array, "*batch b b"]) -> float:
    """max |R Rᵀ − I| over blocks (…, b, b)."""
    return float(mx.max(mx.abs(r @ mx.swapaxes(r, -1, -2) - mx.eye(r.shape[-1]))))


def dense_block_size(block_size: int, factors: int) -> int:
    """B = b·2^(m−1)."""
    return block_size << (factors - 1)


def nearest_blocks(d: int, block_size: int, factors: int) -> tuple[int, int]:
    """(b, m) near those asked whose dense block divides `d`: fewer factors, else the largest even b, else zeros."""
    fewer = [(block_size, m) for m in range(factors, 0, -1) if d % dense_block_size(block_size, m) == 0]
    smaller = [(b, 1) for b in range(block_size, 1, -1) if b % 2 == 0 and d % b == 0]
    return [*fewer, *smaller, (0, 0)][0]
