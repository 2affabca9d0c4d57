"""The summed loss: float64 NumPy, whole logits and chunks agree, and padding counts for nothing."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import cohere, gemma2
from tolerances import LOGITS, ROUNDING
from toys import VOCABULARY, tiny_llama

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.config import build_config
from mlx_hybrid.training import loss as loss_module
from mlx_hybrid.training.batches import make_batch
from mlx_hybrid.training.examples import Example
from mlx_hybrid.training.loss import make_loss, split_head
from mlx_hybrid.training.step import arrays

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": VOCABULARY}  # fmt: skip


def examples(*sizes: int) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(rng.integers(3, 250, n).tolist(), [i >= n // 3 for i in range(n)], "r:1", "", n)
        for n in sizes
    ]


def exact(model, examples) -> float:
    """Σ −log p over the trained tokens, in float64, one record at a time."""
    total = 0.0
    for e in examples:
        logits = np.array(model(mx.array([e.tokens[:-1]]))[0], dtype=np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        total -= sum(log_p[i - 1, e.tokens[i]] for i in range(1, len(e.tokens)) if e.trained[i])
    return total


def adapted(mode: str = "", method: str = "hybrid", **changes):
    model = use_fast_products(tiny_llama(mode, **changes))
    attach(model, build_config({"method": method}, "t").adapter, method=method)
    for index, (_, leaf) in enumerate(tree_flatten(model.trainable_parameters())):
        leaf += 0.02 * mx.random.normal(leaf.shape, key=mx.random.key(index))
    return model


def capped():
    mx.random.seed(7)
    values = {
        **SIZES,
        "model_type": "gemma2",
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "final_logit_softcapping": 2.0,
    }
    return gemma2.Model(gemma2.ModelArgs.from_dict(values))


def scaled():
    mx.random.seed(7)
    return cohere.Model(cohere.ModelArgs.from_dict({**SIZES, "model_type": "cohere", "logit_scale": 0.25}))


MODELS = {
    "tied": tiny_llama,
    "own head": lambda: tiny_llama(tie_word_embeddings=False),
    "4-bit": lambda: use_fast_products(tiny_llama("affine-4")),
    "adapted": adapted,
    "soft cap": capped,
    "logit scale": scaled,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1024, 16])
def test_the_loss_is_that_of_numpy_in_float64(name, chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "chunk_size", lambda _: chunk)
    model, records = MODELS[name](), examples(5, 30, 47)
    total = make_loss(model)(*arrays(make_batch(records))).item()
    assert total == pytest.approx(exact(model, records), rel=ROUNDING)
    assert total > 100


def test_families_whose_head_does_more_fall_back_to_whole_logits():
    assert split_head(capped()) is None
    assert split_head(scaled()) is None
    for plain in (tiny_llama(), tiny_llama(tie_word_embeddings=False), adapted("affine-4")):
        assert split_head(plain) is not None


def test_dropout_does_not_hide_that_the_head_can_be_split():
    model = tiny_llama()
    attach(model, build_config({"method": "lora", "adapter": {"dropout": 0.5}}, "t").adapter, method="lora")
    for layer in model.layers:
        layer.self_attn.q_proj.lora_b += 1.0
    model.train()
    assert split_head(model) is not None
    assert model.training


@pytest.mark.parametrize("method", ["hybrid", "hybrid-boft", "full"])
def test_gradients_in_chunks_are_those_of_whole_logits(method, monkeypatch):
    model, batch = adapted("", method), arrays(make_batch(examples(20, 33, 60)))

    def whole(tokens, positions, targets, weights):
        logits = model(tokens).reshape(-1, VOCABULARY)[positions]
        return mx.sum(nn.losses.cross_entropy(logits, targets) * weights)

    value, gradients = nn.value_and_grad(model, whole)(*batch)
    monkeypatch.setattr(loss_module, "chunk_size", lambda _: 16)
    chunked_value, chunked = nn.value_and_grad(model, make_loss(model))(*batch)
    assert chunked_value.item() == pytest.approx(value.item(), rel=ROUNDING)
    chunked = dict(tree_flatten(chunked))
    for name, gradient in tree_flatten(gradients):
        size = mx.max(mx.abs(gradient)).item()
        assert size > 0, name
        assert mx.max(mx.abs(chunked[name] - gradient)).item() <= LOGITS * size, name


def test_the_gradient_of_an_adapted_head_survives_chunks(monkeypatch):
    monkeypatch.setattr(loss_module, "chunk_size", lambda _: 16)
    model = tiny_llama(tie_word_embeddings=False)
    config = build_config({"method": "lora", "adapter": {"targets": ["dense", "lm_head"]}}, "t").adapter
    attach(model, config, method="lora")
    _, gradients = nn.value_and_grad(model, make_loss(model))(*arrays(make_batch(examples(60, 60))))
    assert mx.max(mx.abs(gradients["lm_head"]["lora_b"])).item() > 0


def test_padding_neither_counts_nor_pulls():
    """The same records alone and beside a long one, which pads them; and other pads instead of zeros."""
    model = adapted()
    short, long = examples(7, 90)
    loss = make_loss(model)
    alone = sum(loss(*arrays(make_batch([e]))).item() for e in (short, long))
    batch = make_batch([short, long])
    assert loss(*arrays(batch)).item() == pytest.approx(alone, rel=ROUNDING)
    batch.tokens[0, 6:] = 99
    assert loss(*arrays(batch)).item() == pytest.approx(alone, rel=ROUNDING)
    batch.targets[batch.weights == 0] = 99
    assert loss(*arrays(batch)).item() == pytest.approx(alone, rel=ROUNDING)


def test_the_sum_is_in_float32_where_the_model_is_not():
    model = tiny_llama()
    model.set_dtype(mx.bfloat16)
    total = make_loss(model)(*arrays(make_batch(examples(40))))
    assert total.dtype == mx.float32


def test_more_chunks_take_no_more_memory():
    """Four times the targets: of their logits, a few chunks' are there at once."""
    vocabulary, width, chunk = 4096, 8, 16
    weight = mx.random.normal((vocabulary, width))
    mx.eval(weight)

    def peak(targets: int) -> int:
        hidden, wanted = mx.ones((targets, width)), mx.zeros((targets,), mx.int32)
        weights = mx.ones(targets)

        def loss(h: mx.array) -> mx.array:
            return loss_module.loss_in_chunks(lambda x: x @ weight.T, h, wanted, weights, chunk)

        mx.eval(hidden, wanted)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.value_and_grad(loss)(hidden))
        return mx.get_peak_memory() - before

    one = 4 * vocabulary * chunk
    assert 2 * one < peak(16 * chunk) < 12 * one
    assert peak(64 * chunk) < 12 * one
