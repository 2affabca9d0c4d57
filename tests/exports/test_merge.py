"""Merged and fused models, and adapters for stock mlx-lm."""

import json

import mlx.core as mx
import numpy as np
import pytest
from architectures import ARCHITECTURES as MIXTURES
from architectures import COMMON, tiny
from hf_bases import (
    ARCHITECTURES,
    LOW_RANK,
    adapter_on,
    dense_base,
    folder_of,
    greedy,
    greedy_ours,
    one_thread,  # noqa: F401
    trained,
)
from mlx_lm import load
from tiny_model import write_tokenizer

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.store import load_adapter, save_adapter
from mlx_hybrid.config import build_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.merge import SURVIVES, check_merged, write_merged
from mlx_hybrid.exports.weights import ModelWeights
from mlx_hybrid.models.base import load_base

pytestmark = pytest.mark.usefixtures("one_thread")

SAME_LOGITS = 1e-4  # float32 sums in another order
BF16_KL = 5e-3  # nats a token that rounding these weights to bf16 costs at most; measured 1e-4 to 1e-3
PROMPT = [5, 9, 40, 17]


@pytest.mark.peft
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_loads_in_transformers(tmp_path, architecture):
    packed = architecture in ("llama", "gemma3_text")
    report, _, _ = exported(tmp_path, "hybrid-boft" if packed else "hybrid", architecture, packed=packed)
    assert report.checks["logits"]["difference_logit"] <= SAME_LOGITS
    assert report.checks["logits"]["effect_logit"] >= 100 * report.checks["logits"]["difference_logit"]
    assert report.checks["rounding"]["kl_nats_per_token"] <= BF16_KL
    assert report.checks["survival"]["surviving_share"] == pytest.approx(1, abs=0.02)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization" not in config
    assert "quantization_config" not in config
    merged, original = ModelWeights(tmp_path / "out"), ModelWeights(dense_base(architecture))
    assert set(merged.files) == set(original.files)  # the original's names: heads tied there are tied here
    assert merged.shapes == original.shapes
    assert {merged.read(name).dtype for name in merged.files} == {mx.bfloat16}
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def exported(tmp_path, method, architecture, to="merged", *, packed=False, **options):
    """An export with the adapter and the base it is of."""
    adapter, base = trained(method, architecture, packed=packed), folder_of(architecture, packed=packed)
    return export(str(adapter), to, tmp_path / "out", Options(model=base, **options)), adapter, base


def test_merged_keeps_biases_and_every_other_tensor(tmp_path):
    _, adapter, base = exported(tmp_path, "hybrid", "llama")
    merged, original = ModelWeights(tmp_path / "out"), ModelWeights(dense_base("llama"))
    source = open_source(str(adapter), model=base)
    for name in original.files:
        same = mx.array_equal(merged.read(name), original.read(name).astype(mx.bfloat16))
        assert bool(same) == (name.removesuffix(".weight") not in source.info.modules), name
    assert "model.layers.0.self_attn.q_proj.bias" in merged.files


def test_large_models_are_written_in_shards_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_hybrid.exports.weights.SHARD_GB", 0)
    exported(tmp_path, "lora", "qwen3")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert all((tmp_path / "out" / name).is_file() for name in files)
    assert set(index["weight_map"]) == set(ModelWeights(dense_base("qwen3")).files)


def test_stacked_experts_are_fused_for_mlx_alone(tmp_path):
    """A mixture of experts as mlx-lm converts it, in stacks, with an adapter on its attention."""
    from mlx_lm.utils import save_model

    base = str(tmp_path / "mixture")
    (tmp_path / "mixture").mkdir()
    save_model(base, tiny("qwen3_moe"))
    write_tokenizer(tmp_path / "mixture", None)
    tree = {"model_type": "qwen3_moe", **COMMON, **MIXTURES["qwen3_moe"]}
    (tmp_path / "mixture" / "config.json").write_text(json.dumps(tree))
    adapter = adapter_on(base, tmp_path / "adapter", targets=["q_proj", "v_proj"])
    with pytest.raises(ConfigError, match=r"stacked experts.*make a model for MLX with fuse"):
        export(str(adapter), "merged", tmp_path / "merged", Options(model=base))
    report = export(str(adapter), "fuse", tmp_path / "out", Options(model=base))
    assert report.kind == "fused model for MLX"
    assert "MLX alone reads it" in (tmp_path / "out" / "README.md").read_text()
    model = stock(tmp_path / "out")
    ours, plain = logits(adapted_model(base, adapter)), logits(load_base(base).model)
    assert np.abs(logits(model) - ours).max() < 0.1 * np.abs(ours - plain).max()


