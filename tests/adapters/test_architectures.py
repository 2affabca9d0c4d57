"""Each architecture, dense and at 4 bits: what is adapted, a fresh adapter, a step, a folder, a fused model."""

import json
import re
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from architectures import ARCHITECTURES, COMMON, tiny
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import save_model
from table import fused
from test_attach import TOKENS, adapter, gap
from tolerances import EFFECT, IDENTITY, LOGITS

from mlx_hybrid.adapters.attach import attach, dequantise, hybrid_layers
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.adapters.layer import HybridExperts
from mlx_hybrid.adapters.start import apply_start, sketch_gradients
from mlx_hybrid.adapters.store import load_adapter, save_adapter
from mlx_hybrid.adapters.targets import is_experts
from mlx_hybrid.config import build_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.models.base import fingerprint

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
GATED = ATTENTION | {"gate_proj", "up_proj", "down_proj"}
ADAPTED = {
    "llama": GATED, "mistral": GATED, "qwen2": GATED, "qwen3": GATED, "qwen3_moe": GATED, "mixtral": ATTENTION,
    "gemma3_text": GATED, "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, "smollm3": GATED, "olmo2": GATED,
    "lfm2": {"q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"}, "mamba2": {"in_proj", "out_proj"},
}  # fmt: skip
MIXTURES = ["qwen3_moe", "mixtral"]
RATE = 0.05  # of a plain gradient step, times what makes its length 1

each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
each_mixture = pytest.mark.parametrize("name", MIXTURES)
each_mode = pytest.mark.parametrize("mode", ["", "4-bit"], ids=["dense", "4-bit"])
BASE = {"id": "tiny", "fingerprint": "0"}


def loss_of(model):
    return lambda tokens: mx.mean(nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]))


def one_step(model) -> float:
    """One plain gradient step of length RATE on the trainable leaves; the loss before."""
    model.train()
    loss, gradients = nn.value_and_grad(model, loss_of(model))(TOKENS)
    length = mx.sqrt(sum(mx.sum(mx.square(g)) for _, g in tree_flatten(gradients)))
    assert length.item() > 0
    leaves = model.trainable_parameters()
    model.update(tree_map(lambda leaf, g: leaf - RATE * g / length, leaves, gradients))
    model.eval()
    mx.eval(model.parameters())
    return loss.item()


def close(ours: mx.array, theirs: mx.array, tolerance: float) -> bool:
    """Relative to the logits' size: gemma's norms make them tenfold."""
    return gap(ours, theirs) <= tolerance * max(1.0, mx.max(mx.abs(theirs)).item())


def check_saved(model, config, fresh, stepped: mx.array, folder: Path) -> None:
    """Saved and put on a fresh base, the adapter answers as it did, to the bit."""
    save_adapter(model, folder, config=config, method="hybrid", base=BASE, seed=0)
    load_adapter(fresh, folder)
    assert mx.array_equal(fresh.eval()(TOKENS), stepped)


@each_mode
@each_architecture
def test_an_architecture_is_adapted_trained_saved_and_fused(name, mode, tmp_path):
    config, model = adapter("hybrid", start="zeros"), tiny(name, mode)
    plain = model(TOKENS)
    attached = attach(model, config)
    assert {module.rsplit(".", 1)[-1] for module in attached.modules} == ADAPTED[name]
    assert close(model(TOKENS), plain, 4 * IDENTITY)  # seven layers deep, twice
    before = one_step(model)
    stepped = model(TOKENS)
    assert loss_of(model)(TOKENS).item() < before
    assert gap(stepped, plain) > EFFECT
    check_saved(model, config, tiny(name, mode), stepped, tmp_path / "adapter")
    assert close(fused(model)(TOKENS), stepped, LOGITS)
    assert not hybrid_layers(model)


@each_architecture
def test_the_gradient_start_reaches_every_layer(name):
    model = tiny(name, "4-bit")
    plain = model(TOKENS)
    attach(model, adapter("hybrid-boft", block_size=8, factors=2))
    *_, factors = sketch_gradients(model, loss_of, [(TOKENS,)], columns=24, passes=2, seed=0)
    apply_start(model, factors)
    assert set(factors) == set(hybrid_layers(model))
    assert close(model.eval()(TOKENS), plain, IDENTITY)


def test_a_sliding_window_is_longer_than_none():
    """The tokens do not fit gemma's window, so both kinds of its attention were run."""
    assert TOKENS.shape[1] > ARCHITECTURES["gemma3_text"]["sliding_window"]


def experts_adapter(**changes):
    return build_config({"adapter": {"targets": ["dense", "experts"], "rank": 4, **changes}}, "test").adapter


