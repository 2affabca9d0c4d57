"""Frozen layers whose weights stay as GGUF's Q6_K, Q3_K and Q2_K pack them, in groups of 16, which MLX refuses, and are
unpacked whenever they are used, one layer at a time, forward and backward (adapters/frozen.py)."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.frozen import FastQuantizedEmbedding, FastQuantizedLinear
from mlx_hybrid.models.gguf.blocks import BITS, PACKED

OFFSETS = {BITS[kind]: offset for kind, offset in PACKED.items()}
CHUNK = 128  # codes that MLX unpacks with one scale, of 1, so that they come out as they are


class Packed(nn.Module):
    """What both layers share. `weight` holds the codes, `scales` and `d` what they are multiplied by."""

    def dense(self, codes: mx.array, rows: Any = slice(None)) -> mx.array:
        """The weights (…, in) of some rows in float32, from their codes."""
        part = {name: self[name][rows] for name in ("scales", "d", "mins", "dmin") if name in self}
        width = 16 * part["scales"].shape[-1]
        ones = mx.ones((*codes.shape[:-1], width // CHUNK))
        whole = mx.dequantize(codes, ones, -OFFSETS[self.bits] * ones, group_size=CHUNK, bits=self.bits)
        whole = whole.reshape(*codes.shape[:-1], -1, 16) * fine(part["scales"], part["d"])
        if "mins" in part:
            whole = whole - fine(part["mins"], part["dmin"])
        return whole.reshape(*codes.shape[:-1], width)

    def unpacked_layer(self) -> nn.Module:
        """The same layer with its weight unpacked."""
        rows, width = self.weight.shape[0], 16 * self.scales.shape[-1]
        embedding = isinstance(self, nn.QuantizedEmbedding)
        layer = nn.Embedding(rows, width) if embedding else nn.Linear(width, rows, bias="bias" in self)
        layer.update({"weight": self.dense(self.weight)} | ({"bias": self.bias} if "bias" in self else {}))
        return layer

    def product(self, x: mx.array) -> mx.array:
        """x Wᵀ without unpacking: two products with the same codes in groups of 32, each with the scales of one half of
        every group, and with zeros in x where the other half is."""
        scales = fine(self.scales, self.d)
        biases = -fine(self.mins, self.dmin) if "mins" in self else -OFFSETS[self.bits] * scales
        half, total = mx.arange(x.shape[-1]) // 16 % 2, 0
        for side in (0, 1):
            own = (scales[:, side::2, 0], biases[:, side::2, 0])
            part = mx.where(half == side, x, 0)
            total = total + mx.quantized_matmul(part, self.weight, *own, group_size=32, bits=self.bits)
        return total


def fine(scales: mx.array, d: mx.array) -> mx.array:
    """What each group of 16 is scaled by, (…, groups, 1): its own scale times that of its block of 256."""
    product = scales.reshape(*d.shape, 16).astype(mx.float32) * d.astype(mx.float32)[..., None]
    return product.reshape(*scales.shape, 1)


class PackedLinear(Packed, FastQuantizedLinear):
    """A linear layer that carries adapters as a QuantizedLinear does."""


class PackedEmbedding(Packed, FastQuantizedEmbedding):
    """An embedding, and a tied head."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.dense(self.weight[x], x)
