"""Whole models from GGUF files, against transformers on the weights that `gguf` unpacks."""

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf_files import HEADS, KV, LAYERS, SIZE, VOCABULARY, WIDTH, shapes, write_gguf

import mlx_hybrid
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import fingerprint, load_base
from mlx_hybrid.models.gguf.file import open_gguf
from mlx_hybrid.models.gguf.load import build, holdings

FAMILIES = ("llama", "smollm3", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")
USUAL = {"rope_type": "default", "rope_theta": 10000.0}
MORE = {
    "smollm3": ({}, {"rope_parameters": USUAL}),
    "gemma2": (
        {"gemma2.attn_logit_softcapping": 50.0, "gemma2.final_logit_softcapping": 30.0},
        {"query_pre_attn_scalar": SIZE},
    ),
    "gemma3": (
        {"gemma3.attention.sliding_window_pattern": 2},
        {
            "query_pre_attn_scalar": SIZE,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"sliding_attention": USUAL, "full_attention": USUAL},
        },
    ),
}
"""What a family has in its metadata and its settings beyond the others."""
TOKENS = [[5, 9, 250, 3, 77, 41, 41, 8]]


def reordered(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of llama.cpp's order in transformers', written out."""
    whole = np.empty_like(rows)
    half = len(rows) // heads // 2
    for head in range(heads):
        for i in range(half):
            whole[2 * half * head + i] = rows[2 * half * head + 2 * i]
            whole[2 * half * head + half + i] = rows[2 * half * head + 2 * i + 1]
    return whole


def reference(family: str, dense: dict[str, np.ndarray], **settings) -> np.ndarray:
    """transformers' logits, its names carried over by gguf's own table."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = "gemma3_text" if family == "gemma3" else family
    config = AutoConfig.for_model(
        kind, hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=512, num_attention_heads=HEADS,
        num_key_value_heads=KV, head_dim=SIZE, vocab_size=VOCABULARY, rms_norm_eps=1e-5, pad_token_id=0,
        max_position_embeddings=512, tie_word_embeddings=True, attn_implementation="eager", **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    table = gguf.get_tensor_name_map({n: a for a, n in gguf.MODEL_ARCH_NAMES.items()}[family], LAYERS)
    state = {}
    for name in model.state_dict():
        module, _, leaf = name.rpartition(".")
        if name == "lm_head.weight":
            module = "model.embed_tokens"
        own = f"{table.get_name(module)}.{leaf}"
        value = dense[own]
        if family in ("llama", "smollm3") and ("attn_q." in own or "attn_k." in own):
            value = reordered(value, HEADS if "attn_q" in own else KV)
        if family.startswith("gemma") and own.endswith("norm.weight"):
            value = value - 1
        state[name] = torch.from_numpy(value.copy())
    model.load_state_dict(state)
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


BIASES = {"attn_q": HEADS * SIZE, "attn_k": KV * SIZE, "attn_v": KV * SIZE, "attn_output": WIDTH}
BIASES = {f"blk.{i}.{name}.bias": (rows,) for i in range(LAYERS) for name, rows in BIASES.items()}


@pytest.mark.peft
@pytest.mark.parametrize(("family", "biases"), [*((family, {}) for family in FAMILIES), ("llama", BIASES)])
def test_logits_are_those_of_transformers(family, biases, tmp_path):
    path, (metadata, settings) = tmp_path / "x.gguf", MORE.get(family, ({}, {}))
    settings = settings | ({"attention_bias": True} if biases else {})
    dense = write_gguf(
        path, family, "Q4_1", kinds={"blk.0.ffn_down.weight": "Q6_K"}, extra=biases, **metadata
    )
    want = reference(family, dense, **settings)
    model = load_base(str(path)).model
    got = np.array(model(mx.array(TOKENS)))
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    for name, value in dense.items():
        assert np.array_equal(np.array(model.weight_of(name)), value), name


@pytest.mark.peft
def test_llama_3s_factors_become_its_settings(tmp_path):
    """transformers makes the factors from its settings; from others no settings are guessed."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_theta": 10000.0}  # fmt: skip
    config = LlamaConfig(head_dim=SIZE, hidden_size=WIDTH, num_attention_heads=HEADS, rope_parameters=rope)
    usual = 10000.0 ** -(np.arange(0, SIZE, 2) / SIZE)
    factors = usual / ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
    path = tmp_path / "x.gguf"
    dense = write_gguf(path, extra={"rope_freqs.weight": (SIZE // 2,)})
    file = open_gguf(path)
    tensor = file.tensors["rope_freqs.weight"]
    with path.open("r+b") as raw:
        raw.seek(tensor.start)
        raw.write(factors.astype("<f4").tobytes())
    want = reference("llama", dense, rope_parameters=rope)
    model, settings = build(file)
    assert np.abs(np.array(model(mx.array(TOKENS))) - want).max() < 1e-4 * np.abs(want).max()
    assert settings["rope_scaling"]["factor"] == 8.0
    write_gguf(path, extra={"rope_freqs.weight": (SIZE // 2,)})
    with pytest.raises(ConfigError, match=r"x.gguf: its rope_freqs.weight are not Llama 3's"):
        load_base(str(path))


@pytest.mark.parametrize(
    ("kind", "bound"), [("Q8_0", 1.25), ("Q4_0", 1.4), ("Q4_K", 1.4), ("Q6_K", 1.0), ("F16", 2.0)]
)
def test_memory_is_bounded_and_known_beforehand(kind, bound, tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, kind=kind)
    file = open_gguf(path)
    rows = {row["type"]: row for row in holdings(file)}
    model, _ = build(file)
    from mlx.utils import tree_flatten

    held = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    assert sum(row["bytes"] for row in rows.values()) == held
    assert rows[kind]["bytes"] <= bound * rows[kind]["file_bytes"]
    assert rows[kind]["file_bytes"] == sum(t.size for t in file.tensors.values() if t.kind == kind)


def test_a_split_file_is_one_model(tmp_path):
    whole = tmp_path / "whole.gguf"
    dense = write_gguf(whole)
    names = list(shapes("llama"))
    first, second = (tmp_path / f"x-0000{n}-of-00002.gguf" for n in (1, 2))
    write_gguf(first, drop=names[9:])
    write_gguf(second, drop=[*names[:9], "tokenizer"])
    base = load_base(str(second))
    assert np.array_equal(np.array(base.model.weight_of(names[3])), dense[names[3]])
    assert base.path == first
    second.unlink()
    open_gguf.__globals__["_opened"].cache_clear()
    with pytest.raises(ConfigError, match=r"x-00002-of-00002.gguf: is missing"):
        load_base(str(first))


def test_identity_is_of_the_weights_and_read_once(tmp_path, monkeypatch):
    first, second, other = (tmp_path / f"{name}.gguf" for name in "abc")
    write_gguf(first)
    write_gguf(second, **{"general.author": "someone"})
    write_gguf(other, kinds={"blk.0.ffn_up.weight": "Q4_0"})
    identities = [load_base(str(path)).identity for path in (first, second, other)]
    assert identities[0]["id"] == "a.gguf"
    assert identities[0]["fingerprint"] == identities[1]["fingerprint"] != identities[2]["fingerprint"]
    again = load_base(str(first)).path
    monkeypatch.setattr(np, "fromfile", lambda *_, **__: pytest.fail("a weight is read again"))
    assert fingerprint(again) == identities[0]["fingerprint"]


def test_load_gives_model_and_tokenizer(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, kind="Q4_0")
    model, tokenizer = mlx_hybrid.load(str(path))
    assert tokenizer.decode(tokenizer.started("naïve ∑")) == "naïve ∑"
    assert tokenizer.eos_token_ids == {258}
    assert tokenizer.ask([{"role": "user", "content": "a"}])[0] == 259
    told = 'no tensor "blk.0.ffn_upp.weight"; did you mean "blk.0.ffn_up.weight"'
    with pytest.raises(ConfigError, match=told):
        model.weight_of("blk.0.ffn_upp.weight")
