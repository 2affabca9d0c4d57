"""An adapted layer as one LoRA, where it is exactly one, and as the best truncated one where it is not.

Row vectors: a LoRA adds x A B with A (in, r), B (r, out), the scale folded into B. Arithmetic is float64 except the
product with the base weight, which is float32 on orthonormal vectors, so nothing cancels.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear

from mlx_hybrid.adapters.butterfly import Butterfly, rotate_blocks, rotate_factor
from mlx_hybrid.adapters.householder import Householder
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.adapters.strength import chain
from mlx_hybrid.exports import oft

NULL = 1e-7  # singular values below this share of the largest are under float32's resolution of the update
FLOOR = 1e-12  # an update this small is the rounding of an untrained layer
BALANCED = 1e-6  # float32 factors of a balanced pair are orthogonal and equal in norm to about 1e-7
DENSE_SVD = 1024  # up to this many rows a full SVD is quicker than sketching
CHUNK = 1 << 20  # weights converted at once: 4 MiB in float32, which stays in the cache
OVERSAMPLE, POWER_ITERATIONS = 16, 4  # Halko et al. 2011, arXiv 0909.4061: enough for slowly falling spectra

Factors = tuple[np.ndarray, np.ndarray]


def lora_form(layer: HybridLinear, x: np.ndarray) -> tuple[Factors, np.ndarray]:
    """A' (in, q), B' (q, out) with x A' B' equal to all the layer adds to its base but a butterfly's turn; and, worked
    out apart, what it so adds to rows x (n, in).

    Householder is exactly a LoRA: x R Wᵀ = x Wᵀ − x U T Uᵀ Wᵀ, so A' = [U, A] and B' = [−T Uᵀ Wᵀ; s B]. With U = Q C
    (thin QR) it is A' = Q, B' = −(C T Cᵀ) QᵀWᵀ: the near-cancelling columns of U meet only in float64, and the weight
    is read once for both results. Of DoRA it is the update inside the norm.
    """
    a, b = low_rank_factors(layer)
    added = (x @ a) @ b
    if isinstance(layer.rotation, Householder):
        q, r = np.linalg.qr(float64(layer.rotation.house_u))
        span, turn = np.split(base_product(layer, np.concatenate([q.T, turned(layer, x) - x])), [q.shape[1]])
        b = np.concatenate([(chain(r) - np.eye(len(r))) @ span, b])
        a, added = np.concatenate([q, a], axis=1), added + turn
    return refactor(a, b), added


def turned(layer: HybridLinear, x: np.ndarray) -> np.ndarray:
    """x R in float64, one reflection or one factor after another, where the export goes through compact forms."""
    rotation = layer.rotation
    if isinstance(rotation, Householder):
        for u in float64(rotation.house_u).T:
            x = x - np.outer(x @ u, 2 * u / (u @ u))
    elif isinstance(rotation, Butterfly):
        for level, factor in reversed(list(enumerate(oft.factor_rotations(rotation)))):
            x = oft.in_float64(rotate_factor, x, factor, level)
    return x


def low_rank_factors(layer: HybridLinear) -> Factors:
    """A (in, p), B (p, out) of the low-rank branch alone; p = 0 without one, and 2r with a start along a gradient."""
    d_out, d_in = layer.linear.weight.shape
    if layer.low_rank is None:
        return np.zeros((d_in, 0)), np.zeros((0, d_out))
    return float64(layer.low_rank.down()), layer.low_rank.scale * float64(layer.low_rank.up())


def base_product(layer: HybridLinear, rows: np.ndarray) -> np.ndarray:
    """`rows` (n, in) times Wᵀ: (n, out), in float32 whatever W is stored as, some outputs at a time."""
    weight, x = layer.linear.weight, mx.array(rows.astype(np.float32))
    step = max(1, CHUNK // weight.shape[1])
    parts = [x @ weight[i : i + step].astype(mx.float32).T for i in range(0, weight.shape[0], step)]
    return float64(mx.concatenate(parts, axis=1))


def refactor(a: np.ndarray, b: np.ndarray) -> Factors:
    """The same product A B from balanced factors without null directions.

    Thin QR of both factors and an SVD of the small core, A' = U√S and B' = √S Vᵀ, the largest entry of each column of
    A' positive. Factors that are so already stay as they are, so exporting an import gives the same bytes.
    """
    kept = (np.abs(a).max(axis=0, initial=0) > 0) & (np.abs(b).max(axis=1, initial=0) > 0)
    a, b = a[:, kept], b[kept]
    if a.shape[1] == 0 or is_balanced(a, b):
        return a, b
    qa, ra = np.linalg.qr(a)
    qb, rb = np.linalg.qr(b.T)
    u, s, vt = np.linalg.svd(ra @ rb.T)
    count = int(np.sum(s > max(NULL * s[0], FLOOR)))
    root = np.sqrt(s[:count])
    a, b = qa @ (u[:, :count] * root), (root[:, None] * vt[:count]) @ qb.T
    sign = np.sign(largest_entries(a)) if count else 1
    return a * sign, (b.T * sign).T


def largest_entries(a: np.ndarray) -> np.ndarray:
    return a[np.abs(a).argmax(axis=0), np.arange(a.shape[1])]


def is_balanced(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether AᵀA = BBᵀ, diagonal and falling, to float32's rounding, with the sign of `refactor`."""
    sizes = np.linalg.norm(a, axis=0)
    scaled = [gram / np.outer(sizes, sizes) - np.eye(len(sizes)) for gram in (a.T @ a, b @ b.T)]
    falling = np.all(np.diff(sizes) <= BALANCED * sizes[0]) and sizes[-1] ** 2 > NULL * sizes[0] ** 2
    return bool(np.abs(scaled).max() < 2 * BALANCED and falling and np.all(largest_entries(a) > 0))


