"""Adapters on the experts of a mixture: one rotation shared by all of them, and a low-rank update for each.

Experts are stacked: weights (E, out, in), and each token goes to those that its indices name. Rotating the input needs
no index, so the rotation costs and stores what it does on one dense layer; the low-rank leaves are E times as many.
"""

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.butterfly import householder_core
from mlx_hybrid.adapters.layer import HybridLinear, linear_shape, reflect


def is_experts(module: nn.Module) -> bool:
    """Whether a module is a stack of linear experts, dense or quantised (mlx-lm's SwitchLinear)."""
    return hasattr(type(module), "num_experts") and hasattr(module, "weight") and module.weight.ndim == 3


class HybridExperts(HybridLinear):
    """y_e = (x R) W_eᵀ + s · x (A_e B_e − A₀_e B₀_e) + bias_e for the experts e that `indices` name.

    Leaves: those of a HybridLinear for R; A (E, in, r) and B (E, r, out). The router is no part of it.
    """

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x (…, n, in) and `indices` (…), as `SwitchLinear` takes them, to (…, n, out)."""
        y = self.linear(self._rotate(x), indices, sorted_indices)
        if not self._plan.rank:
            return y
        low = self.dropout(x)
        for side in (self.down(), self.up()):
            low = mx.gather_mm(low, side.astype(x.dtype), rhs_indices=indices, sorted_indices=sorted_indices)
        return y + (self._plan.scale * low).astype(y.dtype)

    def _rotate(self, x: mx.array) -> mx.array:
        if self._plan.orthogonal != "householder":
            return super()._rotate(x)
        core = householder_core(self.house_u) if self._settled is None else self._settled
        u = self.house_u.astype(x.dtype)
        return reflect(x, x @ u, core.astype(x.dtype), u)

    def fuse(self, dequantize: bool = True) -> nn.Module:
        """The experts as plain ones; dequantised, since a small update vanishes in the grid of packed weights."""
        from mlx_lm.models.switch_layers import SwitchLinear

        layer = self.linear
        fused = SwitchLinear(*linear_shape(layer), layer.num_experts, bias="bias" in layer)
        fused.weight = self.merged_weight().astype(self.weight_dtype())
        if "bias" in layer:
            fused.bias = layer.bias
        if dequantize or not hasattr(layer, "scales"):
            return fused
        return fused.to_quantized(layer.group_size, layer.bits, mode=layer.mode)
