"""The low-rank branch as pure functions: how it starts, and its scale."""

import math

import mlx.core as mx
from jaxtyping import Float


def low_rank_scale(alpha: float, rank: int, rslora: bool) -> float:
    """s = α/√r (rsLoRA, arXiv 2312.03732), else α/r (LoRA, arXiv 2106.09685); 0 without a branch."""
    if rank == 0:
        return 0.0
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def random_down_projection(
    d_in: int, rank: int, key: mx.array, stack: tuple[int, ...] = ()
) -> Float[mx.array, "*stack {d_in} {rank}"]:
    """A (*stack, in, r), uniform in ±1/√in, as mlx-lm starts it; B starts at zero, and so does the product."""
    bound = 1 / math.sqrt(d_in)
    return mx.random.uniform(-bound, bound, (*stack, d_in, rank), key=key)
