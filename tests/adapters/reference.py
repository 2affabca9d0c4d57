"""The method in float64 NumPy, written from its equations and from PEFT's layout, sharing no code with the package."""

import numpy as np


def skew_matrix(triangle: np.ndarray, size: int) -> np.ndarray:
    """Skew (…, b, b) whose strict upper triangle is filled row by row."""
    out = np.zeros((*triangle.shape[:-1], size, size))
    index = 0
    for row in range(size):
        for column in range(row + 1, size):
            out[..., row, column] = triangle[..., index]
            out[..., column, row] = -triangle[..., index]
            index += 1
    return out


def cayley(q: np.ndarray) -> np.ndarray:
    """(I − Q)(I + Q)⁻¹, by solving Xᵀ from (I + Q)ᵀ Xᵀ = (I − Q)ᵀ."""
    eye = np.eye(q.shape[-1])
    transpose = lambda m: np.swapaxes(m, -1, -2)  # noqa: E731
    return transpose(np.linalg.solve(transpose(eye + q), transpose(eye - q)))


def reflection(u: np.ndarray) -> np.ndarray:
    return np.eye(len(u)) - 2 * np.outer(u, u) / (u @ u)


def householder(u: np.ndarray) -> np.ndarray:
    """H₀ H₁ … H_{k−1}, one reflection after the other."""
    product = np.eye(len(u))
    for column in u.T:
        product = product @ reflection(column)
    return product


def butterfly_order(d: int, b: int, level: int) -> np.ndarray:
    """PEFT's gather: within each chunk of b·2^i features, half-blocks ordered evens then odds."""
    half, chunk = b // 2, b << level
    order: list[int] = []
    for begin in range(0, d, chunk):
        units = [range(begin + u * half, begin + (u + 1) * half) for u in range(chunk // half)]
        for unit in units[0::2] + units[1::2]:
            order += unit
    return np.array(order)


def butterfly_factor(blocks: np.ndarray, level: int) -> np.ndarray:
    """F_i = P_i blockdiag(C) P_iᵀ (d, d), where P_i v = v[order]."""
    count, b, _ = blocks.shape
    d = count * b
    diagonal = np.zeros((d, d))
    for index, block in enumerate(blocks):
        diagonal[index * b : (index + 1) * b, index * b : (index + 1) * b] = block
    permutation = np.eye(d)[butterfly_order(d, b, level)]
    return permutation @ diagonal @ permutation.T


def butterfly(factors: np.ndarray) -> np.ndarray:
    """R = F_{m−1} … F₁ F₀ (d, d)."""
    product = np.eye(factors.shape[1] * factors.shape[2])
    for level, blocks in enumerate(factors):
        product = butterfly_factor(blocks, level) @ product
    return product


def rotation(leaves: dict[str, np.ndarray], d: int, b: int) -> np.ndarray:
    """R of a layer from its leaves."""
    if "house_u" in leaves:
        return householder(leaves["house_u"])
    if "oft_q" in leaves:
        return butterfly(cayley(skew_matrix(leaves["oft_q"], b)) @ leaves["oft_base"])
    return np.eye(d)


def layer(
    leaves: dict[str, np.ndarray],
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    scale: float,
    b: int,
) -> np.ndarray:
    """y = (x R) Wᵀ + s · x (A B − A₀ B₀) + bias, A and B being offsets from A₀ and B₀ where those are there."""
    y = x @ rotation(leaves, x.shape[-1], b) @ weight.T
    if "lora_a" in leaves:
        a, b_ = leaves["lora_a"], leaves["lora_b"]
        a0, b0 = leaves.get("lora_a0", 0.0 * a), leaves.get("lora_b0", 0.0 * b_)
        y = y + scale * (x @ ((a + a0) @ (b_ + b0) - a0 @ b0))
    return y if bias is None else y + bias


def central_difference(function, values: np.ndarray, index: tuple[int, ...], step: float = 1e-5) -> float:
    """∂function/∂values[index]."""
    up, down = values.copy(), values.copy()
    up[index] += step
    down[index] -= step
    return (function(up) - function(down)) / (2 * step)
