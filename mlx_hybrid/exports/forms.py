"""What an adapted layer is for others: one LoRA, exactly or the best truncated one, and PEFT's OFT v2 for a butterfly.

Row vectors: a LoRA adds x A B with A (in, r), B (r, out), the scale folded into B. Arithmetic is float64 except the
product with the base weight, which is float32 on orthonormal vectors, so nothing cancels. OFT stores, for block k, the
strict upper triangle of a skew-symmetric Q, row by row, and with `use_cayley_neumann: false` turns an activation by
x R, R = (I − Q)(I + Q)⁻¹: the same sense as here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from threadpoolctl import threadpool_limits

from mlx_hybrid.adapters import butterfly
from mlx_hybrid.adapters.butterfly import Butterfly
from mlx_hybrid.adapters.householder import Householder
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.adapters.strength import chain
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import Source, random_rows
from mlx_hybrid.exports.weights import ModelWeights

NULL = 1e-7  # singular values below this share of the largest are under float32's resolution of the update
FLOOR = 1e-12  # an update this small is the rounding of an untrained layer
BALANCED = 1e-6  # float32 factors of a balanced pair are orthogonal and equal in norm to about 1e-7
LARGEST_Q = 2e3  # ‖Q‖ = √2 tan(θ/2) of one turn θ: beyond it the Cayley form loses float32's digits
CHUNK = 1 << 20  # weights converted at once: 4 MiB in float32, which stays in the cache
OVERSAMPLE, POWER_ITERATIONS = 16, 4  # Halko et al. 2011, arXiv 0909.4061: enough for slowly falling spectra
TOLERANCE = 2e-5  # float32 factors of a float64 form: 1e-7 a term, times the condition of a balanced pair
# of rows x (n, in): x R − x (n, in), what is added (n, out)
Probe = tuple[np.ndarray | float, np.ndarray | float]
Factors = tuple[np.ndarray, np.ndarray]


def lora_form(layer: HybridLinear, x: np.ndarray) -> tuple[Factors, np.ndarray]:
    """A' (in, q), B' (q, out) with x A' B' equal to all the layer adds to its base but a butterfly's turn; and, worked
    out apart, what it so adds to rows x (n, in).
    Householder is exactly a LoRA: x R Wᵀ = x Wᵀ − x U T Uᵀ Wᵀ, so A' = [U, A] and B' = [−T Uᵀ Wᵀ; s B]. With U = Q C
    (thin QR) it is A' = Q, B' = −(C T Cᵀ) QᵀWᵀ: the near-cancelling columns of U meet only in float64, and the weight
    is read once for both results. Of DoRA it is the update inside the norm."""
    a, b = low_rank_factors(layer)
    added = (x @ a) @ b
    if isinstance(layer.rotation, Householder):
        q, r = np.linalg.qr(float64(layer.rotation.house_u))
        rows, weight = np.concatenate([q.T, turn_of(layer, x)]), layer.linear.weight
        rows, step = mx.array(rows.astype(np.float32)), max(1, CHUNK // weight.shape[1])
        parts = [rows @ weight[i : i + step].astype(mx.float32).T for i in range(0, len(weight), step)]
        span, turn = np.split(float64(mx.concatenate(parts, axis=1)), [q.shape[1]])
        b = np.concatenate([(chain(r) - np.eye(len(r))) @ span, b])
        a, added = np.concatenate([q, a], axis=1), added + turn
    return refactor(a, b), added


def turn_of(layer: HybridLinear, x: np.ndarray) -> np.ndarray:
    """x R − x in float64, one reflection or one factor after another, where the export goes through compact forms."""
    rotation, turned = layer.rotation, x
    if isinstance(rotation, Householder):
        for u in float64(rotation.house_u).T:
            turned = turned - np.outer(turned @ u, 2 * u / (u @ u))
    elif isinstance(rotation, Butterfly):
        for level, factor in reversed(list(enumerate(factor_rotations(rotation)))):
            turned = in_float64(butterfly.rotate_factor, turned, factor, level)
    return turned - x


def low_rank_factors(layer: HybridLinear) -> Factors:
    """A (in, p), B (p, out) of the low-rank branch alone; p = 0 without one, and 2r with a start along a gradient."""
    d_out, d_in = layer.linear.weight.shape
    if layer.low_rank is None:
        return np.zeros((d_in, 0)), np.zeros((0, d_out))
    return float64(layer.low_rank.down()), layer.low_rank.scale * float64(layer.low_rank.up())


def refactor(a: np.ndarray, b: np.ndarray) -> Factors:
    """The same product A B from balanced factors without null directions, by thin QR of both and an SVD of the small
    core: A' = U√S and B' = √S Vᵀ, the largest entry of each column of A' positive. Factors that are so already stay as
    they are, so exporting an import gives the same bytes."""
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


def padded(factors: Factors, rank: int) -> Factors:
    """Zero columns of A and rows of B up to `rank`, in float32; the product is the same."""
    a, b = (part.astype(np.float32) for part in factors)
    more = rank - a.shape[1]
    return np.pad(a, ((0, 0), (0, more))), np.pad(b, ((0, more), (0, 0)))


def put_lora(model: nn.Module, factors: dict[str, Factors]) -> None:
    """Put x A B on the modules of a loaded model."""
    modules, layers = dict(model.named_modules()), []
    for name, pair in factors.items():
        layer = LoRALinear(1, 1, r=1, scale=1.0)
        layer.linear = modules[name]
        layer.lora_a, layer.lora_b = (mx.array(part.astype(np.float32)) for part in pair)
        layers.append((name, layer))
    model.update_modules(tree_unflatten(layers))


def cut_form(layer: HybridLinear, x: np.ndarray, rank: int) -> tuple[Factors, float]:
    """The LoRA of at most `rank` nearest to what the layer adds (Eckart–Young), and its relative error
    ‖Δ − A B‖_F / ‖Δ‖_F: the first columns of balanced factors, of a butterfly those of its leading span."""
    if not isinstance(layer.rotation, Butterfly):
        (a, b), _ = lora_form(layer, x)
        energy = np.sum(a**2, axis=0) * np.sum(b**2, axis=1)
        lost, whole = np.sqrt(energy[rank:].sum()), np.sqrt(energy.sum())
    else:
        weight, blocks = layer.linear.weight.astype(mx.float32), layer.rotation.dense_blocks()
        turn = butterfly.rotate_blocks(weight, mx.swapaxes(blocks - mx.eye(blocks.shape[-1]), -1, -2)).T
        a, b = low_rank_factors(layer)
        update = np.array(turn) + (a @ b).astype(np.float32)  # (R − I) Wᵀ + s A B
        span = leading_span(update, rank).astype(np.float64)
        a, b = refactor(span, span.T @ update)
        lost, whole = np.linalg.norm(update - a[:, :rank] @ b[:rank]), np.linalg.norm(update)
    return (a[:, :rank], b[:rank]), float(lost / whole) if whole else 0.0


def leading_span(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Orthonormal columns that span the leading `rank` left singular vectors, by a sketch and power iterations."""
    width = min(rank + OVERSAMPLE, *matrix.shape)
    sketch = np.random.default_rng(0).standard_normal((matrix.shape[1], width)).astype(np.float32)
    for _ in range(POWER_ITERATIONS):
        span, _ = np.linalg.qr(matrix @ sketch)
        sketch, _ = np.linalg.qr(matrix.T @ span)
    return np.linalg.qr(matrix @ sketch)[0]


