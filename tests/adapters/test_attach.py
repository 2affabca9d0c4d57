"""Adapters on whole models: what is chosen, what is refused, and that a fresh one changes nothing."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import mixtral
from mlx_lm.utils import get_total_parameters
from table import fused
from tolerances import EFFECT, IDENTITY, LOGITS
from toys import llama_config, tiny_llama

from mlx_hybrid.adapters.attach import (
    attach,
    hybrid_layers,
    refold,
    rotations,
    settle,
    trainable_count,
)
from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.adapters.householder import Householder
from mlx_hybrid.adapters.targets import layer_plan
from mlx_hybrid.config import PRESETS, AdapterConfig, ButterflyConfig, HouseholderConfig, build_config
from mlx_hybrid.errors import ConfigError

METHODS = [name for name in PRESETS if name != "full"]
BUTTERFLY = {"kind": "butterfly"}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENS = mx.array([list(range(40, 64)), list(range(90, 114))])


def adapter(method: str = "hybrid", **changes) -> AdapterConfig:
    return build_config({"method": method, "adapter": changes}, "test").adapter


def moved(model, size: float = 0.02):
    """The model with every trainable leaf moved."""
    mx.random.seed(3)
    model.update(
        tree_map(lambda leaf: leaf + size * mx.random.normal(leaf.shape), model.trainable_parameters())
    )
    mx.eval(model.parameters())
    return model


def model_of(mode: str, **changes):
    return use_fast_products(tiny_llama(mode, **changes)).eval()


def gap(a: mx.array, b: mx.array) -> float:
    return mx.max(mx.abs(a - b)).item()


@pytest.mark.parametrize(
    ("method", "mode"),
    [*((method, "affine-4") for method in METHODS), ("hybrid", ""), ("hybrid-boft", "mxfp8")],
)
def test_a_fresh_adapter_changes_no_logit_and_a_moved_one_does(method, mode):
    model = model_of(mode)
    plain = model(TOKENS)
    attach(model, adapter(method))
    model.eval()
    fresh = model(TOKENS)
    if isinstance(adapter(method).rotation, HouseholderConfig):
        assert gap(fresh, plain) <= 4 * IDENTITY * mx.max(mx.abs(plain)).item()  # seven layers deep, twice
    else:
        assert mx.array_equal(fresh, plain)
    assert gap(moved(model)(TOKENS), plain) > EFFECT


@pytest.mark.parametrize("method", METHODS)
def test_every_dense_projection_is_adapted_and_counted(method):
    model = tiny_llama("affine-4")
    config = adapter(method)
    attached = attach(model, config)
    assert list(attached.modules) == list(hybrid_layers(model))
    assert sorted(attached.modules) == sorted(
        f"model.layers.{i}.{'self_attn' if p[0] in 'qkvo' else 'mlp'}.{p}"
        for i in range(2)
        for p in PROJECTIONS
    )
    shapes = {"q_proj": (64, 64), "k_proj": (64, 32), "v_proj": (64, 32), "o_proj": (64, 64),
              "gate_proj": (64, 128), "up_proj": (64, 128), "down_proj": (128, 64)}  # fmt: skip
    rotation, low_rank = config.rotation, config.low_rank
    turned = 0
    if isinstance(rotation, HouseholderConfig):
        turned = rotation.reflections
    elif rotation:
        turned = rotation.factors * (rotation.block_size - 1) / 2
    rank, magnitude = (low_rank.rank, low_rank.magnitude) if low_rank else (0, False)
    expected = sum(
        turned * d_in + (0 if name in config.unitary else rank * (d_in + d_out)) + magnitude * d_out
        for name, (d_in, d_out) in shapes.items()
    )
    assert attached.trainable == 2 * expected
    assert attached.trainable == sum(v.size for _, v in tree_flatten(model.trainable_parameters()))
    assert attached.total == get_total_parameters(tiny_llama(""))
    assert f"{len(attached.modules)} modules" in str(attached)


def test_unitary_sublayers_carry_the_rotation_alone():
    model = tiny_llama()
    attach(model, adapter("hybrid-unitary"))
    for name, layer in hybrid_layers(model).items():
        alone = name.endswith(("o_proj", "down_proj"))
        assert (layer.low_rank is None) == alone
        assert isinstance(layer.rotation, Householder)


def test_named_targets_and_the_last_layers():
    model = tiny_llama(tie_word_embeddings=False)
    attached = attach(model, adapter("lora", targets=["q_proj", "lm_head"], layers=1))
    assert attached.modules == ("lm_head", "model.layers.1.self_attn.q_proj")


def test_the_head_is_adapted_only_when_named():
    model = tiny_llama(tie_word_embeddings=False)
    assert not any("lm_head" in name for name in attach(model, adapter("lora")).modules)


def test_a_router_is_never_adapted():
    config = {**llama_config(), "model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    model = mixtral.Model(mixtral.ModelArgs.from_dict(config))
    attached = attach(model, adapter("lora"))
    assert attached.modules
    assert not any(name.endswith("gate") for name in attached.modules)
    with pytest.raises(ConfigError, match="gate is a router, which is never adapted"):
        attach(
            mixtral.Model(mixtral.ModelArgs.from_dict(config)),
            adapter("lora", targets=["gate"]),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["q_prj"]}, 'no module "q_prj"; did you mean "q_proj"?'),
        ({"targets": ["embed_tokens"]}, "embed_tokens is an embedding, a table without a product"),
        ({"unitary": ["o_prj"]}, 'no adapted module "o_prj"; did you mean "o_proj"?'),
        ({"targets": ["q_proj"], "unitary": ["o_proj"]}, 'no adapted module "o_proj"'),
        ({"layers": 3}, "adapter.layers: 3, but the model has 2 layers"),
        ({"rotation": BUTTERFLY | {"factors": 5}}, "blocks of 128, .* the 64 inputs .*block_size 8 with factors 4"),
        ({"rotation": BUTTERFLY | {"block_size": 6}}, "blocks of 48, .*size 4 with factors 1.* block_size auto"),
        ({"rotation": {"reflections": 66}}, "66 is more than the 64 inputs"),
        ({"low_rank": {"rank": 40}}, r"adapter.low_rank.rank: 40 is more than .*0.self_attn.k_proj of 64 × 32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_changes(changes, message):
    model = tiny_llama()
    with pytest.raises(ConfigError, match=message):
        attach(model, adapter("hybrid", **changes))
    assert not hybrid_layers(model)
    assert trainable_count(model) == get_total_parameters(model)  # not even frozen


@pytest.mark.parametrize("size", [0, "auto"])
def test_auto_finds_blocks_for_each_layer(size):
    """64 inputs take 8 and 4 factors; 80 take 8 and 2, 44 take 4 and 1, and 25 have no even divisor."""
    model = tiny_llama(intermediate_size=80)
    config = adapter("boft", rotation={"block_size": size})
    plain = model(TOKENS)
    attach(model, config)
    plans = {name.rsplit(".", 1)[-1]: layer.plan.rotation for name, layer in hybrid_layers(model).items()}
    assert (plans["q_proj"].block_size, plans["q_proj"].factors) == (8, 4)
    assert (plans["down_proj"].block_size, plans["down_proj"].factors) == (8, 2)
    assert mx.array_equal(model.eval()(TOKENS), plain)
    assert gap(moved(model)(TOKENS), plain) > EFFECT
    assert layer_plan(config, 44).rotation == ButterflyConfig(block_size=4, factors=1)


def test_inputs_that_no_even_block_divides_are_refused():
    model = tiny_llama(intermediate_size=25)
    for size in ("auto", 8):
        with pytest.raises(ConfigError, match="down_proj have no even divisor"):
            attach(model, adapter("boft", rotation={"block_size": size}, targets=["down_proj"]))


def test_a_second_adapter_is_refused():
    model = tiny_llama()
    attach(model, adapter())
    with pytest.raises(ConfigError, match="already carries an adapter"):
        attach(model, adapter())


def test_full_trains_dequantised_weights():
    model = model_of("affine-4")
    plain = model(TOKENS)
    attached = attach(model, adapter("full"))
    assert (
        attached.trainable == trainable_count(model) == attached.total == get_total_parameters(tiny_llama())
    )
    assert gap(model(TOKENS), plain) <= LOGITS


@pytest.mark.parametrize(
    ("method", "mode"),
    [*((method, "") for method in METHODS), ("hybrid", "affine-3"), ("hybrid-boft", "nvfp4")],
)
def test_fused_and_settled_the_model_answers_the_same(method, mode):
    model = model_of(mode)
    plain = model(TOKENS)
    attach(model, adapter(method))
    adapted = moved(model).eval()(TOKENS)
    assert gap(settle(model)(TOKENS), adapted) <= LOGITS
    for rotation in rotations(model):
        rotation.unsettle()
    assert gap(model(TOKENS), adapted) == 0
    refold(model)
    assert gap(model(TOKENS), adapted) <= LOGITS
    fused(model)
    assert not hybrid_layers(model)
    assert gap(model(TOKENS), adapted) <= LOGITS
    assert gap(adapted, plain) > 10 * LOGITS


def test_the_seed_draws_the_start():
    def start(seed):
        model = tiny_llama()
        attach(model, adapter(), seed=seed)
        return tree_flatten(model.trainable_parameters())

    first, same, other = start(1), start(1), start(2)
    assert all(mx.array_equal(a, b) for (_, a), (_, b) in zip(first, same))
    assert not all(mx.array_equal(a, b) for (_, a), (_, b) in zip(first, other))
    layers = [leaf for name, leaf in first if name.endswith("q_proj.rotation.house_u")]
    assert not mx.array_equal(*layers)  # each layer draws its own


def test_biases_are_kept():
    model = model_of("", attention_bias=True)
    plain = model(TOKENS)
    attach(model, adapter("boft"))
    assert mx.array_equal(model.eval()(TOKENS), plain)
    adapted = moved(model)(TOKENS)
    assert gap(fused(model)(TOKENS), adapted) <= LOGITS
