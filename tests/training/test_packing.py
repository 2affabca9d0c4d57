"""Packed rows: the same loss and gradients as records apart, fewer tokens, and refused where records would mix."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import gemma3_text, mamba2, qwen3
from mlx_lm.models.rope_utils import DynamicNTKScalingRoPE
from scene import changed, everything, examples, material, run, same
from toys import tiny_llama

from mlx_hybrid.training.batches import length_bucket, make_batch, own_width
from mlx_hybrid.training.checkpoint import load_checkpoint, save_checkpoint
from mlx_hybrid.training.events import Note, Trained
from mlx_hybrid.training.loss import make_loss
from mlx_hybrid.training.packing import (
    LONGEST_ROW,
    PADDING,
    PackedCache,
    choose_rows,
    fill_rows,
    make_packed_batch,
    packs_exactly,
)
from mlx_hybrid.training.progress import Progress
from mlx_hybrid.training.step import arrays

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 264, "rms_norm_eps": 1e-5, "head_dim": 16}  # fmt: skip


def tiny(family, **more) -> nn.Module:
    mx.random.seed(3)
    model = family.Model(family.ModelArgs.from_dict({"model_type": "x", **SHAPE, **more}))
    mx.eval(model.parameters())
    return model


MODELS = {
    "llama": tiny_llama,
    "qwen3": lambda: tiny(
        qwen3, rope_theta=1e4, tie_word_embeddings=True, max_position_embeddings=512, num_hidden_layers=3
    ),
    "gemma3, window 8": lambda: tiny(
        gemma3_text, sliding_window=8, sliding_window_pattern=2, num_hidden_layers=4
    ),
}


def gradients(model, batch) -> tuple[float, dict]:
    loss, found = nn.value_and_grad(model, make_loss(model))(*arrays(batch))
    mx.eval(loss, found)
    return loss.item(), dict(tree_flatten(found))


def assert_same(model, records) -> None:
    apart, packed = make_batch(records), make_packed_batch(records)
    assert packed.tokens.shape[0] < apart.tokens.shape[0]
    loss, expected = gradients(model, apart)
    got_loss, got = gradients(model, packed)
    assert got_loss == pytest.approx(loss, rel=1e-5)
    for name, value in expected.items():
        assert mx.max(mx.abs(got[name] - value)).item() <= 1e-5 * max(1.0, mx.max(mx.abs(value)).item()), name


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_records_apart(name):
    model = MODELS[name]()
    model.train()
    assert packs_exactly(model)
    assert model.training
    assert_same(model, examples(9, longest=40))


@pytest.mark.parametrize(
    ("method", "mode", "recompute"),
    [("hybrid", "", False), ("hybrid-boft", "affine-4", False), ("lora", "", True), ("dora", "", False)],
)
def test_so_they_are_under_an_adapter(method, mode, recompute):
    model, _ = material(method, changed(grad_checkpoint=recompute), mode=mode)
    for name, leaf in tree_flatten(model.trainable_parameters()):
        if name.endswith("lora_b"):
            leaf += 0.1 * mx.random.normal(leaf.shape, key=mx.random.key(1))
    model.train()
    assert_same(model, examples(9, longest=40))


def test_every_token_and_target_stands_in_its_own_segment():
    records = examples(13, longest=60)
    batch = make_packed_batch(records)
    width = batch.tokens.shape[1]
    for index, record in enumerate(records):
        assert batch.tokens[batch.segments == index].tolist() == record.tokens[:-1]
        places = batch.positions[: batch.trained][batch.owners == index]
        assert (batch.segments[places // width, places % width] == index).all()
        wanted = [t for t, learnt in zip(record.tokens[1:], record.trained[1:]) if learnt]
        assert batch.targets[: batch.trained][batch.owners == index].tolist() == wanted
    assert (batch.tokens[batch.segments == PADDING] == 0).all()
    assert batch.weights.sum() == batch.trained == sum(r.trained_count for r in records)
    assert batch.where == tuple(r.where for r in records)


def test_rows_hold_every_record_once_and_overflow_nowhere():
    lengths = np.random.default_rng(0).lognormal(4, 0.8, 200).astype(int).clip(3, 500).tolist()
    rows = fill_rows(lengths, 512)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(sum(lengths[i] for i in row) for row in rows) <= 512
    rows, width = choose_rows(lengths)
    assert width <= LONGEST_ROW * length_bucket(max(lengths))
    assert sum(lengths) / (len(rows) * width) > 0.95


def test_a_random_batch_wastes_less_than_padding_would():
    rng = np.random.default_rng(1)
    real = packed = tight = padded = 0
    for _ in range(200):
        lengths = rng.lognormal(4, 0.8, 8).astype(int).clip(3, 500).tolist()
        rows, width = choose_rows(lengths)
        own_rows, own = choose_rows(lengths, own_width)
        real += sum(lengths)
        packed += len(rows) * width
        tight += len(own_rows) * own
        padded += 8 * length_bucket(max(lengths))
    assert 1 - real / packed < 0.15 < 0.4 < 1 - real / padded
    assert 1 - real / tight < 0.05


def test_the_mask_is_causal_within_a_record_and_a_window():
    cache = PackedCache(mx.array([[0, 0, 0, 1, 1, -1]]))
    seen = np.array(cache.make_mask(6))[0, 0]
    assert seen.astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]  # fmt: skip
    near = np.array(cache.make_mask(6, window_size=2))[0, 0]
    assert not near[2, 0]
    assert near[2, 1]


def mamba() -> nn.Module:
    return tiny(
        mamba2, num_heads=4, state_size=8, conv_kernel=4, expand=2, n_groups=1, use_bias=False, use_conv_bias=True,
        layer_norm_epsilon=1e-5, tie_word_embeddings=True, time_step_limit=(0.0, 100.0), time_step_rank="auto",
        residual_in_fp32=False,
    )  # fmt: skip


def dynamic() -> nn.Module:
    model = tiny_llama()
    model.layers[0].self_attn.rope = DynamicNTKScalingRoPE(16, 512, False, 1e4, 2.0)
    return model


@pytest.mark.parametrize("make", [mamba, dynamic])
def test_models_that_would_mix_records_are_not_packed(make):
    assert not packs_exactly(make())


def test_a_run_says_that_it_does_not_pack(monkeypatch):
    from mlx_hybrid.training import loop

    monkeypatch.setattr(loop, "packs_exactly", lambda model: False)
    plain, refused = material("hybrid"), material("hybrid")
    run(*plain)
    events = run(*refused, changed(packing="auto"))
    assert next(e.text for e in events if isinstance(e, Note)).startswith("Records are not packed")
    assert same(everything(*plain), everything(*refused))


@pytest.mark.parametrize("step", [1, 3])
def test_a_packed_run_resumes_to_the_bit(step, tmp_path):
    settings = changed(steps=5, packing="auto", accumulate=2)
    straight = material("hybrid", settings)
    events = run(*straight, settings)
    tokens = sum(e.tokens for e in events if isinstance(e, Trained))
    assert tokens < sum(e.tokens for e in run(*material("hybrid", settings), changed(settings, packing="off"))
                        if isinstance(e, Trained)) * 1.05  # fmt: skip

    first, before, calls = material("hybrid", settings), Progress(), iter(range(1, 100))
    run(*first, settings, progress=before, stop=lambda: next(calls) == step)
    save_checkpoint(tmp_path / "checkpoints", *first, before)
    second = material("hybrid", settings)
    run(*second, settings, progress=load_checkpoint(tmp_path / "checkpoints", *second))
    assert same(everything(*second), everything(*straight))
