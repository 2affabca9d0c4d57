"""Adapters on disk: what comes back is what was saved, and anything else is refused with every fault named."""

import json
import math
from dataclasses import replace

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import load_adapters
from test_attach import METHODS, TOKENS, adapter, gap, moved
from tolerances import EFFECT, LOGITS
from toys import tiny_llama, write_model

from mlx_hybrid.adapters import store
from mlx_hybrid.adapters.attach import attach, hybrid_layers, refold
from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.adapters.store import (
    load_adapter,
    probe_logits,
    read_adapter_config,
    save_adapter,
    set_state,
)
from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.models.base import BaseModel, fingerprint
from mlx_hybrid.training.setup import start_from_adapter

BASE = {"id": "tiny", "fingerprint": "0"}


def model_of(mode: str = ""):
    return use_fast_products(tiny_llama(mode)).eval()


def saved(folder, method: str, mode: str = "", **changes):
    """A trained-looking model and its adapter folder."""
    model, config = model_of(mode), adapter(method, **changes)
    attach(model, config, seed=4)
    moved(model)
    for layer in hybrid_layers(model).values():
        if layer.rotation is not None:
            layer.rotation.refold(math.inf)  # a folded base that is no identity
    moved(model)
    save_adapter(model, folder, config=config, method=method, base=BASE, seed=4, extra={"step": 7})
    return model.eval()


@pytest.mark.parametrize(
    ("method", "mode"), [*((m, "affine-4") for m in (*METHODS, "full")), ("hybrid", ""), ("full", "mxfp4")]
)
def test_loaded_on_a_fresh_base_it_gives_the_same_logits(method, mode, tmp_path):
    model = saved(tmp_path / "adapter", method, mode)
    fresh = model_of(mode)
    plain = fresh(TOKENS)
    info = load_adapter(fresh, tmp_path / "adapter")
    fresh.eval()
    assert mx.array_equal(fresh(TOKENS), model(TOKENS))
    assert gap(fresh(TOKENS), plain) > EFFECT
    assert (info.method, info.adapter, info.base, info.seed) == (method, adapter(method), BASE, 4)
    assert info.extra == {"step": 7}
    assert list(info.modules) == list(hybrid_layers(model))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_lora_ga_offsets_survive(tmp_path):
    model, config = model_of(), adapter("lora", start="lora-ga", rank=4)
    attach(model, config)
    for index, layer in enumerate(hybrid_layers(model).values()):
        for leaf in ("lora_a0", "lora_b0"):
            drawn = mx.random.normal(layer.low_rank[leaf].shape, key=mx.random.key(index))
            layer.put_leaves({leaf: drawn})
    moved(model)
    save_adapter(model, tmp_path / "adapter", config=config, method="lora", base=BASE, seed=0)
    fresh = model_of()
    load_adapter(fresh, tmp_path / "adapter")
    assert mx.array_equal(fresh.eval()(TOKENS), model.eval()(TOKENS))


@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"targets": ["q_proj", "v_proj"]}, {"rslora": False}])
def test_a_lora_loads_in_stock_mlx_lm(changes, tmp_path):
    model = saved(tmp_path / "adapter", "lora", "affine-4", **changes)
    stock = load_adapters(tiny_llama("affine-4"), str(tmp_path / "adapter"))
    stock.eval()
    assert gap(stock(TOKENS), model(TOKENS)) <= LOGITS
    assert gap(stock(TOKENS), tiny_llama("affine-4")(TOKENS)) > 10 * LOGITS


@pytest.mark.parametrize(
    ("method", "changes"), [("hybrid", {}), ("boft", {}), ("lora", {"start": "lora-ga"})]
)
def test_what_stock_mlx_lm_cannot_apply_it_refuses(method, changes, tmp_path):
    saved(tmp_path / "adapter", method, **changes)
    with pytest.raises((ValueError, AttributeError)):
        load_adapters(tiny_llama(), str(tmp_path / "adapter"))


