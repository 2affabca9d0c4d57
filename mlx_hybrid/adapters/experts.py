"""Adapters on the experts of a mixture: one rotation shared by all of them, and a low-rank update for each.

Experts are stacked, (E, out, in), and each token goes to those that its indices name. Rotating the input needs no
index, so the rotation costs what it does on one dense layer; the low-rank leaves are E times as many.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.layer import HybridLinear


class HybridExperts(HybridLinear):
    """y_e = (x R) W_eᵀ + s · x (A_e B_e − A₀_e B₀_e) + bias_e for the experts e that `indices` name.

    A is (E, in, r) and B (E, r, out). The router is no part of it.
    """

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

    def plain(self, d_in: int, d_out: int, bias: bool) -> nn.Module:
        from mlx_lm.models.switch_layers import SwitchLinear

        return SwitchLinear(d_in, d_out, self.linear.num_experts, bias=bias)