@pytest.mark.parametrize(("method", "packed"), [(method, True) for method in LOW_RANK] + [("hybrid", False)])
def test_stock_mlx_lm_says_the_same(tmp_path, method, packed):
    """`mlx_lm.load(base, adapter_path=...)` on the exact LoRA form."""
    report, adapter, base = exported(tmp_path, method, "qwen3", "mlx-lm", packed=packed)
    assert report.checks["logits"]["difference_logit"] <= SAME_LOGITS

    model = stock(base, tmp_path / "out")
    assert greedy(model, PROMPT, 12) == greedy_ours(base, adapter, PROMPT, 12)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4-bit"])
def test_stock_mlx_lm_applies_a_trained_head(tmp_path, packed):
    """`lm_head` lies outside the layers, and needs its whole name among mlx-lm's keys."""
    adapter = trained("hybrid", "llama", packed=packed, targets=("v_proj", "lm_head"))
    base = folder_of("llama", packed=packed)
    report = export(str(adapter), "mlx-lm", tmp_path / "out", Options(model=base))
    assert report.checks["logits"]["difference_logit"] <= SAME_LOGITS
    model = stock(base, tmp_path / "out")
    assert type(model.lm_head).__name__ == "LoRALinear"
    np.testing.assert_allclose(logits(model), logits(adapted_model(base, adapter)), atol=SAME_LOGITS)
    model.lm_head = model.lm_head.linear
    assert np.abs(logits(model) - logits(adapted_model(base, adapter))).max() > 100 * SAME_LOGITS


@pytest.mark.parametrize(("packed", "targets"), [(False, ("dense",)), (True, ("dense", "lm_head"))])
def test_stock_mlx_lm_loads_a_lora_run_as_it_is(packed, targets):
    """A plain `lora` adapter is mlx-lm's own format, without any export."""
    adapter = trained("lora", "llama", packed=packed, targets=targets)
    base = folder_of("llama", packed=packed)
    model = stock(base, adapter)
    ours = greedy_ours(base, adapter, PROMPT, 12)
    assert greedy(model, PROMPT, 12) == ours
    assert ours != greedy_ours(base, None, PROMPT, 12)


def test_mlx_lm_takes_a_butterfly_as_a_fused_model(tmp_path):
    report, _, _ = exported(tmp_path, "boft", "llama", "mlx-lm")
    assert report.kind == "fused model"
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("method", ["lora-ga", "hybrid", "hybrid-boft"])
def test_fused_is_the_adapter_up_to_rounding(tmp_path, method):
    adapter, base = trained(method, "phi3", packed=True), folder_of("phi3", packed=True)
    report = export(str(adapter), "fuse", tmp_path / "out", Options(model=base))
    assert report.checks["rounding"]["kl_nats_per_token"] <= BF16_KL
    model = stock(tmp_path / "out")
    assert not hasattr(model.layers[0].mlp.down_proj, "scales")


def test_packing_again_measures_what_survives(tmp_path):
    """Weights sit on the 4-bit grid: a small update rounds back to it."""
    base = folder_of("llama", packed=True)
    adapter = str(trained("hybrid", "llama", packed=True))
    large = export(adapter, "fuse", tmp_path / "large", Options(requantise=True, model=base))
    assert 0.9 <= large.checks["survival"]["surviving_share"] <= 1.1
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    assert config["quantization"]["bits"] == 4

    small = shrink(trained("lora", "llama", packed=True), tmp_path / "small", 0.02)  # packed: test_losses.py
    kept = export(str(small), "fuse", tmp_path / "dense", Options(model=base))
    assert kept.checks["survival"]["surviving_share"] > 0.9


