"""The weights of a GGUF file as exports read them."""

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf_files import HEADS, write_gguf

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.weights import weights_of, write_dense


def test_tensors_come_in_hugging_faces_layout(tmp_path):
    dense = write_gguf(tmp_path / "x.gguf", "gemma3", "Q6_K")
    weights = weights_of(tmp_path / "x.gguf")
    norm, product = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.down_proj.weight"
    assert weights.packed
    assert np.array_equal(np.array(weights.unpacked(norm)), dense["blk.1.attn_norm.weight"] - 1)
    assert np.array_equal(np.array(weights.unpacked(product)), dense["blk.1.ffn_down.weight"])
    held = mx.array(dense["blk.1.attn_norm.weight"])
    assert mx.array_equal(weights.from_model(norm, held), weights.unpacked(norm))
    assert weights.shapes[product] == (256, 512)
    with pytest.raises(ConfigError, match=r"x.gguf: holds no tensor model.nothing"):
        weights.read("model.nothing")


@pytest.mark.peft
def test_an_unpacked_copy_loads_in_transformers(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dense = write_gguf(tmp_path / "x.gguf", "llama", "Q8_0")
    (tmp_path / "copy").mkdir()
    write_dense(weights_of(tmp_path / "x.gguf"), tmp_path / "copy", mx.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    q = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    own = dense["blk.0.attn_q.weight"].reshape(HEADS, -1, 2, 256).swapaxes(1, 2).reshape(q.shape)
    assert np.array_equal(q, own)
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template
    assert gguf.GGUFReader(tmp_path / "x.gguf").tensors
