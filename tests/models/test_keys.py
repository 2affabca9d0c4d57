"""Keys of config.json that mlx-lm would not read, weights that are no numbers, and what a base is known by."""

import json
import shutil

import mlx.core as mx
import pytest
from hf_bases import dense_base
from mlx_lm.utils import load_model
from toys import write_model

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import fingerprint, fingerprints, load_base
from mlx_hybrid.models.keys import check_keys, mended

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 4096}


def rewritten(base, folder, change):
    shutil.copytree(base, folder)
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    return folder


def logits(model):
    return model(mx.array([list(range(5, 90))]))


@pytest.mark.peft
def test_the_base_of_positions_is_read_where_transformers_5_keeps_it(tmp_path):
    """Against the model that stock mlx-lm builds from the older name."""

    def newer(tree):
        tree.pop("rope_theta", None)
        tree["rope_parameters"] = {"rope_theta": 500000.0, "rope_type": "default"}

    base = dense_base("llama")
    folder = rewritten(base, tmp_path / "newer", newer)
    expected, _ = load_model(base, model_config={"rope_theta": 500000.0})
    silent, _ = load_model(folder)
    ours = load_base(str(folder)).model
    assert mx.allclose(logits(ours), logits(expected), atol=1e-5)
    assert mx.abs(logits(ours) - logits(silent)).max() > 0.1


def test_scaling_and_layers_get_their_older_names():
    linear = {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}
    assert mended({"rope_parameters": linear})["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    kinds = ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"]
    rope = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    new = mended({"rope_parameters": rope, "layer_types": kinds, "dtype": "bfloat16"})
    assert (new["rope_theta"], new["rope_local_base_freq"], new["sliding_window_pattern"]) == (1e6, 1e4, 3)
    assert new["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e5}},
            "rope_theta 10000.0 and rope_parameters",
        ),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True}, "sliding_window 512"),
    ],
)
def test_a_key_that_would_be_left_out_is_refused_by_name(change, named):
    with pytest.raises(ConfigError, match=named):
        check_keys(LLAMA | change, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"my_note": "x", "initializer_range": 0.3},
        {"partial_rotary_factor": 1.0, "residual_multiplier": 1, "attn_logit_softcapping": None},
        {"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": False, "max_window_layers": 28},
        {"hidden_act": "silu", "head_dim": 16},
        {"model_type": "of mlx-lm unknown", "attn_logit_softcapping": 50.0},
    ],
)
def test_keys_that_change_nothing_are_let_be(change):
    check_keys(LLAMA | change, "x")


@pytest.mark.peft
def test_a_base_is_its_weights_and_what_it_computes(tmp_path):
    base = dense_base("llama")
    own, old = fingerprints(base)

    def noted(tree):
        tree |= {"transformers_version": "9", "my_note": 1, "max_position_embeddings": 512}
        tree["rope_theta"] = tree.get("rope_theta") or tree["rope_parameters"]["rope_theta"]

    def widened(tree):
        tree["rope_theta"] = tree["rope_parameters"]["rope_theta"] = 123.0

    same = rewritten(base, tmp_path / "same", noted)
    assert fingerprint(same) == own
    assert fingerprints(same)[1] != old
    assert fingerprint(rewritten(base, tmp_path / "other", widened)) != own
    tensors = mx.load(str(same / "model.safetensors"))
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    mx.save_safetensors(str(same / "model.safetensors"), tensors, metadata={"format": "pt"})
    assert fingerprint(same) != own


@pytest.mark.peft
def test_adapters_find_their_base_by_either_mark(tmp_path):
    from hf_bases import trained

    from mlx_hybrid.models.adapted import load_any

    adapter, base = trained("lora", "llama"), dense_base("llama")
    for mark in fingerprints(base):
        folder = tmp_path / mark
        shutil.copytree(adapter, folder)
        path = folder / "adapter_config.json"
        tree = json.loads(path.read_text())
        tree["mlx_hybrid"]["base"]["fingerprint"] = mark
        path.write_text(json.dumps(tree))
        assert load_any(str(folder), base_name=str(base)).modules == 14


@pytest.mark.parametrize(
    ("mode", "leaf", "value"),
    [
        ("", "model.norm.weight", float("nan")),
        ("affine-4", "model.layers.1.mlp.up_proj.scales", float("nan")),
        ("affine-4", "model.layers.0.self_attn.q_proj.biases", float("inf")),
    ],
)
def test_weights_that_are_no_numbers_are_named(tmp_path, mode, leaf, value):
    folder = write_model(tmp_path / "model", mode)
    load_base(str(folder))
    path = next(folder.glob("*.safetensors"))
    weights = mx.load(str(path))
    flat = weights[leaf].reshape(-1)
    flat[3] = value
    mx.save_safetensors(str(path), weights | {leaf: flat.reshape(weights[leaf].shape)}, {"format": "mlx"})
    with pytest.raises(ConfigError, match=f"{leaf} hold NaN or inf"):
        load_base(str(folder))
