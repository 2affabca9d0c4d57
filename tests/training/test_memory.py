"""Recomputed activations: the same loss and gradients, for this model alone, and less memory."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from scene import changed, examples, material, same, trained
from tolerances import LOGITS, ROUNDING
from toys import tiny_llama

from mlx_hybrid.training.batches import make_batch
from mlx_hybrid.training.loss import arrays, make_loss
from mlx_hybrid.training.memory.limits import checkpoint_layers, set_limits


def value_and_gradients(model, batch, seed: int = 0):
    loss = nn.value_and_grad(model, make_loss(model))
    mx.random.seed(seed)
    value, gradients = loss(*batch)
    mx.eval(value, gradients)
    return value.item(), dict(tree_flatten(gradients))


@pytest.mark.parametrize("mode", ["", "affine-4"])
@pytest.mark.parametrize(
    ("method", "dropout"),
    [("hybrid", 0.0), ("hybrid-boft", 0.0), ("full", 0.0), ("lora", 0.5), ("hybrid", 0.5)],
)
def test_recomputing_changes_neither_loss_nor_gradients(method, dropout, mode):
    changes = {"dropout": dropout} if dropout else {}
    model, _ = material(method, mode=mode, **changes)
    for name, leaf in tree_flatten(model.trainable_parameters()):
        if name.endswith("lora_b"):
            leaf += 0.1 * mx.random.normal(leaf.shape, key=mx.random.key(1))
    model.train()
    batch = arrays(make_batch(examples(4)))
    loss, gradients = value_and_gradients(model, batch)
    if dropout:
        assert value_and_gradients(model, batch, seed=1)[0] != loss  # it does drop
    checkpoint_layers(model)
    again, recomputed = value_and_gradients(model, batch)
    assert again == pytest.approx(loss, rel=ROUNDING)
    for name, gradient in gradients.items():
        size = mx.max(mx.abs(gradient)).item()
        assert mx.max(mx.abs(recomputed[name] - gradient)).item() <= LOGITS * size, name


def test_a_whole_run_is_the_same():
    short = changed(steps=3)
    plain = trained("hybrid-boft", short, dropout=0.2)
    assert not same(plain, trained("hybrid-boft", short))
    recomputed = trained("hybrid-boft", changed(short, grad_checkpoint=True), dropout=0.2)
    gap = max(mx.max(mx.abs(plain[n] - recomputed[n])).item() for n in plain)
    assert gap <= LOGITS


def test_other_models_are_not_touched_and_twice_is_once():
    model, other = tiny_llama(), tiny_llama()
    kind = type(other.layers[0])
    checkpoint_layers(model)
    once = type(model.layers[0])
    checkpoint_layers(model)
    assert type(model.layers[0]) is once is not kind
    assert issubclass(once, kind)
    assert type(other.layers[0]) is kind is type(tiny_llama().layers[0])
    assert once.__name__ == kind.__name__


def test_recomputing_keeps_one_layer_alive():
    """Of 12 layers' activations one is left, though every layer has gradients of its own."""

    def peak(recompute: bool) -> int:
        model = tiny_llama(num_hidden_layers=12)
        model.freeze()
        for layer in model.layers:
            layer.self_attn.q_proj.unfreeze()
        if recompute:
            checkpoint_layers(model)
        batch = arrays(make_batch(examples(8, longest=120)))
        mx.eval(model.parameters())
        mx.clear_cache()
        mx.reset_peak_memory()
        held = mx.get_active_memory()  # the weights, and what other tests of this process keep
        value_and_gradients(model, batch)
        return mx.get_peak_memory() - held

    assert peak(True) < 0.4 * peak(False)


def test_limits_can_be_set_on_any_device():
    set_limits()
    set_limits()