def float64(value: mx.array) -> np.ndarray:
    return np.array(value.astype(mx.float32)).astype(np.float64)


def oft_form(rotation: Butterfly, name: str) -> np.ndarray:
    """Triangles (in/B, B(B−1)/2) of a butterfly's dense blocks, B = b·2^(m−1), in float32."""
    base = np.array(rotation.oft_base)
    if len(base) == 1 and np.array_equal(base, np.broadcast_to(np.eye(rotation.block_size), base.shape)):
        return np.array(rotation.oft_q)[0]
    blocks = in_float64(butterfly.compose_butterfly, factor_rotations(rotation))
    return inverse_cayley(blocks, name).astype(np.float32)


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
    return in_float64(butterfly.skew, triangle, block_of(triangle))


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
        told = "its rotation turns some direction by half a circle, which OFT cannot say; use --to merged."
        raise ConfigError(f"{name}: {told}")
    q = 0.5 * (q - q.swapaxes(-1, -2))
    return q[..., *np.triu_indices(q.shape[-1], 1)]


def polar(blocks: np.ndarray) -> np.ndarray:
    """The orthogonal matrices nearest to almost orthogonal ones; the second step is float64's rounding."""
    return in_float64(lambda r: butterfly.nearest_rotation(butterfly.nearest_rotation(r)), blocks)


