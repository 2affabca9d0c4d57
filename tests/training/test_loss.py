"""The summed loss: float64 NumPy, whole logits and chunks agree, and padding counts for nothing."""

from dataclasses import replace
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import scipy.special
from mlx.utils import tree_flatten
from mlx_lm.models import cohere, gemma2, granite, mistral3
from tolerances import LOGITS, ROUNDING
from toys import VOCABULARY, tiny_llama

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.config import build_config
from mlx_hybrid.models.head import find_parts, split_head
from mlx_hybrid.records.examples import Example
from mlx_hybrid.training import loss as loss_module
from mlx_hybrid.training.batches import make_batch
from mlx_hybrid.training.loss import arrays, make_loss

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
    attach(model, build_config({"method": method}, "t").adapter)
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


def divided(**changes):
    mx.random.seed(7)
    values = {**SIZES, "model_type": "granite", "rms_norm_eps": 1e-5, "logits_scaling": 8.0,
              "attention_multiplier": 0.25, "embedding_multiplier": 2.0, "residual_multiplier": 0.5,
              "max_position_embeddings": 512, "attention_bias": False, "mlp_bias": False,
              "rope_theta": 1e4}  # fmt: skip
    return granite.Model(granite.ModelArgs.from_dict(values | changes))


def wrapped():
    mx.random.seed(7)
    text = {**SIZES, "model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}
    return mistral3.Model(mistral3.ModelArgs.from_dict({"model_type": "mistral3", "text_config": text}))


class Whole(nn.Module):
    """A make of model that does not come apart."""

    def __init__(self):
        super().__init__()
        self.net = tiny_llama()

    def __call__(self, tokens, cache=None):
        return self.net(tokens, cache)

    @property
    def layers(self):
        return self.net.layers


MODELS = {
    "tied": tiny_llama,
    "own head": lambda: tiny_llama(tie_word_embeddings=False),
    "4-bit": lambda: use_fast_products(tiny_llama("affine-4")),
    "adapted": adapted,
    "soft cap": capped,
    "logit scale": scaled,
    "logits divided": divided,
    "inside another": wrapped,
    "in one piece": Whole,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1024, 16])
def test_the_loss_is_that_of_numpy_in_float64(name, chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "chunk_size", lambda _: chunk)
    model, records = MODELS[name](), examples(5, 30, 47)
    total = make_loss(model)(*arrays(make_batch(records))).item()
    assert total == pytest.approx(exact(model, records), rel=ROUNDING)
    assert total > 100


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"in one piece"}))
def test_a_head_is_all_that_follows_the_body(name):
    """To the bit, caps and scales included; and not the bare product, where there is more."""
    model = MODELS[name]()
    body, head = split_head(model, tolerance=0.0)
    tokens = mx.array([[5, 9, 200, 31]])
    assert mx.array_equal(head(body(tokens)), model(tokens))
    if name in ("soft cap", "logit scale", "logits divided"):
        bare = model.model.embed_tokens.as_linear if "lm_head" not in model else model.lm_head
        assert not mx.allclose(bare(body(tokens)), model(tokens), atol=10 * LOGITS)


def test_a_model_that_does_not_come_apart_is_taken_whole():
    assert find_parts(Whole()) is split_head(Whole()) is None


def test_dropout_does_not_hide_that_the_head_can_be_split():
    model = tiny_llama()
    attach(model, build_config({"method": "lora", "adapter": {"dropout": 0.5}}, "t").adapter)
    for layer in model.layers:
        layer.self_attn.q_proj.low_rank.lora_b += 1.0
    model.train()
    assert split_head(model) is not None
    assert model.training


def on_head(model, method: str = "lora"):
    """With adapters on the head too, which are not at their zeros."""
    targets = {"targets": ["dense", "lm_head"]}
    attach(model, build_config({"method": method, "adapter": targets}, "t").adapter)
    for index, (_, leaf) in enumerate(tree_flatten(model.trainable_parameters())):
        leaf += 0.02 * mx.random.normal(leaf.shape, key=mx.random.key(index))
    return model


def whole_model(model):
    attach(model, build_config({"method": "full"}, "t").adapter)
    return model


def packed_with_own_head():
    return use_fast_products(tiny_llama("affine-4", tie_word_embeddings=False))


