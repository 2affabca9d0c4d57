"""GGUF's names and row order, against the package that llama.cpp's converter uses."""

import numpy as np
import pytest

from mlx_hybrid.models.gguf import config as names
from mlx_hybrid.models.gguf.config import gguf_name, mlx_name

USUAL = [
    *(f"blk.1.{part}" for part in ("attn_norm", "attn_output", "ffn_up", "ffn_down")),
    "token_embd",
    "output_norm",
]


@pytest.mark.parametrize("architecture", [name for name in names.FAMILIES if name != "mistral"])
def test_names_are_those_of_the_converter(architecture):
    import gguf

    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(known, 4)
    qkv = ["attn_qkv"] if architecture == "phi3" else ["attn_q", "attn_k", "attn_v"]
    for name in [*USUAL, *(f"blk.1.{part}" for part in qkv)]:
        found = mlx_name(architecture, f"{name}.weight")
        assert gguf_name(architecture, found) == f"{name}.weight"
        assert table.get_name(found.removesuffix(".weight")) == name


def test_gemma_has_a_norm_on_each_side():
    parts = ("post_attention_norm", "ffn_norm", "post_ffw_norm")
    pairs = [mlx_name("gemma3", f"blk.0.{part}.weight") for part in parts]
    ends = ["post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
    assert pairs == [f"model.layers.0.{end}.weight" for end in ends]
    assert mlx_name("llama", "blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    assert names.is_shifted("gemma3", "blk.0.attn_q_norm.weight")
    assert not names.is_shifted("qwen3", "blk.0.attn_q_norm.weight")
    assert not names.is_shifted("gemma3", "blk.0.attn_q.weight")


def test_what_has_no_place_has_no_name():
    assert mlx_name("llama", "rope_freqs.weight") is None
    assert mlx_name("llama", "blk.0.ffn_gate_exps.weight") is None
    assert gguf_name("llama", "model.layers.0.mlp.gate.weight") is None
    assert names.ARCHITECTURES["gemma3_text"] == "gemma3"
    assert names.ARCHITECTURES["mistral"] == names.ARCHITECTURES["llama"] == "llama"


@pytest.mark.parametrize("shape", [(24, 5), (24,)], ids=["weight", "bias"])
def test_rows_are_llama_cpps(shape):
    """Row 2i of a head there is row i here, and row 2i + 1 is row i + d/2."""
    mine, heads, half = np.arange(np.prod(shape)).reshape(shape), 3, 4
    k = "blk.0.attn_k.weight" if len(shape) > 1 else "blk.0.attn_k.bias"
    theirs = names.reordered("llama", k, mine, {"q": 6, "k": heads})
    for head in range(heads):
        for i in range(half):
            start = head * 2 * half
            assert np.array_equal(theirs[start + 2 * i], mine[start + i])
            assert np.array_equal(theirs[start + 2 * i + 1], mine[start + i + half])
    assert np.array_equal(names.reordered("llama", k, theirs, {"q": 6, "k": heads}, back=True), mine)
    assert names.reordered("qwen2", k, mine, {"q": 6, "k": heads}) is mine
