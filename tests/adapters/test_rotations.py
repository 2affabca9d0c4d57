"""The small matrices of all layers formed together: the loss and gradients of each forming its own."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from tolerances import EFFECT, LOGITS, ROUNDING
from toys import tiny_llama

from mlx_hybrid.adapters.attach import attach, formed, hybrid_layers, rotations, settle
from mlx_hybrid.adapters.layer import TRAINED_LEAVES
from mlx_hybrid.config import build_config

TOKENS = mx.array([[3, 9, 4, 12, 7, 30], [8, 2, 5, 1, 17, 11]])


def turned(method: str, **changes):
    """A model whose every branch is away from its start."""
    model = tiny_llama()
    attach(model, build_config({"method": method, "adapter": changes}, "t").adapter)
    for seed, layer in enumerate(hybrid_layers(model).values()):
        for leaf, value in layer.leaves().items():
            if leaf in TRAINED_LEAVES:
                step = 0.05 * mx.random.normal(value.shape, key=mx.random.key(seed))
                layer.put_leaves({leaf: value + step})
    return model


def value_and_gradients(model, together: bool):
    def loss(tokens):
        if not together:
            return mx.mean(mx.square(model(tokens)))
        with formed(model):
            return mx.mean(mx.square(model(tokens)))

    value, gradients = nn.value_and_grad(model, loss)(TOKENS)
    return value.item(), dict(tree_flatten(gradients))


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("hra", {}),
        ("hybrid", {"unitary": ["o_proj"]}),
        ("boft", {}),
        ("hybrid-boft", {"rotation": {"block_size": 4}}),
        ("lora", {}),
    ],
)
def test_together_is_the_same_as_apart(method, changes):
    model = turned(method, **changes)
    apart, expected = value_and_gradients(model, together=False)
    value, gradients = value_and_gradients(model, together=True)
    assert value == pytest.approx(apart, rel=ROUNDING)
    assert set(gradients) == set(expected)
    for name, gradient in expected.items():
        size = mx.max(mx.abs(gradient)).item()
        assert size > 0, name
        assert mx.max(mx.abs(gradients[name] - gradient)).item() <= LOGITS * size, name
    assert not any(rotation.settled for rotation in rotations(model))


def test_chains_of_unequal_length_are_formed_each_with_their_own():
    model = turned("hra")
    first, second, *_ = rotations(model)
    second.house_u = second.house_u[:, :4]
    with formed(model):
        assert first._core.shape == (16, 16)
        assert second._core.shape == (4, 4)


def test_rotations_settled_for_inference_stay_settled_and_as_they_were():
    model = settle(turned("hybrid-boft"))
    before = model(TOKENS)
    for rotation in rotations(model):
        rotation.oft_q = rotation.oft_q * 2
    with formed(model):
        assert mx.array_equal(model(TOKENS), before)
    assert all(rotation.settled for rotation in rotations(model))
    for rotation in rotations(model):
        rotation.unsettle()
    assert mx.max(mx.abs(model(TOKENS) - before)).item() > EFFECT