def test_a_merged_export_can_be_packed_again(tmp_path):
    """The folder is MLX's: stock mlx-lm loads it packed, with the survivors of the update in it."""
    report, adapter, base = exported(tmp_path, "boft", "qwen3", packed=True, requantise=True)
    assert (report.to, report.kind) == ("merged", "fused model for MLX")
    assert report.checks["survival"]["surviving_share"] >= SURVIVES
    assert "MLX alone reads" in (tmp_path / "out" / "README.md").read_text()

    packed, plain = stock(tmp_path / "out"), stock(base)
    assert packed.layers[0].mlp.down_proj.bits == 4
    ours, adapted = logits(packed), logits(adapted_model(base, adapter))
    assert np.abs(ours - adapted).max() < 0.3 * np.abs(adapted - logits(plain)).max()


def test_a_dense_base_has_nothing_to_pack_again(tmp_path):
    with pytest.raises(ConfigError, match="is not quantised; leave out --requantise"):
        exported(tmp_path, "hybrid", "qwen3", requantise=True)
    assert not (tmp_path / "out").exists()


def stock(folder, adapter=None):
    """A model, with an adapter, as stock mlx-lm loads it; in float32."""
    model, _ = load(str(folder), adapter_path=adapter and str(adapter))
    model.set_dtype(mx.float32)
    return model


def logits(model) -> np.ndarray:
    return np.array(model(mx.array([PROMPT])))


def adapted_model(base: str, adapter):
    model = load_base(base).model
    load_adapter(model, adapter)
    model.eval()
    return model


def shrink(adapter, folder, factor: float):
    """The same LoRA with B made smaller."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    tensors = mx.load(str(adapter / "adapters.safetensors"))
    tensors = {k: v * factor if k.endswith("lora_b") else v for k, v in tensors.items()}
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    return folder


@pytest.mark.peft
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4-bit"])
def test_magnitudes_are_merged(tmp_path, packed):
    """DoRA divides by row norms, so its weights are no sum; merged they are in transformers what they are here."""
    report, adapter, base = exported(tmp_path, "dora", "llama", packed=packed)
    assert report.checks["logits"]["difference_logit"] <= SAME_LOGITS
    assert report.checks["rounding"]["kl_nats_per_token"] <= BF16_KL
    plain = np.abs(logits(adapted_model(base, adapter)) - logits(load_base(base).model)).max()
    assert plain > 1000 * SAME_LOGITS
    with pytest.raises(ConfigError, match="magnitudes are no LoRA; use --to merged"):
        export(str(adapter), "lora", tmp_path / "lora", Options(model=base))
    assert export(str(adapter), "mlx-lm", tmp_path / "mlx", Options(model=base)).kind == "fused model"


def test_lost_magnitudes_are_noticed(tmp_path):
    """The check works the magnitudes out by itself, apart from the merge."""
    source = open_source(str(trained("dora", "llama")), model=folder_of("llama"))
    write_merged(source, source.base, tmp_path)
    assert check_merged(source, source.base, tmp_path) == []
    for leaves in source.leaves.values():
        leaves["m"] = leaves["m"] * 1.05
    faults = check_merged(source, source.base, tmp_path)
    assert len(faults) == len(source.info.modules)
    assert "is off by 0.0" in faults[0]


@pytest.mark.peft
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["cpu", "gpu"])
def test_full_fine_tuning_is_merged(tmp_path, dtype):
    """No adapter: the trained weights themselves, which a GPU leaves in half precision."""
    from mlx.utils import tree_flatten, tree_unflatten

    base = load_base(folder_of("qwen3", packed=True))
    config = build_config({"method": "full"}, "test").adapter
    attach(base.model, config)
    random = np.random.default_rng(0)
    moved = [
        (k, v + mx.array((0.02 * random.standard_normal(v.shape)).astype(np.float32)))
        for k, v in tree_flatten(base.model.trainable_parameters())
    ]
    base.model.update(tree_unflatten(moved))
    base.model.set_dtype(dtype)
    save_adapter(base.model, tmp_path / "full", config=config, method="full", base=base.identity, seed=0)

    options = Options(model=folder_of("qwen3", packed=True))
    report = export(str(tmp_path / "full"), "merged", tmp_path / "out", options)
    assert report.checks["logits"]["difference_logit"] <= SAME_LOGITS
    with pytest.raises(ConfigError, match="method full"):
        export(str(tmp_path / "full"), "peft", tmp_path / "no", options)
