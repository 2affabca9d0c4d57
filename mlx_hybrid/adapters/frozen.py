"""Products with frozen weights, dense or quantised.

On the CPU a quantised matmul runs at a few GFLOP/s while dequantise-and-multiply reaches the BLAS library's speed, so
from 16 rows on the weight is dequantised, and again in the backward pass rather than kept. On the GPU MLX's own kernels
are used.
"""

import mlx.core as mx
import mlx.nn as nn

DENSE_ROWS = 16  # below it reading the packed weight wins (generation token by token)


def on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def dense_weight(layer: nn.Module, dtype: mx.Dtype | None = None) -> mx.array:
    """The layer's weight (out, in), dequantised where it is packed."""
    if not hasattr(layer, "scales"):
        return layer.weight
    return mx.dequantize(
        layer.weight,
        scales=layer.scales,
        biases=layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
        dtype=dtype,
    )


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer, or of each of stacked experts; packed or not."""
    out, packed = linear.weight.shape[-2:]
    if hasattr(linear, "scales"):
        return packed * 32 // linear.bits, out
    return packed, out


def frozen_matmul(x: mx.array, layer: nn.Module) -> mx.array:
    """x Wᵀ (…, out) without the bias, for a Linear, QuantizedLinear, Embedding or QuantizedEmbedding.

    The weight gets no gradient. Where it is dequantised, `mx.depends` ties the second dequantisation to the
    cotangent, so that no dense weight lives from the forward to the backward pass.
    """
    if not hasattr(layer, "scales"):
        return x @ layer.weight.T
    if on_cpu() and x.size // x.shape[-1] >= DENSE_ROWS:
        return dequantised_matmul(x, layer)
    return mx.quantized_matmul(
        x,
        layer.weight,
        scales=layer.scales,
        biases=layer.get("biases"),
        transpose=True,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )


def dequantised_matmul(x: mx.array, layer: nn.Module) -> mx.array:
    packed, scales, biases = layer.weight, layer.scales, layer.get("biases")

    def weight(packed: mx.array) -> mx.array:
        return mx.dequantize(
            packed,
            scales=scales,
            biases=biases,
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
            dtype=x.dtype,
        )

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return x @ weight(packed).T

    @product.vjp
    def product_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        (late,) = mx.depends([packed], [cotangent])
        return cotangent @ weight(late)

    return product(x)


class FastQuantizedLinear(nn.QuantizedLinear):
    """A QuantizedLinear that multiplies by `frozen_matmul`; the same parameters and output."""

    def __call__(self, x: mx.array) -> mx.array:
        y = frozen_matmul(x, self)
        return y + self.bias if "bias" in self else y


class FastQuantizedEmbedding(nn.QuantizedEmbedding):
    """A QuantizedEmbedding whose tied head multiplies by `frozen_matmul`."""

    def as_linear(self, x: mx.array) -> mx.array:
        return frozen_matmul(x, self)


FAST = {nn.QuantizedLinear: FastQuantizedLinear, nn.QuantizedEmbedding: FastQuantizedEmbedding}


def use_fast_products(model: nn.Module) -> nn.Module:
    """Give every quantised layer of a model on the CPU the faster product; nothing else changes."""
    if on_cpu():
        for _, module in model.named_modules():
            fast = FAST.get(type(module))
            if fast is not None:
                module.__class__ = fast
    return model
