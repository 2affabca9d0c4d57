"""Reflections that start along the gradient.

Near its start a pair of equal reflections u, u + δ turns the input in the plane of u and δ: R = I + 2(u δᵀ − δ uᵀ), to
first order. The loss answers by −4 δᵀ S u with S = skew(GᵀW), (in, in), for the weight gradient G (out, in). So the
pairs whose first step does most are the leading singular vectors of S, one for each of its planes. Random ones miss
nearly all of S where the layer is wide. The support is that of LOFT (arXiv 2605.11872), the equations are ours.
"""

import mlx.core as mx
from jaxtyping import Float


def leading_planes(
    v: Float[mx.array, "d n"], p: Float[mx.array, "n d"], count: int
) -> Float[mx.array, "d planes"]:
    """Unit vectors (d, ≤ count), one in each of the leading planes of S = skew(V P) = ½(V P − Pᵀ Vᵀ).

    S lives in the span of [V, Pᵀ] = Q [R_v, R_p]: S = Q C Qᵀ, C = ½(R_v R_pᵀ − R_p R_vᵀ), whose singular values come
    in equal pairs. Thin factorisations on the CPU stream; no (d, d) is formed unless 2n ≥ d.
    """
    n = v.shape[1]
    q, r = mx.linalg.qr(mx.concatenate([v, p.T], axis=1), stream=mx.cpu)
    half = r[:, :n] @ r[:, n:].T
    vectors = mx.linalg.svd(0.5 * (half - half.T), stream=mx.cpu)[0]
    return q @ vectors[:, 0 : 2 * count : 2]


def gradient_reflections(
    u: Float[mx.array, "d k"], v: Float[mx.array, "d n"], p: Float[mx.array, "n d"]
) -> Float[mx.array, "d k"]:
    """Reflections (d, k) of unit length in equal pairs, so that R = I, along the leading planes of skew(V P).

    GᵀW is V P for G = U diag(σ) Vᵀ and P = diag(σ) UᵀW. Pairs of `u` stay where there are more of them than planes.
    """
    k = u.shape[1]
    found = leading_planes(v, p, k // 2)
    found = found / mx.linalg.norm(found, axis=0, keepdims=True)
    return mx.concatenate([mx.repeat(found, 2, axis=1), u], axis=1)[:, :k]