def test_saving_again_replaces_and_a_failed_save_leaves_the_old(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    saved(folder, "lora")
    (folder / "stray").touch()
    model = saved(folder, "hybrid")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapters.safetensors"}

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_json", full_disk)
    with pytest.raises(MlxHybridError, match="the disk is full"):
        save_adapter(model, folder, config=adapter("lora"), method="lora", base=BASE, seed=0)
    monkeypatch.undo()
    assert read_adapter_config(folder).method == "hybrid"
    load_adapter(model_of(), folder)


FLAT = {
    "lora": {"orthogonal": "none", "rank": 16, "start": "zeros", "mixing": "off"},
    "dora": {"orthogonal": "none", "rank": 16, "start": "zeros", "mixing": "off", "magnitude": True},
    "hra": {"orthogonal": "householder", "reflections": 16, "rank": 0, "start": "zeros", "mixing": "off"},
    "hybrid": {"orthogonal": "householder", "reflections": 8, "rank": 8, "start": "zeros"},
    "hybrid-boft": {"orthogonal": "butterfly", "block_size": 8, "factors": 4, "rank": 8, "start": "lora-ga"},
    "full": {"orthogonal": "none", "rank": 0, "start": "zeros", "mixing": "off"},
}
USUAL_FLAT = {
    "reflections": 8, "reflection_start": "gradient", "block_size": 8, "factors": 4, "alpha": 16.0, "rslora": True,
    "start_records": 64, "start_passes": 4, "start_oversampling": 16, "dropout": 0.0, "magnitude": False,
    "mixing": "gradient", "unitary": [], "targets": ["dense"], "layers": 0,
}  # fmt: skip


@pytest.mark.parametrize("method", FLAT)
def test_an_adapter_of_format_1_loads(method, tmp_path):
    """Its settings were one flat group with every value; its tensors had the names they have."""
    model = saved(tmp_path / "adapter", method)
    path = tmp_path / "adapter" / "adapter_config.json"
    own = json.loads(path.read_text())["mlx_hybrid"]
    change_config(path.parent, format=1, mlx_hybrid=own | {"adapter": USUAL_FLAT | FLAT[method]})
    fresh = model_of()
    info = load_adapter(fresh, path.parent)
    assert info.adapter == adapter(method)
    assert mx.array_equal(fresh.eval()(TOKENS), model(TOKENS))
    names = {name.rsplit(".", 1)[-1] for name in mx.load(str(path.with_name("adapters.safetensors")))}
    assert names <= {"house_u", "oft_q", "oft_base", "lora_a", "lora_b", "lora_a0", "lora_b0", "m", "weight"}


def change_config(folder, **values) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "no adapter there"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'), "not an mlx-hybrid adapter"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "not an mlx-hybrid adapter"),
        (lambda f: change_config(f, format=9), "format 9, but this version reads formats up to 2"),
        (lambda f: change_config(f, mlx_hybrid={"method": "hybrid"}), "mlx_hybrid.adapter is missing"),
        (lambda f: (f / "adapters.safetensors").unlink(), "adapters.safetensors is missing"),
        (lambda f: (f / "adapters.safetensors").write_bytes((f / "adapters.safetensors").read_bytes()[:5000]),
         "cannot be read, perhaps cut off"),
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_refused(spoil, message, tmp_path):
    saved(tmp_path / "adapter", "hybrid")
    spoil(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=message):
        load_adapter(model_of(), tmp_path / "adapter")


def test_every_tensor_must_match_and_all_faults_are_told(tmp_path):
    saved(tmp_path / "adapter", "hybrid")
    path = tmp_path / "adapter" / "adapters.safetensors"
    weights = mx.load(str(path))
    names = sorted(weights)
    missing, reshaped, recast = names[:3]
    del weights[missing]
    weights[reshaped] = weights[reshaped][:1]
    weights[recast] = weights[recast].astype(mx.float16)
    weights["model.layers.9.x.lora_a"] = mx.zeros((1,))
    mx.save_safetensors(str(path), weights)
    with pytest.raises(ConfigError) as error:
        load_adapter(model_of(), tmp_path / "adapter")
    text = str(error.value)
    for expected in (
        f"missing {missing}",
        "unexpected model.layers.9.x.lora_a",
        f"{reshaped} is",
        f"{recast} is",
    ):
        assert expected in text
    assert "4 faults in all" in text


def test_full_weights_of_a_gpu_are_loaded_on_the_cpu_and_gone_on_from(tmp_path):
    """On a GPU a base, and so what `full` saves of it, is in half precision; on the CPU it is float32."""
    trained = model_of()
    attach(trained, adapter("full"))
    moved(trained)
    trained.set_dtype(mx.bfloat16)
    folder = write_model(tmp_path / "base")
    base = BASE | {"fingerprint": fingerprint(folder)}
    save_adapter(trained, tmp_path / "full", config=adapter("full"), method="full", base=base, seed=0)
    wanted = dict(tree_flatten(trained.parameters()))

    model, going_on = model_of(), model_of()
    plain = probe_logits(model)
    load_adapter(model, tmp_path / "full")
    attach(going_on, adapter("full"))
    config = replace(Config(), method="full", adapter=adapter("full"), start_from=str(tmp_path / "full"))
    start_from_adapter(config, BaseModel(going_on, None, folder, base), tmp_path / "full")
    for name, leaf in [*tree_flatten(model.parameters()), *tree_flatten(going_on.parameters())]:
        assert leaf.dtype == mx.float32, name
        assert mx.array_equal(leaf, wanted[name].astype(mx.float32)), name
    assert mx.abs(probe_logits(model) - plain).max().item() > EFFECT


def test_state_of_another_adapter_is_refused():
    model = model_of()
    attach(model, adapter("lora"))
    with pytest.raises(ConfigError, match="does not fit this model and adapter"):
        set_state(model, {"a": mx.zeros((1,))}, "here")


def test_the_probe_sees_an_adapter_and_only_an_adapter():
    model = model_of("affine-4")
    plain = probe_logits(model)
    attach(model, adapter("boft"))
    model.eval()
    assert mx.abs(probe_logits(model) - plain).max().item() == 0.0
    moved(model)
    refold(model)
    assert mx.abs(probe_logits(model) - plain).max().item() > EFFECT
