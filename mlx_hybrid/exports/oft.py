"""A butterfly rotation as PEFT's OFT v2: one skew-symmetric triangle a dense block, and back.

OFT stores, for block k, the strict upper triangle of Q, row by row, and with `use_cayley_neumann: false` turns an
activation by x R, R = (I − Q)(I + Q)⁻¹: the same sense as here. Everything is float64; files hold float32.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_hybrid.adapters.butterfly import LARGEST_SKEW, Butterfly, compose_butterfly, nearest_rotation, skew
from mlx_hybrid.errors import ConfigError

LARGEST_Q = 2e3  # ‖Q‖ = √2 tan(θ/2) of one turn θ: beyond it the Cayley form loses float32's digits


def oft_form(rotation: Butterfly, name: str) -> np.ndarray:
    """Triangles (in/B, B(B−1)/2) of a butterfly's dense blocks, B = b·2^(m−1), in float32."""
    base = np.array(rotation.oft_base)
    if len(base) == 1 and np.array_equal(base, np.broadcast_to(np.eye(rotation.block_size), base.shape)):
        return np.array(rotation.oft_q)[0]
    return inverse_cayley(in_float64(compose_butterfly, factor_rotations(rotation)), name).astype(np.float32)


def factor_rotations(rotation: Butterfly) -> np.ndarray:
    """The butterfly's factors (m, in/b, b, b), orthogonal to float64: the folded base is stored in float32."""
    q, base = (np.array(value, dtype=np.float64) for value in (rotation.oft_q, rotation.oft_base))
    return rotation_of(q) @ polar(base)


def in_float64(function: Callable, *values: Any) -> np.ndarray:
    """What a function of adapters/butterfly.py gives in float64, which MLX has on the CPU alone."""
    with mx.stream(mx.cpu):
        wide = [mx.array(v, dtype=mx.float64) if isinstance(v, np.ndarray) else v for v in values]
        return np.array(function(*wide))


def skew_of(triangle: np.ndarray) -> np.ndarray:
    """Q (…, B, B) of triangles (…, B(B−1)/2)."""
    return in_float64(skew, triangle, block_of(triangle))


def block_of(triangle: np.ndarray) -> int:
    """B of triangles of B(B−1)/2 entries."""
    return (1 + int(np.sqrt(1 + 8 * triangle.shape[-1]))) // 2


def rotation_of(triangle: np.ndarray) -> np.ndarray:
    """R = (I − Q)(I + Q)⁻¹ (…, B, B); the factors commute, so the order of the solve is free."""
    q = skew_of(triangle)
    identity = np.eye(q.shape[-1])
    return np.linalg.solve(identity + q, identity - q)


def inverse_cayley(rotation: np.ndarray, name: str) -> np.ndarray:
    """The triangle (…, B(B−1)/2) of Q = (I + R)⁻¹(I − R); half a circle, an eigenvalue of −1, has none."""
    identity = np.eye(rotation.shape[-1])
    try:
        q = np.linalg.solve(identity + rotation, identity - rotation)
    except np.linalg.LinAlgError:  # an eigenvalue of −1, exactly
        q = np.full_like(rotation, np.inf)
    if not np.linalg.norm(q, axis=(-2, -1)).max() <= LARGEST_Q:
        told = "its rotation turns some direction by half a circle, which OFT cannot say"
        raise ConfigError(f"{name}: {told}; use --to merged.")
    q = 0.5 * (q - q.swapaxes(-1, -2))
    return q[..., *np.triu_indices(q.shape[-1], 1)]


def polar(blocks: np.ndarray) -> np.ndarray:
    """The orthogonal matrices nearest to almost orthogonal ones; the second step is float64's rounding."""
    return in_float64(lambda r: nearest_rotation(nearest_rotation(r)), blocks)


def leaves_of(triangle: np.ndarray, name: str) -> dict[str, mx.array]:
    """Leaves of a one-factor butterfly with the rotation of an OFT triangle (in/B, B(B−1)/2).

    Beyond ‖Q‖₂ = 0.5, where the layer's series stops being exact, R goes into the base and only what float32 lost
    of it into Q, so that `oft_form` finds the triangle again to its last bit.
    """
    size = block_of(triangle)
    base = np.broadcast_to(np.eye(size, dtype=np.float32), (len(triangle), size, size))
    if np.linalg.norm(triangle.astype(np.float64), axis=-1).max(initial=0) > LARGEST_SKEW:
        rotation = rotation_of(triangle)
        base = rotation.astype(np.float32)
        triangle = inverse_cayley(rotation @ polar(base).swapaxes(-1, -2), name)
    return {"oft_q": mx.array(triangle.astype(np.float32))[None], "oft_base": mx.array(base)[None]}