def pad_rank(factors: Factors, rank: int) -> Factors:
    """Zero columns of A and rows of B up to `rank`; the product is the same."""
    a, b = factors
    more = rank - a.shape[1]
    return np.pad(a, ((0, 0), (0, more))), np.pad(b, ((0, more), (0, 0)))


def put_lora(model: nn.Module, factors: dict[str, Factors]) -> None:
    """Put x A B on the modules of a loaded model."""
    modules, layers = dict(model.named_modules()), []
    for name, (a, b) in factors.items():
        layer = LoRALinear(1, 1, r=1, scale=1.0)
        layer.linear = modules[name]
        layer.lora_a, layer.lora_b = (mx.array(part.astype(np.float32)) for part in (a, b))
        layers.append((name, layer))
    model.update_modules(tree_unflatten(layers))


def cut_form(layer: HybridLinear, x: np.ndarray, rank: int) -> tuple[Factors, float]:
    """The LoRA of at most `rank` nearest to what the layer adds (Eckart–Young), and its relative error
    ‖Δ − A B‖_F / ‖Δ‖_F: the first columns of balanced factors where the layer is a LoRA, else of an SVD."""
    if not isinstance(layer.rotation, Butterfly):
        (a, b), _ = lora_form(layer, x)
        energy = np.sum(a**2, axis=0) * np.sum(b**2, axis=1)
        lost = energy[rank:].sum() / energy.sum() if energy.any() else 0.0
        return (a[:, :rank], b[:rank]), float(np.sqrt(lost))
    update = dense_update(layer)
    u, s, vt = truncated_svd(update, min(rank, *update.shape))
    root = np.sqrt(s.astype(np.float64))
    a, b = refactor(u * root, root[:, None] * vt)
    norm = float(np.linalg.norm(update))
    return (a, b), float(np.linalg.norm(update - (a @ b).astype(np.float32))) / norm if norm else 0.0


def dense_update(layer: HybridLinear) -> np.ndarray:
    """(R − I) Wᵀ + s A B as one matrix (in, out) in float32; of a butterfly."""
    weight, blocks = layer.linear.weight.astype(mx.float32), layer.rotation.dense_blocks()
    turn = rotate_blocks(weight, mx.swapaxes(blocks - mx.eye(blocks.shape[-1]), -1, -2)).T
    a, b = low_rank_factors(layer)
    return np.array(turn) + (a @ b).astype(np.float32)


def truncated_svd(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The leading `rank` singular triplets; by a sketch and power iterations for large matrices."""
    span = np.eye(len(matrix), dtype=np.float32)
    if min(matrix.shape) > DENSE_SVD:
        width = min(rank + OVERSAMPLE, *matrix.shape)
        sketch = np.random.default_rng(0).standard_normal((matrix.shape[1], width)).astype(np.float32)
        for _ in range(POWER_ITERATIONS):
            span, _ = np.linalg.qr(matrix @ sketch)
            sketch, _ = np.linalg.qr(matrix.T @ span)
        span, _ = np.linalg.qr(matrix @ sketch)
        matrix = span.T @ matrix
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (span @ u)[:, :rank], s[:rank], vt[:rank]


def float64(value: mx.array) -> np.ndarray:
    return np.array(value.astype(mx.float32)).astype(np.float64)