TRAINED = {
    "hybrid": lambda: adapted("", "hybrid"),
    "hybrid-boft": lambda: adapted("", "hybrid-boft"),
    "full, tied": lambda: adapted("", "full"),
    "full, own head": lambda: adapted("", "full", tie_word_embeddings=False),
    "full, 4-bit": lambda: adapted("affine-4", "full"),
    "full, soft cap": lambda: whole_model(capped()),
    "full, logits divided": lambda: whole_model(divided(tie_word_embeddings=False)),
    "head": lambda: on_head(tiny_llama(tie_word_embeddings=False)),
    "head, 4-bit": lambda: on_head(packed_with_own_head()),
    "head, turned": lambda: on_head(packed_with_own_head(), "hybrid"),
    "head, turned by blocks": lambda: on_head(packed_with_own_head(), "hybrid-boft"),
    "head inside another": lambda: on_head(wrapped()),
    "head, logits divided": lambda: on_head(divided(tie_word_embeddings=False)),
}


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_in_chunks_are_those_of_whole_logits(name, monkeypatch):
    model, batch = TRAINED[name](), list(arrays(make_batch(examples(20, 33, 60))))
    batch[3] = batch[3] * mx.linspace(0.2, 1.0, len(batch[3]))  # weights are not all one

    def whole(tokens, positions, targets, weights):
        logits = model(tokens).reshape(-1, VOCABULARY)[positions]
        return mx.sum(nn.losses.cross_entropy(logits, targets) * weights)

    value, gradients = nn.value_and_grad(model, whole)(*batch)
    monkeypatch.setattr(loss_module, "chunk_size", lambda _: 16)
    before = dict(tree_flatten(model.trainable_parameters()))
    chunked_value, chunked = nn.value_and_grad(model, make_loss(model))(*batch)
    assert chunked_value.item() == pytest.approx(value.item(), rel=ROUNDING)
    gradients, chunked = dict(tree_flatten(gradients)), dict(tree_flatten(chunked))
    assert set(chunked) == set(gradients) == set(before)
    for name, gradient in gradients.items():
        size = mx.max(mx.abs(gradient)).item()
        assert size > 0, name
        assert mx.max(mx.abs(chunked[name] - gradient)).item() <= LOGITS * size, name


@pytest.mark.parametrize("held", [False, True])
def test_gradients_of_hidden_states_and_head_are_those_of_numpy_in_float64(held):
    """softmax less what is wanted, times the weight, and its products with W and h.

    Wanted is the target, or, where a weight is negative, the distribution of the base: then the loss is KL(base ‖ p).
    """
    rng = np.random.default_rng(0)
    hidden, weight, plain = rng.normal(size=(50, 8)), rng.normal(size=(30, 8)), rng.normal(size=(50, 8))
    targets, weights = rng.integers(0, 30, 50), rng.uniform(0.1, 1.0, 50)
    share, base = (scipy.special.softmax(h @ weight.T, axis=1) for h in (hidden, plain))
    wanted, losses = np.eye(30)[targets], -np.log(share[np.arange(50), targets])
    if held:
        weights[:17] *= -1
        wanted[:17] = base[:17]
        losses[:17] = np.sum(base * np.log(base / share), axis=1)[:17]
    slope = (share - wanted) * np.abs(weights)[:, None]

    def loss(h, w):
        given = [mx.array(x) for x in (targets, weights.astype(np.float32))]
        head = lambda x, own: x @ own["w"].T  # noqa: E731
        logits = mx.array((plain @ weight.T).astype(np.float32))
        beside = (20, logits[:20].__getitem__) if held else ()  # 17, and three answers' to fill up
        return loss_module.loss_in_chunks(head, h, *given, 16, {"w": w}, *beside)

    given = [mx.array(x.astype(np.float32)) for x in (hidden, weight)]
    (value, answers), found = mx.value_and_grad(loss, argnums=(0, 1))(*given)
    assert value.item() == pytest.approx(np.sum(np.abs(weights) * losses), rel=ROUNDING)
    assert answers.item() == pytest.approx(np.sum((weights * losses)[weights > 0]), rel=ROUNDING)
    for mine, exact in zip(found, (slope @ weight, slope.T @ hidden), strict=True):
        np.testing.assert_allclose(np.array(mine), exact, atol=ROUNDING * np.abs(exact).max())