@each_mode
@each_mixture
@pytest.mark.parametrize(("orthogonal", "rank"), [("none", 4), ("householder", 4), ("butterfly", 0)])
def test_experts_are_adapted_when_named(name, mode, orthogonal, rank, tmp_path):
    config = experts_adapter(orthogonal=orthogonal, factors=2, rank=rank, start="zeros")
    model = tiny(name, mode)
    plain = model(TOKENS)
    attach(model, config)
    stacks = {n: m for n, m in hybrid_layers(model).items() if isinstance(m, HybridExperts)}
    assert len(stacks) == (3 if name == "qwen3_moe" else 6)
    assert not any(re.search(r"(gate|router)$", module) for module in hybrid_layers(model))
    for stack in stacks.values():
        count = sum(value.size for _, value in tree_flatten(stack.trainable_parameters()))
        d_in, d_out = linear_shape(stack.linear)
        turned = {"none": 0, "householder": 8 * d_in, "butterfly": 2 * d_in * 7 // 2}[orthogonal]
        assert count == turned + 4 * rank * (d_in + d_out)
    assert close(model(TOKENS), plain, 4 * IDENTITY)
    before = one_step(model)
    stepped = model(TOKENS)
    assert loss_of(model)(TOKENS).item() < before
    for stack in stacks.values():
        fresh = HybridExperts(stack.linear, stack.plan, mx.random.key(0))
        assert gap(stack.merged_weight(), fresh.merged_weight()) > EFFECT / 10  # each of them moved
    check_saved(model, config, tiny(name, mode), stepped, tmp_path / "adapter")
    assert close(fused(model)(TOKENS), stepped, LOGITS)
    assert gap(stepped, plain) > EFFECT


@each_mode
def test_many_tokens_are_sorted_by_expert_and_answer_the_same(mode):
    """mlx-lm sorts from 64 indices on, and hands the experts rows in another shape."""
    model = tiny("qwen3_moe", mode)
    attach(model, experts_adapter(start="zeros"))
    for _ in range(3):
        one_step(model)
    long = mx.array([list(range(3, 63))])
    assert close(model(long)[:, :10], model(long[:, :10]), LOGITS)


@each_mode
@pytest.mark.parametrize("start", ["gradient", "lora-ga"])
def test_experts_start_from_their_own_gradients(start, mode):
    model = tiny("qwen3_moe", mode)
    plain = model(TOKENS)
    attach(model, experts_adapter(orthogonal="none", start=start))
    *_, factors = sketch_gradients(model, loss_of, [(TOKENS,)], columns=24, passes=4, seed=0)
    apply_start(model, factors)
    assert close(model.eval()(TOKENS), plain, IDENTITY)
    exact = dense_gradients(mode)
    for name, stack in hybrid_layers(model).items():
        if not isinstance(stack, HybridExperts):
            continue
        v, whole = factors[name][1][..., :4], exact[name]
        held = mx.sum(mx.square(whole @ v)).item()
        sigma = mx.linalg.svd(whole, stream=mx.cpu)[1][..., :4]
        assert held >= 0.99 * mx.sum(mx.square(sigma)).item()


def dense_gradients(mode: str) -> dict[str, mx.array]:
    """∂L/∂W (E, out, in) of the stacks, from the dequantised model."""
    model = tiny("qwen3_moe", mode)
    dequantise(model)
    model.train()
    model.freeze()
    for _, module in model.named_modules():
        if is_experts(module):
            module.unfreeze()
    _, gradients = nn.value_and_grad(model, loss_of(model))(TOKENS)
    return {name.removesuffix(".weight"): value for name, value in tree_flatten(gradients)}


def test_experts_are_left_alone_unless_named():
    model = tiny("qwen3_moe")
    attach(model, adapter("lora"))
    assert not any(isinstance(layer, HybridExperts) for layer in hybrid_layers(model).values())
    named = tiny("qwen3_moe")
    attached = attach(named, adapter("lora", targets=["gate_proj"]))
    assert any("switch_mlp" in module for module in attached.modules)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"targets": ["experts"]}, "the model has no experts"),
        ("llama", {"targets": ["embed_tokens"]}, "embed_tokens is an embedding, a table without a product"),
        ("qwen3", {"targets": ["lm_head"]}, "no lm_head: its head is its embedding"),
        ("qwen3_moe", {"targets": ["gate"]}, "gate is a router, which is never adapted"),
        ("mamba2", {"targets": ["conv1d"]}, "conv1d is a Conv1d, and only linear layers and experts"),
    ],
)
def test_what_carries_no_adapter_is_refused_with_the_reason(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        attach(tiny(name), adapter("hybrid", **changes))


def test_dora_and_global_scales_are_refused_on_experts():
    with pytest.raises(ConfigError, match="a stack of experts, which DoRA does not take"):
        attach(tiny("qwen3_moe"), adapter("dora", targets=["experts"]))
    model = tiny("qwen3_moe")
    stack = model.model.layers[1].mlp.switch_mlp
    stack.up_proj = stack.up_proj.to_quantized(16, 4, mode="nvfp4", global_scale=True)
    with pytest.raises(ConfigError, match="packed with a global scale"):
        attach(model, adapter("lora", targets=["experts"]))


def test_an_adapter_on_experts_is_not_exported(tmp_path):
    model, config = tiny("qwen3_moe"), experts_adapter()
    save_model(tmp_path / "base", model)
    tree = {"model_type": "qwen3_moe", **COMMON, **ARCHITECTURES["qwen3_moe"]}
    (tmp_path / "base" / "config.json").write_text(json.dumps(tree))
    attach(model, config)
    base = {"id": "tiny", "fingerprint": fingerprint(tmp_path / "base")}
    save_adapter(model, tmp_path / "adapter", config=config, method="hybrid", base=base, seed=0)
    with pytest.raises(
        ConfigError, match=r"switch_mlp.*cannot be exported or fused yet; chat, serve and evaluate run it"
    ):
        open_source(str(tmp_path / "adapter"), model=str(tmp_path / "base"))
