"""Weights in a folder: a layout of MLX alone is refused by name, one that transformers wrote is carried."""

import importlib
import json

import mlx.core as mx
import pytest
from architectures import ARCHITECTURES, COMMON
from hf_bases import adapter_on, one_thread  # noqa: F401
from mlx_lm.utils import save_model
from tiny_model import write_tokenizer

from mlx_hybrid.adapters.targets import is_experts
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.weights import ModelWeights, write_dense
from mlx_hybrid.files import read_json, write_json

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GRANITE = EXPERTS | {
    "logits_scaling": 1.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_bias": False,
    "rope_theta": 1e4,
    "tie_word_embeddings": True,
}
MIXTURES = {
    "qwen3_moe": (ARCHITECTURES["qwen3_moe"], "mlp.switch_mlp"),
    "mixtral": (ARCHITECTURES["mixtral"], "block_sparse_moe.switch_mlp"),
    "granitemoe": (GRANITE, "block_sparse_moe.switch_mlp"),
    "gpt_oss": (EXPERTS | {"head_dim": 16}, "mlp.experts"),
}


def written_by_mlx_lm(folder, name: str, settings: dict):
    """A tiny random model as mlx-lm converts it."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    config = {**COMMON, **settings, "model_type": name}
    mx.random.seed(7)
    model = module.Model(module.ModelArgs.from_dict(config))
    folder.mkdir()
    save_model(folder, model)
    write_json(folder / "config.json", config)
    return model


@pytest.mark.parametrize("family", MIXTURES)
def test_stacked_experts_are_refused_by_name(tmp_path, family):
    settings, stack = MIXTURES[family]
    model = written_by_mlx_lm(tmp_path / "base", family, settings)
    assert any(is_experts(module) for module in model.modules())
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=rf"{stack}[\w.]* is stored as MLX lays it out"):
        write_dense(ModelWeights(tmp_path / "base"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_convolutions_of_mlx_are_refused_too(tmp_path):
    written_by_mlx_lm(tmp_path / "base", "lfm2", ARCHITECTURES["lfm2"])
    with pytest.raises(ConfigError, match=r"conv[\w.]* is stored as MLX lays it out"):
        write_dense(ModelWeights(tmp_path / "base"), tmp_path / "out")


def test_another_packing_is_refused_by_name(tmp_path):
    written_by_mlx_lm(tmp_path / "base", "llama", {})
    config = read_json(tmp_path / "base" / "config.json")
    write_json(tmp_path / "base" / "config.json", config | {"quantization_config": {"quant_method": "mxfp4"}})
    with pytest.raises(ConfigError, match="is packed by mxfp4"):
        write_dense(ModelWeights(tmp_path / "base"), tmp_path / "out")


@pytest.mark.peft
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", ["granitemoe", "qwen3_moe", "mixtral"])
def test_experts_as_transformers_stores_them_are_carried(tmp_path, family):
    """An adapter beside the experts, merged into the original: both libraries say the same."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    base = tmp_path / "base"
    base.mkdir()
    sizes = COMMON | MIXTURES[family][0] | {"vocab_size": write_tokenizer(base, None), "dtype": torch.float32}
    torch.manual_seed(11)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(base)
    tree = read_json(base / "config.json")  # mlx-lm reads some settings by older names
    write_json(base / "config.json", tree | tree["rope_parameters"] | MIXTURES[family][0])
    adapter = adapter_on(str(base), tmp_path / "adapter", targets=["q_proj", "v_proj"])
    report = export(str(adapter), "merged", tmp_path / "out", Options(model=str(base)))
    assert report.checks["logits"]["passed"]
    assert ModelWeights(tmp_path / "out").shapes == ModelWeights(base).shapes
    assert "quantization" not in json.loads((tmp_path / "out" / "config.json").read_text())
