"""Averages of an adapter's iterates, tensor by tensor, which stay what the tensors are.

Rotations are averaged as matrices and brought back to the nearest rotation: a butterfly by its factors, reflections in
the span of both, where the average is again k reflections (a column and its negative are one reflection, so columns
themselves are nothing to average). A, B, magnitudes and whole weights are averaged as they are.
"""

import mlx.core as mx
import numpy as np

from mlx_hybrid.adapters.butterfly import nearest_rotation, turned
from mlx_hybrid.adapters.strength import State, reflections, span_of

NEWTON_SCHULZ = 4  # steps from the mean of two rotations; each squares the distance to the nearest one


def averaged(old: State, new: State, weight: float) -> State:
    """(1 − w) · old + w · new, of the tensors of one adapter at two times."""
    mean = {}
    for name, value in new.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "house_u":
            mean[name] = mean_reflections(old[name], value, weight)
        elif leaf == "oft_base":
            q = f"{owner}.oft_q"
            mean[name] = mean_factors(turned(old[q], old[name]), turned(new[q], value), weight)
            mean[q] = mx.zeros_like(new[q])
        elif leaf != "oft_q":
            mean[name] = ((1 - weight) * old[name] + weight * value).astype(value.dtype)
    mx.eval(mean)
    return mean


def mean_factors(old: mx.array, new: mx.array, weight: float) -> mx.array:
    """The rotations nearest to (1 − w) · old + w · new, of blocks (…, b, b)."""
    mean = (1 - weight) * old + weight * new
    for _ in range(NEWTON_SCHULZ):
        mean = nearest_rotation(mean)
    return mean


def mean_reflections(old: mx.array, new: mx.array, weight: float) -> mx.array:
    """U (d, k) of the rotation nearest to (1 − w) R_old + w R_new, of which the k/2 planes that turn most are kept."""
    both = [np.array(u, dtype=np.float64) for u in (old, new)]
    basis, _ = np.linalg.qr(np.concatenate(both, axis=1))
    mean = np.eye(basis.shape[1])
    for u, share in zip(both, (1 - weight, weight), strict=True):
        own, rotation = span_of(u)
        inner = basis.T @ own
        mean += share * inner @ (rotation - np.eye(len(rotation))) @ inner.T
    left, _, right = np.linalg.svd(mean)
    return mx.array(reflections(basis, left @ right, old.shape[1]).astype(np.float32))