@dataclass
class Forms:
    """By module: `lora` and `oft` (by block size) where there is one, `probes` of what its files should do to random
    rows, `errors` of truncation, and DoRA's `magnitudes` (out,)."""

    lora: dict[str, Factors] = field(default_factory=dict)
    oft: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    magnitudes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return max((a.shape[1] for a, _ in self.lora.values()), default=0)

    @property
    def modules(self) -> list[str]:
        return sorted(set(self.lora).union(*self.oft.values()))


@threadpool_limits.wrap(limits=1, user_api="blas")  # threads waited for each other: 50 times slower
def make_forms(source: Source, weights: ModelWeights, rank: int | None = None) -> Forms:
    """The exact form of every module on `weights`; with a `rank`, the nearest LoRA of at most that rank."""
    forms = Forms()
    for module in source.info.modules:
        layer = source.layer(module, weights)
        x = random_rows(module, layer.linear.weight.shape[1])
        turn = 0 * x
        if rank:
            (a, b), forms.errors[module] = cut_form(layer, x, rank)
            added = (x @ a) @ b
        else:
            (a, b), added = lora_form(layer, x)
            if isinstance(layer.rotation, Butterfly) and np.any(triangle := oft_form(layer.rotation, module)):
                turn = turn_of(layer, x)
                forms.oft.setdefault(layer.rotation.dense_size, {})[module] = triangle
        forms.probes[module] = turn, added
        if "m" in layer:
            forms.magnitudes[module] = np.array(layer.m)
        if a.shape[1] or "m" in layer:
            forms.lora[module] = a, b
    if not forms.modules:
        raise ConfigError(f"{source.folder}: the adapter changes nothing, so there is nothing to export.")
    return forms


def probe_faults(forms: Forms, found: dict[str, Probe]) -> list[str]:
    """Modules that written files lack or add, and those whose largest difference is beyond the tolerance."""
    faults = [f"{module} is missing" for module in forms.modules if module not in found]
    faults += [f"{module} is not adapted" for module in sorted(found.keys() - set(forms.modules))]
    for module in sorted(found.keys() & set(forms.modules)):
        pairs = zip(found[module], forms.probes[module], strict=True)
        errors = [np.abs(own - wanted).max() / max(np.abs(wanted).max(), 1e-30) for own, wanted in pairs]
        if not np.max(errors) <= TOLERANCE:
            faults.append(f"{module} is off by {np.max(errors):.2g} of its update")
    return faults


def lora_faults(forms: Forms, written: dict[str, Factors]) -> list[str]:
    """`probe_faults` of factors as a file of one LoRA holds them."""
    added = {module: (random_rows(module, len(a)) @ a) @ b for module, (a, b) in written.items()}
    return probe_faults(forms, {module: (0.0, rows) for module, rows in added.items()})
