"""Every format equals `gguf.dequantize` to the bit, as arrays and in the layers that hold it."""

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from gguf_files import blocks

from mlx_hybrid.adapters.attach import dequantise
from mlx_hybrid.adapters.frozen import dense_weight, frozen_matmul
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.models.gguf.blocks import FIELDS, PACKED, PLAIN, plain, unpack
from mlx_hybrid.models.gguf.load import held_as
from mlx_hybrid.models.head import rows_of

ROWS, WIDTH = 24, 512


def layer_of(kind: str, *, embedding: bool = False) -> tuple[nn.Module, np.ndarray]:
    """A layer that holds random blocks, and the weights that `gguf` makes of them."""
    data = blocks(kind, (ROWS, WIDTH), 5)
    parts = {name: mx.array(value) for name, value in unpack(kind, data).items()}
    place = nn.Embedding(ROWS, WIDTH) if embedding else nn.Linear(WIDTH, ROWS, bias=False)
    return held_as(place, kind, parts), gguf.dequantize(data, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", FIELDS)
def test_a_layer_holds_a_format_to_the_bit(kind):
    layer, weight = layer_of(kind)
    assert np.array_equal(np.array(dense_weight(layer, mx.float32)), weight)
    assert np.dtype(FIELDS[kind]).itemsize == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    table, rows = layer_of(kind, embedding=True)
    assert np.array_equal(np.array(table(mx.array([[3, 0], [23, 7]]))), rows[[[3, 0], [23, 7]]])
    part = rows_of(table, 8, 16)
    assert np.array_equal(np.array(dense_weight(part, mx.float32)), rows[8:16])


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("count", [1, 40], ids=["a token", "a batch"])
def test_products_and_their_gradients_are_those_of_the_weight(kind, count):
    layer, weight = layer_of(kind)
    x = mx.random.normal((2, count, WIDTH))
    want, tolerance = np.array(x) @ weight.T, 1e-5 * np.abs(weight).sum()
    assert np.abs(np.array(layer(x)) - want).max() < tolerance
    table, _ = layer_of(kind, embedding=True)
    assert np.abs(np.array(table.as_linear(x)) - want).max() < tolerance
    grow = mx.grad(lambda x: frozen_matmul(x, layer).sum())(x)
    assert np.abs(np.array(grow) - weight.sum(0)).max() < tolerance


@pytest.mark.parametrize("kind", PACKED)
def test_packed_layers_carry_adapters_and_unpack(kind):
    layer, weight = layer_of(kind)
    x = mx.random.normal((3, WIDTH))
    adapted = HybridLinear.from_base(layer)
    assert np.abs(np.array(adapted(x) - layer(x))).max() <= 1e-5 * np.abs(np.array(layer(x))).max()
    assert np.abs(np.array(adapted.fuse().weight) - weight).max() < 1e-5
    model = nn.Sequential(layer, layer_of(kind, embedding=True)[0])
    dequantise(model)
    assert [type(part) for part in model.layers] == [nn.Linear, nn.Embedding]
    assert np.array_equal(np.array(model.layers[0].weight), weight)


@pytest.mark.parametrize("kind", PLAIN)
def test_numbers_that_are_no_blocks_stay_as_they_are(kind):
    data = blocks(kind, (ROWS, WIDTH), 5)
    found = plain(kind, data.view(np.uint8).reshape(ROWS, -1)).astype(np.float32)
    assert np.array_equal(found, gguf.dequantize(data, gguf.GGMLQuantizationType[kind]))


GPU = [("Q4_0", mx.float16), ("Q4_K", mx.float32), ("Q6_K", mx.float16)]


@pytest.mark.parametrize(("kind", "dtype"), GPU)
def test_on_a_gpu_scales_are_halved_where_that_is_exact(kind, dtype, monkeypatch, tmp_path):
    """And the activations' type is kept, whatever the weights' is."""
    from gguf_files import write_gguf

    from mlx_hybrid.adapters import frozen
    from mlx_hybrid.models.gguf import file, load

    dense = write_gguf(tmp_path / "x.gguf", kind=kind)
    for module in (frozen, load):
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    model, _ = load.build(file.open_gguf(tmp_path / "x.gguf"))
    layer = model.layers[1].mlp.down_proj
    assert (layer.d if kind in PACKED else layer.scales).dtype == dtype
    assert np.array_equal(np.array(model.weight_of("blk.1.ffn_down.weight")), dense["blk.1.ffn_down.weight"])
    hidden = model.model.embed_tokens(mx.array([[1, 2]]))
    assert hidden.dtype == layer(mx.zeros((1, 512), mx.bfloat16)).dtype == mx.bfloat16
    assert model(mx.array([[1, 2, 3]])).dtype == mx.bfloat16