def fresh(mode: str = "", method: str = "hybrid", targets: tuple[str, ...] = ("dense",), **changes):
    model = use_fast_products(tiny_llama(mode, **changes))
    attach(model, build_config({"method": method, "adapter": {"targets": targets}}, "t").adapter)
    return model


HELD = {
    **{f"{method}, {mode}": partial(fresh, mode, method) for method in ("lora", "hybrid", "hybrid-boft", "dora")
       for mode in ("", "affine-4")},
    "head": partial(fresh, targets=("dense", "lm_head"), tie_word_embeddings=False),
    "head, 4-bit": partial(fresh, "affine-4", "hybrid-boft", ("dense", "lm_head"), tie_word_embeddings=False),
}  # fmt: skip


@pytest.mark.parametrize("splits", [True, False], ids=["in chunks", "whole"])
@pytest.mark.parametrize("name", HELD)
def test_prompts_are_held_to_the_base_without_the_adapter(name, splits, monkeypatch):
    """Σ |w| KL(base ‖ model) over one of three records beside the loss of the others, and its gradients; at the start
    there is none of it."""
    monkeypatch.setattr(loss_module, "chunk_size", lambda _: 16)
    if not splits:
        monkeypatch.setattr(loss_module, "split_head", lambda _: None)
    model, records = HELD[name](), examples(20, 60, 33)
    weights = tuple(-0.2 if trained else 0.0 for trained in records[1].trained)
    records[1] = replace(records[1], weights=weights)
    batch = arrays(make_batch(records, exact=True), to_base=True)
    rows, places = batch[4:]
    assert rows.tolist() == [1]
    assert len(places) == 48 < len(batch[1])  # the base's head is not asked for what the others answer
    alone = arrays(make_batch(records[1:2]), to_base=True)
    assert abs(make_loss(model)(*alone).item()) <= LOGITS
    plain = model(batch[0])
    for index, (_, leaf) in enumerate(tree_flatten(model.trainable_parameters())):
        leaf += 0.05 * mx.random.normal(leaf.shape, key=mx.random.key(index))

    def whole(tokens, positions, targets, weights, *_):
        base, ours = (logits.reshape(-1, VOCABULARY)[positions] for logits in (plain, model(tokens)))
        base, ours = (logits - mx.logsumexp(logits, axis=1, keepdims=True) for logits in (base, ours))
        divergence = mx.sum(mx.exp(base) * (base - ours), axis=1)
        losses = -mx.take_along_axis(ours, targets[:, None], 1)[:, 0]
        return mx.sum(mx.abs(weights) * mx.where(weights < 0, divergence, losses))

    value, gradients = nn.value_and_grad(model, whole)(*batch)
    found, pulls = nn.value_and_grad(model, make_loss(model))(*batch)
    assert found.item() == pytest.approx(value.item(), rel=ROUNDING)
    assert make_loss(model)(*alone).item() > 1
    pulls = dict(tree_flatten(pulls))
    for leaf, gradient in tree_flatten(gradients):
        size = mx.max(mx.abs(gradient)).item()
        assert size > 0, leaf
        assert mx.max(mx.abs(pulls[leaf] - gradient)).item() <= LOGITS * size, leaf


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


@pytest.mark.parametrize("trains", [False, True])
def test_more_chunks_take_no_more_memory(trains):
    """Four times the targets: of their logits, a few chunks' are there at once, and a few gradients of the head."""
    vocabulary, width, chunk = 4096, 8, 16
    weight = mx.random.normal((vocabulary, width))
    mx.eval(weight)

    def peak(targets: int) -> int:
        hidden, wanted = mx.ones((targets, width)), mx.zeros((targets,), mx.int32)
        weights = mx.ones(targets)

        def loss(h: mx.array, w: mx.array) -> mx.array:
            leaves = {"w": w} if trains else {}
            head = lambda x, own: x @ own.get("w", weight).T  # noqa: E731
            return loss_module.loss_in_chunks(head, h, wanted, weights, chunk, leaves)

        mx.eval(hidden, wanted)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(mx.value_and_grad(loss, argnums=(0, 1) if trains else 0)(hidden, weight))
        return mx.get_peak_memory() - before

    one = 4 * vocabulary * (chunk + (width if trains else 0))
    assert 2 * one < peak(16 * chunk) < 12 * one
    assert peak(64 * chunk) < 12 * one
