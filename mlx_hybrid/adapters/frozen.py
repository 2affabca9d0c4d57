"""Products with frozen weights, dense or quantised. On the CPU a quantised matmul runs at a few GFLOP/s while
dequantise-and-multiply reaches the BLAS library's speed: weights are dequantised once where the memory has room, else
in every product of 16 rows or more, and again in the backward pass. On the GPU MLX's own kernels are used."""

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.run import memory_bytes

DENSE_ROWS = 16  # below it reading the packed weight wins (generation token by token)
UNPACKED_SHARE = 0.25  # of the machine's memory, that weights may take that are unpacked once


def on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def packing(layer: nn.Module) -> dict:
    """How a layer's weight is packed, as MLX's functions take it."""
    sizes = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return {"scales": layer.scales, "biases": layer.get("biases"), **sizes}


def dense_weight(layer: nn.Module, dtype: mx.Dtype | None = None) -> mx.array:
    """The layer's weight (out, in), dequantised where it is packed."""
    return unpacked(layer, layer.weight, dtype) if hasattr(layer, "scales") else layer.weight


def unpacked(layer: nn.Module, codes: mx.array, dtype: mx.Dtype | None) -> mx.array:
    """The weight of a packed layer from its codes; a layer of another packing than MLX's knows how itself."""
    if hasattr(layer, "dense"):
        return layer.dense(codes).astype(dtype or mx.float32)
    how = packing(layer)
    if dtype == mx.float32 and how["biases"] is not None:  # MLX computes in the scales' type
        how |= {part: how[part].astype(dtype) for part in ("scales", "biases")}
    return mx.dequantize(codes, **how, dtype=dtype)


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer, or of each of stacked experts; packed or not."""
    out, packed = linear.weight.shape[-2:]
    return packed * 32 // linear.bits if hasattr(linear, "scales") else packed, out


def frozen_matmul(x: mx.array, layer: nn.Module) -> mx.array:
    """x Wᵀ (…, out) without the bias, for a Linear, QuantizedLinear, Embedding or QuantizedEmbedding. The weight gets
    no gradient. Where it is dequantised, `mx.depends` ties the second dequantisation to the cotangent, so that no dense
    weight lives from the forward to the backward pass."""
    if not hasattr(layer, "scales"):
        return x @ layer.weight.T
    if "_unpacked" in layer:
        return x @ layer["_unpacked"].T
    if not on_cpu() or x.size // x.shape[-1] < DENSE_ROWS:
        if hasattr(layer, "product"):
            return layer.product(x).astype(x.dtype)
        y = mx.quantized_matmul(x, layer.weight, **packing(layer), transpose=True)
        return y.astype(x.dtype)  # a GGUF file's scales may be wider than the activations
    packed = layer.weight

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return x @ unpacked(layer, packed, x.dtype).T

    @product.vjp
    def product_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        (late,) = mx.depends([packed], [cotangent])
        return cotangent @ unpacked(layer, late, x.dtype)

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
            module.__class__ = FAST.get(type(module), type(module))
    return model


def unpack(model: nn.Module) -> None:
    """Keep the weights of a packed model unpacked beside it where `unpacked_bytes` has room for them: unpacking takes
    as long as multiplying by 100 rows, and packed products of a few rows longer."""
    for module in packed_layers(model) if unpacked_bytes(model) else ():
        module["_unpacked"] = dense_weight(module, mx.float32)


def unpacked_bytes(model: nn.Module) -> int:
    """What the layers with faster products would take unpacked; 0 where that is over their share of the memory."""
    size = sum(4 * math.prod(linear_shape(layer)) for layer in packed_layers(model))
    return size if size <= UNPACKED_SHARE * memory_bytes() else 0


def packed_layers(model: nn.Module) -> list[nn.Module]:
    """Of a model on the CPU the layers with faster products; an embedding beside a head of its own has none."""
    modules = dict(model.named_modules()) if on_cpu() else {}
    own_head = any(name.endswith("lm_head") for name in modules)
    kinds = FastQuantizedLinear if own_head else tuple(FAST.values())
    return [module for module in modules.values() if isinstance(module, kinds)]
