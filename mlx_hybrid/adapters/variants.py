"""Adapted layers of other kinds: stacked experts, and DoRA."""

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.frozen import dense_weight, frozen_matmul
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.adapters.plans import LayerPlan


class HybridExperts(HybridLinear):
    """y_e = (x R) W_eᵀ + s · x (A_e B_e − A₀_e B₀_e) + bias_e for the experts e of a mixture that `indices` name. They
    are stacked, (E, out, in): one rotation for all, A (E, in, r) and B (E, r, out). The router is no part of it."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x (…, n, in) and `indices` (…), as `SwitchLinear` takes them, to (…, n, out)."""
        rotated = x if self.rotation is None else self.rotation.rotate(x)
        y, low_rank = self.linear(rotated, indices, sorted_indices), self.low_rank
        if low_rank is None:
            return y
        low = low_rank.dropout(x)
        for side in (low_rank.down(), low_rank.up()):
            low = mx.gather_mm(low, side.astype(x.dtype), rhs_indices=indices, sorted_indices=sorted_indices)
        return y + (low_rank.scale * low).astype(y.dtype)


class DoraLinear(HybridLinear):
    """y = (x Wᵀ + s · x A B) · m / ‖W + s (A B)ᵀ‖ + bias, the norm over each row and without a gradient: DoRA (Liu et
    al. 2024, arXiv 2402.09353), a baseline. m (out,) starts at W's row norms, so a fresh layer is its base up to the
    rounding of the quotient. The norm needs no dense weight: ‖w + Δ‖² = ‖w‖² + 2 w·Δ + ‖Δ‖², where w·Δ comes from W A,
    r rows through the packed weight."""

    def __init__(self, linear: nn.Module, plan: LayerPlan, key: mx.array):
        super().__init__(linear, plan, key)
        weight = dense_weight(linear, mx.float32).astype(mx.float32)
        self._squares = mx.sum(mx.square(weight), axis=1)
        self.m = mx.sqrt(self._squares)
        self.train_only_leaves()

    def __call__(self, x: mx.array) -> mx.array:
        y = frozen_matmul(x, self.linear)
        y = y + self.low_rank.leave(self.low_rank.enter(x)).astype(y.dtype)
        y = y * (self.m / self.row_norms()).astype(y.dtype)
        return y + self.linear.bias if "bias" in self.linear else y

    def row_norms(self) -> mx.array:
        """‖W + s (A B)ᵀ‖ of each row, (out,), in float32 and without a gradient."""
        a, b = mx.stop_gradient(self.low_rank.lora_a), mx.stop_gradient(self.low_rank.lora_b)
        s = self.low_rank.scale
        projected = frozen_matmul(a.T.astype(self.weight_dtype()), self.linear).astype(mx.float32)
        cross = mx.sum(b * projected, axis=0)
        square = mx.sum(b * ((a.T @ a) @ b), axis=0)
        return mx.sqrt(mx.maximum(self._squares + 2 * s * cross + s * s * square, 1e-12))

    def merged_weight(self) -> mx.array:
        """W' = (W + s (A B)ᵀ) · m / ‖W + s (A B)ᵀ‖ by rows, (out, in) in float32."""
        weight = super().merged_weight()
        return weight * (self.m / mx.linalg.norm(weight, axis=1))[:, None]
