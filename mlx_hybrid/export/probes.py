"""What an adapted layer does to a few random rows, worked out one step at a time and apart from the export.

The export goes through compact forms (WY, QR, SVD, Cayley); here reflections and butterfly factors are applied one
after another in float64, so that both can only agree if both are right.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.export.lora import CHUNK, base_product, float64, low_rank_factors
from mlx_hybrid.export.oft import cayley, nearest_rotation, rotate_factor, skew
from mlx_hybrid.export.peft_files import PeftFolder

ROWS = 2  # random rows: a wrong factor escapes them with probability zero
TOLERANCE = 2e-5  # float32 factors of a float64 form: 1e-7 a term, times the condition of a balanced pair


@dataclass(frozen=True)
class Probe:
    """Rows x (n, in) with what the layer makes of them: `turn` is x R − x (n, in), `low` is the low-rank branch
    (n, out), `total` all that it adds to x Wᵀ (n, out)."""

    x: np.ndarray
    turn: np.ndarray
    low: np.ndarray
    total: np.ndarray


def probe_layer(layer: HybridLinear, name: str, turn_product: np.ndarray | None = None) -> Probe:
    """The probe of one layer; the same rows for the same name. `turn_product` is (x R − x) Wᵀ, where it is at hand."""
    x, turn = probe_rows(name, layer.linear.weight.shape[1]), probe_turn(layer, name)
    a, b = low_rank_factors(layer)
    low = (x @ a) @ b
    product = base_product(layer, turn) if turn_product is None else turn_product
    total = low + product
    return Probe(x, turn, low, rescaled(layer, x, total) if layer.plan.magnitude else total)


def rescaled(layer: HybridLinear, x: np.ndarray, total: np.ndarray) -> np.ndarray:
    """DoRA's change (n, out): (x Wᵀ + total) · m / ‖W + s (A B)ᵀ‖ − x Wᵀ, the norm over each row."""
    weight, update = layer.linear.weight, np.matmul(*low_rank_factors(layer)).T
    step = max(1, CHUNK // weight.shape[1])
    norms = [
        np.linalg.norm(float64(weight[i : i + step]) + update[i : i + step], axis=1)
        for i in range(0, weight.shape[0], step)
    ]
    base = base_product(layer, x)
    return (base + total) * (float64(layer.m) / np.concatenate(norms)) - base


def probe_turn(layer: HybridLinear, name: str) -> np.ndarray:
    """x R − x (n, in) for the rows of `name`."""
    x = probe_rows(name, layer.linear.weight.shape[1])
    return turned(layer, x) - x


def probe_rows(name: str, d_in: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal((ROWS, d_in))


def turned(layer: HybridLinear, x: np.ndarray) -> np.ndarray:
    """x R, reflection by reflection or factor by factor."""
    plan = layer.plan
    if plan.orthogonal == "householder":
        for u in float64(layer.house_u).T:
            x = x - np.outer(x @ u, 2 * u / (u @ u))
    elif plan.orthogonal == "butterfly":
        factors = cayley(skew(float64(layer.oft_q), plan.block_size))
        factors = factors @ nearest_rotation(float64(layer.oft_base))
        for level in reversed(range(plan.factors)):
            x = rotate_factor(x, factors[level], level)
    return x


def check_lora(
    folder: PeftFolder, expected: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
) -> list[str]:
    """Faults of a LORA folder against what each module should add (n, out) to the rows (n, in)."""
    return check_modules(folder, expected, lambda m: (rows[m] @ folder.lora(m)[0]) @ folder.lora(m)[1])


def check_oft(
    folder: PeftFolder, expected: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
) -> list[str]:
    """Faults of an OFT folder against how far each module should turn (n, in) the rows (n, in)."""

    def turn(module: str) -> np.ndarray:
        blocks = folder.rotation(module)
        split = rows[module].reshape(ROWS, -1, blocks.shape[-1])
        if folder.config.get("block_share"):
            blocks = np.broadcast_to(blocks, (split.shape[1], *blocks.shape[1:]))
        return np.einsum("nbi,bij->nbj", split, blocks).reshape(ROWS, -1) - rows[module]

    return check_modules(folder, expected, turn)


def check_hra(
    folder: PeftFolder, expected: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
) -> list[str]:
    """Faults of an HRA folder: PEFT multiplies W H₀ H₁ …, so that an activation meets the last column first."""

    def turn(module: str) -> np.ndarray:
        x = rows[module]
        for u in orthogonalised(folder, module).T[::-1]:
            x = x - np.outer(x @ u, 2 * u / (u @ u))
        return x - rows[module]

    return check_modules(folder, expected, turn)


def orthogonalised(folder: PeftFolder, module: str) -> np.ndarray:
    """The columns of U, by Gram–Schmidt where `apply_GS` asks for it."""
    u = folder.tensors[module]["hra_u"].astype(np.float64)
    if folder.config.get("apply_GS"):
        for i in range(u.shape[1]):
            for j in range(i):
                u[:, i] -= u[:, j] * (u[:, j] @ u[:, i]) / (u[:, j] @ u[:, j])
    return u


def check_modules(folder: PeftFolder, expected: Mapping[str, np.ndarray], actual) -> list[str]:
    """Modules missing, over, of another shape, or off by more than the tolerance."""
    faults = [f"{m} is missing from {folder.folder.name}" for m in expected if m not in folder.tensors]
    faults += [f"{m} in {folder.folder.name} is not adapted" for m in folder.modules if m not in expected]
    for module in folder.modules:
        if module in expected:
            try:
                error = relative_error(actual(module), expected[module])
            except ValueError:
                faults.append(f"{module} in {folder.folder.name} has another shape than the base's")
                continue
            if not error <= TOLERANCE:
                faults.append(f"{module} in {folder.folder.name} is off by {error:.2g} of its update")
    return faults


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |Δ| / max |expected|."""
    if actual.shape != expected.shape:
        raise ValueError("shapes differ")
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))
