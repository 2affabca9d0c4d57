"""Products with frozen weights: the same numbers and gradients by either path, and no dense weight kept."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from tolerances import LOGITS, ROUNDING
from toys import MODES, base_linear, tiny_llama

from mlx_hybrid.adapters import frozen
from mlx_hybrid.adapters.frozen import (
    DENSE_ROWS,
    FastQuantizedLinear,
    dense_weight,
    frozen_matmul,
    unpack,
    unpacked_bytes,
    use_fast_products,
)

each_mode = pytest.mark.parametrize("mode", ["", *MODES], ids=["dense", *MODES])


@each_mode
@pytest.mark.parametrize("rows", [1, DENSE_ROWS - 1, DENSE_ROWS, 64])
def test_the_product_is_that_of_the_dense_weight(mode, rows):
    layer, x = base_linear(mode), mx.random.normal((rows, 64))
    exact = x @ dense_weight(layer, mx.float32).T
    assert mx.allclose(frozen_matmul(x, layer), exact, rtol=ROUNDING, atol=ROUNDING)
    assert mx.allclose(frozen_matmul(x[None], layer)[0], exact, rtol=ROUNDING, atol=ROUNDING)


@each_mode
def test_the_gradient_is_that_of_the_dense_weight(mode):
    layer, x, direction = base_linear(mode), mx.random.normal((20, 64)), mx.random.normal((20, 96))
    weight = dense_weight(layer, mx.float32)
    ours = mx.grad(lambda x: mx.sum(frozen_matmul(x, layer) * direction))(x)
    assert mx.allclose(ours, direction @ weight, rtol=ROUNDING, atol=ROUNDING * 10)


@each_mode
def test_compiled_and_checkpointed_the_gradient_is_the_same(mode):
    layer, x, direction = base_linear(mode), mx.random.normal((20, 64)), mx.random.normal((20, 96))
    plain = mx.grad(lambda x: mx.sum(frozen_matmul(x, layer) * direction))
    recomputed = mx.grad(lambda x: mx.sum(mx.checkpoint(lambda x: frozen_matmul(x, layer))(x) * direction))
    assert mx.allclose(recomputed(x), plain(x), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("mode", MODES)
def test_a_model_with_fast_products_gives_the_same_logits(mode):
    model, tokens = tiny_llama(mode), mx.array([list(range(30, 62))])
    plain = model(tokens)
    fast = use_fast_products(model)
    assert mx.max(mx.abs(fast(tokens) - plain)).item() <= LOGITS
    assert any(isinstance(m, FastQuantizedLinear) for _, m in fast.named_modules())


@pytest.mark.parametrize("mode", MODES)
def test_unpacked_once_the_logits_are_the_same_and_nothing_is_saved(mode, monkeypatch):
    model, tokens = use_fast_products(tiny_llama(mode)), mx.array([[3, 5, 8]])
    plain, names = model(tokens), dict(tree_flatten(model.parameters())).keys()
    with monkeypatch.context() as small:
        small.setattr(frozen, "UNPACKED_SHARE", 1e-9)  # too little for these weights
        unpack(model)
    assert not any("_unpacked" in module for _, module in model.named_modules())
    unpack(model)
    assert any("_unpacked" in module for _, module in model.named_modules())
    assert mx.max(mx.abs(model(tokens) - plain)).item() <= LOGITS
    assert dict(tree_flatten(model.parameters())).keys() == names


def test_on_a_gpu_nothing_is_unpacked(monkeypatch):
    """A GGUF file's layers have the faster class on every device."""
    model = use_fast_products(tiny_llama("affine-4"))
    assert unpacked_bytes(model) > 0
    monkeypatch.setattr(frozen, "on_cpu", lambda: False)
    unpack(model)
    assert unpacked_bytes(model) == 0
    assert not any("_unpacked" in module for _, module in model.named_modules())


def test_fast_layers_keep_their_bias():
    layer = base_linear("affine-4", bias=True)
    x = mx.random.normal((20, 64))
    plain = layer(x)
    model = nn.Sequential(layer)
    assert mx.allclose(use_fast_products(model)(x), plain, rtol=ROUNDING, atol=ROUNDING)
