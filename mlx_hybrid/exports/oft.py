"""A butterfly rotation as PEFT's OFT v2: one skew-symmetric triangle a dense block, and back.

OFT stores, for block k, the strict upper triangle of Q, row by row, and with `use_cayley_neumann: false` turns an
activation by x R, R = (I − Q)(I + Q)⁻¹: the same sense as here. Everything is float64; files hold float32.
"""

import mlx.core as mx
import numpy as np

from mlx_hybrid.adapters.butterfly import LARGEST_SKEW, Butterfly
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.lora import float64

LARGEST_Q = 2e3  # ‖Q‖ = √2 tan(θ/2) of one turn θ: beyond it the Cayley form loses float32's digits
POLAR_STEPS = 2  # Newton–Schulz is quadratic: 1e-5 is 1e-10 after one step and float64's rounding after two


def oft_form(layer: HybridLinear, name: str) -> np.ndarray:
    """Triangles (in/B, B(B−1)/2) of a butterfly's dense blocks, B = b·2^(m−1), in float32.

    Raises ConfigError where a block turns by half a circle: an eigenvalue of −1 has no Cayley form.
    """
    rotation = layer.rotation
    base = np.array(rotation.oft_base)
    if len(base) == 1 and np.array_equal(base, np.broadcast_to(np.eye(rotation.block_size), base.shape)):
        return np.array(rotation.oft_q)[0]
    return inverse_cayley(dense_rotation(rotation), name).astype(np.float32)


def dense_rotation(rotation: Butterfly) -> np.ndarray:
    """R as dense blocks (in/B, B, B) in float64."""
    factors, b, size = factor_rotations(rotation), rotation.block_size, rotation.dense_size
    count = factors.shape[1] * b // size
    blocks = factors.reshape(len(factors), count, -1, b, b)
    product = np.broadcast_to(np.eye(size), (count, size, size))
    for level in reversed(range(len(factors))):
        product = rotate_factor(product, blocks[level], level)
    return product


def factor_rotations(rotation: Butterfly) -> np.ndarray:
    """The butterfly's factors (m, in/b, b, b), orthogonal to float64: the folded base is stored in float32."""
    skews = skew(float64(rotation.oft_q), rotation.block_size)
    return cayley(skews) @ nearest_rotation(float64(rotation.oft_base))


def rotate_factor(rows: np.ndarray, blocks: np.ndarray, level: int) -> np.ndarray:
    """Rows (…, n, D) times butterfly factor `level`, by PEFT's gather: half-blocks evens first, then odds."""
    order = half_block_order(rows.shape[-1], blocks.shape[-1], level)
    gathered = rows[..., order]
    size = blocks.shape[-1]
    split = gathered.reshape(*gathered.shape[:-1], -1, size)
    turned = np.einsum("...nti,...tij->...ntj", split, blocks).reshape(gathered.shape)
    result = np.empty_like(turned)
    result[..., order] = turned
    return result


def half_block_order(width: int, size: int, level: int) -> np.ndarray:
    """Which input stands where before factor `level`: it mixes half-blocks 2^level apart."""
    half, stride = size // 2, 1 << level
    units = np.arange(width // half).reshape(-1, 2, stride)  # within a chunk: half-blocks u and u + 2^level
    paired = units.swapaxes(1, 2).reshape(-1)
    return (paired[:, None] * half + np.arange(half)).reshape(-1)


def skew(triangle: np.ndarray, size: int) -> np.ndarray:
    """Q (…, B, B) from its strict upper triangle (…, B(B−1)/2)."""
    rows, columns = np.triu_indices(size, 1)
    q = np.zeros((*triangle.shape[:-1], size, size))
    q[..., rows, columns] = triangle
    return q - q.swapaxes(-1, -2)


def cayley(q: np.ndarray) -> np.ndarray:
    """R = (I − Q)(I + Q)⁻¹; the factors commute, so the order of the solve is free."""
    identity = np.eye(q.shape[-1])
    return np.linalg.solve(identity + q, identity - q)


def inverse_cayley(rotation: np.ndarray, name: str) -> np.ndarray:
    """The triangle (…, B(B−1)/2) of Q = (I + R)⁻¹(I − R)."""
    size = rotation.shape[-1]
    identity = np.eye(size)
    try:
        q = np.linalg.solve(identity + rotation, identity - rotation)
    except np.linalg.LinAlgError:  # an eigenvalue of −1, exactly
        q = np.full_like(rotation, np.inf)
    if not np.linalg.norm(q, axis=(-2, -1)).max() <= LARGEST_Q:
        raise ConfigError(
            f"{name}: its rotation turns some direction by half a circle, which OFT cannot say; use --to merged."
        )
    q = 0.5 * (q - q.swapaxes(-1, -2))
    rows, columns = np.triu_indices(size, 1)
    return q[..., rows, columns]


def nearest_rotation(blocks: np.ndarray) -> np.ndarray:
    """The orthogonal matrices nearest to almost orthogonal ones."""
    for _ in range(POLAR_STEPS):
        blocks = 1.5 * blocks - 0.5 * blocks @ (blocks.swapaxes(-1, -2) @ blocks)
    return blocks


def butterfly_leaves(triangle: np.ndarray, name: str) -> dict[str, mx.array]:
    """Leaves of a one-factor butterfly with the rotation of an OFT triangle (in/B, B(B−1)/2).

    Beyond ‖Q‖₂ = 0.5, where the layer's series stops being exact, R goes into the base and only what float32 lost
    of it into Q, so that `oft_form` finds the triangle again to its last bit.
    """
    size = block_of(triangle.shape[-1])
    identity = np.broadcast_to(np.eye(size), (len(triangle), size, size))
    if np.sqrt((triangle.astype(np.float64) ** 2).sum(axis=-1)).max(initial=0) <= LARGEST_SKEW:
        return leaves(triangle, identity)
    rotation = cayley(skew(triangle.astype(np.float64), size))
    stored = rotation.astype(np.float32)
    lost = rotation @ nearest_rotation(stored.astype(np.float64)).swapaxes(-1, -2)
    return leaves(inverse_cayley(lost, name), stored)


def leaves(triangle: np.ndarray, base: np.ndarray) -> dict[str, mx.array]:
    return {
        "oft_q": mx.array(triangle.astype(np.float32))[None],
        "oft_base": mx.array(base.astype(np.float32))[None],
    }


def block_of(entries: int) -> int:
    """B from B(B−1)/2."""
    return (1 + int(np.sqrt(1 + 8 * entries))) // 2
