"""Step mixing: how a layer's step is shared between its two branches, by gradient norms.

λ_ℓ ∈ [0.1, 0.9] is the share of layer ℓ's step that its orthogonal branch takes. Steps are mixed, not weights: a convex
mix of I and R is a contraction, while a mixed step leaves R orthogonal and costs nothing in the forward pass.
"""

import mlx.core as mx
from jaxtyping import Bool, Float

SMALLEST_SHARE, LARGEST_SHARE = 0.1, 0.9
EMA = 0.9


def update_norms(
    average: Float[mx.array, "2 layers"], norms: Float[mx.array, "2 layers"], started: Bool[mx.array, ""]
) -> Float[mx.array, "2 layers"]:
    """EMA of the branches' gradient norms, begun at the first value."""
    return mx.where(started, EMA * average + (1 - EMA) * norms, norms)


def shares(norms: Float[mx.array, "2 layers"]) -> Float[mx.array, " layers"]:
    """λ (layers,) from the norms (2, layers) of the orthogonal and the low-rank branch.

    λ_ℓ = g_o / (g_o + g_r), each g first divided by its mean over the layers, so that branches of different scale are
    commensurate; ½ where both are zero.
    """
    mean = mx.mean(norms, axis=1, keepdims=True)
    relative = mx.where(mean > 0, norms / mx.maximum(mean, 1e-30), 0.0)
    total = relative[0] + relative[1]
    share = mx.where(total > 0, relative[0] / mx.maximum(total, 1e-30), 0.5)
    return mx.clip(share, SMALLEST_SHARE, LARGEST_SHARE)
