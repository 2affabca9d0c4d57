"""Every kind of base × every method × every property that the method promises."""

import math
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import reference
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten
from table import (
    BASE_IDS,
    BASES,
    BLOCK,
    D_IN,
    D_OUT,
    PLANS,
    REFLECTING,
    ROTATING,
    SCALE,
    Wrapped,
    base,
    bias,
    fresh,
    inputs,
    leaves,
    shaken,
    tensors,
    weight,
)
from tolerances import DEFECT, EFFECT, IDENTITY, NUMERIC_GRADIENT, ROUNDING, SINGULAR, TORCH_GRADIENT

from mlx_hybrid.adapters.attach import refold
from mlx_hybrid.adapters.householder import householder_core
from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.adapters.targets import LayerPlan
from mlx_hybrid.config import ButterflyConfig
from mlx_hybrid.errors import ConfigError

TRAINABLE = {
    "lora": {"lora_a", "lora_b"}, "lora-ga": {"lora_a", "lora_b"}, "hra": {"house_u"}, "boft": {"oft_q"},
    "hybrid": {"house_u", "lora_a", "lora_b"}, "hybrid-boft": {"oft_q", "lora_a", "lora_b"}, "unitary": {"oft_q"},
}  # fmt: skip
BRANCH = {"house_u": "rotation", "oft_q": "rotation", "lora_a": "low_rank", "lora_b": "low_rank"}
COUNTS = {  # k·in; m·(in/b)·b(b−1)/2; r·(in + out)
    "lora": 4 * (64 + 96), "lora-ga": 4 * (64 + 96), "hra": 6 * 64, "boft": 3 * 8 * 28,
    "hybrid": 6 * 64 + 4 * (64 + 96), "hybrid-boft": 3 * 8 * 28 + 4 * (64 + 96), "unitary": 4 * 8 * 28,
}  # fmt: skip

each_base = pytest.mark.parametrize("mode", BASES, ids=BASE_IDS)
each_method = pytest.mark.parametrize("method", PLANS)
each_rotation = pytest.mark.parametrize("method", ROTATING)
each_bias = pytest.mark.parametrize("with_bias", [False, True], ids=["", "bias"])


def largest(a: mx.array) -> float:
    return mx.max(mx.abs(a)).item()


def close(ours: mx.array, wanted: mx.array, tolerance: float) -> bool:
    return largest(ours - wanted) <= tolerance * largest(wanted)


@each_base
@each_method
@each_bias
def test_a_fresh_layer_is_its_base(mode, method, with_bias):
    plain, ours = base(mode, with_bias), fresh(mode, method, with_bias)
    for rows in (3, 24):  # packed weights are read as they are, or dequantised
        x = inputs(rows)
        if method in REFLECTING:
            assert close(ours(x), plain(x), IDENTITY)
        else:
            assert mx.array_equal(ours(x), plain(x))


@each_base
@each_method
@each_bias
def test_the_layer_is_its_equation(mode, method, with_bias):
    layer, x = shaken(mode, method, with_bias), inputs()
    wide = np.array(x, dtype=np.float64)
    exact = reference.layer(leaves(layer), wide, weight(layer), bias(layer), SCALE, BLOCK)
    assert close(layer(x), mx.array(exact.astype(np.float32)), ROUNDING)
    assert not close(layer(x), base(mode, with_bias)(x), EFFECT)


@each_base
@each_method
@each_bias
def test_fused_it_is_one_linear_layer(mode, method, with_bias):
    layer, x = shaken(mode, method, with_bias), inputs()
    fused = layer.fuse()
    assert type(fused) is nn.Linear
    assert close(fused(x), layer(x), ROUNDING)
    assert not close(fused(x), base(mode, with_bias)(x), EFFECT)


@each_base
@each_method
@each_bias
def test_steps_move_the_leaves_and_nothing_else(mode, method, with_bias):
    model = Wrapped(shaken(mode, method, with_bias))
    before, x, goal = tensors(model), inputs(), mx.random.normal((24, D_OUT))
    optimizer = AdamW(1e-2)
    gradient = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x) - goal)))
    for _ in range(2):
        _, gradients = gradient(x)
        assert {name for name, _ in tree_flatten(gradients)} == {
            f"layer.{BRANCH[leaf]}.{leaf}" for leaf in TRAINABLE[method]
        }
        optimizer.update(model, gradients)
    after = tensors(model)
    moved = {name.rsplit(".", 1)[-1] for name in before if not mx.array_equal(before[name], after[name])}
    assert moved == TRAINABLE[method]


@each_base
@each_method
def test_the_count_of_parameters_is_the_formula(mode, method):
    layer = fresh(mode, method)
    counted = sum(value.size for _, value in tree_flatten(layer.trainable_parameters()))
    assert counted == COUNTS[method]


@each_rotation
@pytest.mark.parametrize("size", [0.03, 0.08])
def test_the_rotation_is_orthogonal_with_determinant_one(method, size):
    layer = shaken("", method, size=size)
    rotation = np.array(layer.rotation.rotate(mx.eye(D_IN)), dtype=np.float64)
    assert np.abs(rotation @ rotation.T - np.eye(D_IN)).max() <= DEFECT
    assert layer.rotation.defect() <= DEFECT
    assert np.linalg.det(rotation) == pytest.approx(1, abs=D_IN * DEFECT)
    assert np.abs(rotation - np.eye(D_IN)).max() > 0.05
    assert np.abs(rotation - reference.rotation(leaves(layer), D_IN, BLOCK)).max() <= ROUNDING


@each_rotation
def test_settled_it_answers_the_same(method):
    layer, x = shaken("affine-4", method), inputs()
    before = layer(x)
    layer.rotation.settle()
    assert layer.rotation.settled
    assert mx.array_equal(layer(x), before)
    for name in ("house_u", "oft_q"):
        if name in layer.rotation:
            layer.rotation[name] = layer.rotation[name] + mx.random.normal(layer.rotation[name].shape)
    layer.rotation.unsettle()
    assert not close(layer(x), before, EFFECT)  # the rotation is formed anew


@each_rotation
@pytest.mark.parametrize("reach", [None, math.inf])
def test_refolding_changes_no_output(method, reach):
    layer, x = shaken("affine-4", method), inputs()
    before = layer(x)
    folded = layer.rotation.refold(reach)
    assert folded == (reach is not None and method not in REFLECTING)
    assert close(layer(x), before, ROUNDING)
    assert not close(layer(x), base("affine-4")(x), EFFECT)
    if folded:
        assert largest(layer.rotation.oft_q) == 0
        assert largest(layer.rotation.oft_base - mx.eye(BLOCK)) > 0.05


def test_reflections_are_renormalised_and_far_blocks_folded():
    chain = shaken("", "hra").rotation
    chain.house_u = 3 * chain.house_u
    chain.refold()
    assert mx.allclose(mx.linalg.norm(chain.house_u, axis=0), mx.ones(6), atol=ROUNDING)
    butterfly = fresh("", "boft").rotation
    butterfly.oft_q = 0.5 * mx.random.normal(butterfly.oft_q.shape)
    assert butterfly.refold()
    assert not butterfly.refold()


def test_householder_and_low_rank_are_one_lora():
    """A' = [U, A] (in, k + r), B' = [−T Uᵀ Wᵀ; s B]."""
    layer, x = shaken("affine-4", "hybrid", True), inputs()
    w, u = mx.array(weight(layer).astype(np.float32)), layer.rotation.house_u
    down = mx.concatenate([u, layer.low_rank.lora_a], axis=1)
    up = mx.concatenate([-householder_core(u) @ u.T @ w.T, SCALE * layer.low_rank.lora_b], axis=0)
    plain = base("affine-4", True)(x)
    assert close(plain + x @ down @ up, layer(x), ROUNDING)
    assert not close(plain, layer(x), EFFECT)


@each_rotation
def test_a_rotation_alone_keeps_the_singular_values_through_training(method):
    layer = HybridLinear(base("affine-4"), LayerPlan(PLANS[method].rotation), mx.random.key(1))
    before = np.linalg.svd(weight(layer), compute_uv=False)
    train(layer, steps=40, rate=2e-2, refold_every=10)
    merged = np.array(layer.merged_weight(), dtype=np.float64)
    after = np.linalg.svd(merged, compute_uv=False)
    assert np.abs(after - before).max() <= SINGULAR * before[0]
    assert np.abs(merged - weight(layer)).max() > 0.05


HARD_RATE = 10 * 1.8 * 2e-3
"""Ten times the default rate, and the most that mixing multiplies a step by."""


@pytest.mark.parametrize("method", ["hra", "boft"])
def test_the_rotation_stays_one_over_a_thousand_hard_steps(method):
    layer = fresh("", method)
    every, worst = layer.rotation.refold_every, 0.0
    for _ in range(20):  # AdamW starts anew each time, with steps of one sign: the hardest
        train(layer, steps=50, rate=HARD_RATE, refold_every=every)
        worst = max(worst, layer.rotation.defect())
    assert worst <= DEFECT
    assert largest(layer.rotation.rotate(mx.eye(D_IN)) - mx.eye(D_IN)) > 0.2


def train(layer: HybridLinear, *, steps: int, rate: float, refold_every: int) -> None:
    """AdamW towards a target that no rotation reaches, so that the pull never ends."""
    model, x = Wrapped(layer), inputs(16)
    goal = mx.random.normal((16, D_OUT))
    optimizer = AdamW(rate, weight_decay=0.0, bias_correction=True)
    gradient = nn.value_and_grad(model, lambda x: mx.mean(mx.square(model(x) - goal)))
    for step in range(1, steps + 1):
        optimizer.update(model, gradient(x)[1])
        mx.eval(model.parameters(), optimizer.state)
        if step % refold_every == 0:
            refold(model)


@pytest.mark.parametrize("method", ["lora", "hybrid", "hybrid-boft"])
def test_dropout_falls_on_the_low_rank_branch_in_training_only(method):
    plan = PLANS[method]
    dropped = replace(plan, low_rank=replace(plan.low_rank, dropout=0.5))
    layer, x = HybridLinear(base(""), dropped, mx.random.key(5)), inputs()
    plain = shaken("", method)
    layer.put_leaves(plain.leaves())
    layer.eval()
    assert close(layer(x), plain(x), ROUNDING)
    layer.train()
    assert not close(layer(x), layer(x), EFFECT)
    mean = mx.mean(mx.stack([layer(x) for _ in range(400)]), axis=0)
    spread = mx.std(mx.stack([layer(x) for _ in range(50)]), axis=0)
    assert largest(mean - plain(x)) <= 6 * largest(spread) / math.sqrt(400)
    low_rank = layer.low_rank
    low_rank.lora_b = mx.zeros_like(low_rank.lora_b)
    if low_rank.offsets:
        low_rank.lora_a = mx.zeros_like(low_rank.lora_a)
    assert mx.array_equal(layer(x), layer(x))  # the rotation is never dropped


@each_base
@each_bias
def test_one_layer_is_adapted_by_hand_with_the_sizes_of_the_preset(mode, with_bias):
    plain, x = base(mode, with_bias), inputs()
    layer = HybridLinear.from_base(plain)
    assert close(layer(x), plain(x), IDENTITY)
    shapes = {name: leaf.shape for name, leaf in layer.leaves().items()}
    assert shapes == {"house_u": (D_IN, 8), "lora_a": (D_IN, 8), "lora_b": (8, D_OUT)}
    wide = HybridLinear.from_base(plain, rotation={"kind": "butterfly", "factors": 2}, low_rank={"rank": 4})
    assert wide.rotation.dense_size == 16
    assert mx.array_equal(wide(x), plain(x))
    assert HybridLinear.from_base(plain, rotation=ButterflyConfig(), low_rank=None).low_rank is None
    other = HybridLinear.from_base(plain, seed=1)
    assert not mx.array_equal(other.low_rank.lora_a, layer.low_rank.lora_a)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": {"reflections": 3}}, "reflections come in pairs; use 4"),
        ({"rotation": {"reflections": 66}}, "66 is more than the 64 inputs of the layer"),
        (
            {"rotation": {"kind": "butterfly", "block_size": 12}},
            "block_size 8 with factors 4 divides|block_size",
        ),
        ({"low_rank": {"rank": 100}}, "100 is more than the layer of 64 × 96 can use"),
        ({"low_rank": {"rnk": 4}}, 'did you mean "rank"'),
        ({"rotation": None, "low_rank": None}, "needs a rotation or a low-rank branch"),
        ({"rotation": None, "low_rank": {"magnitude": True}}, "without magnitudes"),
    ],
)
def test_what_does_not_fit_one_layer_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        HybridLinear.from_base(base(""), **options)
    with pytest.raises(ConfigError, match="Embedding is no linear layer"):
        HybridLinear.from_base(nn.Embedding(8, 64))


def projected(method: str) -> tuple[HybridLinear, mx.array, np.ndarray, dict]:
    """A layer, its input, a direction, and the gradients of the output's share along it."""
    layer, x = shaken("", method), inputs()
    direction = np.random.default_rng(3).normal(size=(24, D_OUT))
    model, goal = Wrapped(layer), mx.array(direction.astype(np.float32))
    _, gradients = nn.value_and_grad(model, lambda x: mx.sum(model(x) * goal))(x)
    found = {name.rsplit(".", 1)[-1]: value for name, value in tree_flatten(gradients["layer"])}
    return layer, x, direction, found


@each_method
def test_gradients_equal_central_differences(method):
    layer, x, direction, gradients = projected(method)
    values, wide, rng = leaves(layer), np.array(x, dtype=np.float64), np.random.default_rng(4)
    for name in TRAINABLE[method]:
        ours = np.array(gradients[name])
        entries = [tuple(rng.integers(0, n) for n in ours.shape) for _ in range(12)]

        def total(leaf, name=name):
            changed = {**values, name: leaf}
            y = reference.layer(changed, wide, weight(layer), None, SCALE, BLOCK)
            return float((y * direction).sum())

        numeric = [reference.central_difference(total, values[name], entry) for entry in entries]
        found = [ours[entry] for entry in entries]
        assert np.abs(numeric).max() > EFFECT
        assert np.abs(np.subtract(found, numeric)).max() <= NUMERIC_GRADIENT * np.abs(ours).max()


@pytest.mark.peft
@each_method
def test_gradients_equal_autograd_of_pytorch(method):
    torch = pytest.importorskip("torch")
    layer, x, direction, gradients = projected(method)
    theirs = {n: torch.tensor(v, requires_grad=n in TRAINABLE[method]) for n, v in leaves(layer).items()}
    rotated = torch.tensor(np.array(x, dtype=np.float64)) @ torch_rotation(torch, theirs)
    y = rotated @ torch.tensor(weight(layer)).T
    if "lora_a" in theirs:
        a, b = theirs["lora_a"], theirs["lora_b"]
        a0, b0 = theirs.get("lora_a0", torch.zeros_like(a)), theirs.get("lora_b0", torch.zeros_like(b))
        y = y + SCALE * torch.tensor(np.array(x, dtype=np.float64)) @ ((a + a0) @ (b + b0) - a0 @ b0)
    (y * torch.tensor(direction)).sum().backward()
    for name in TRAINABLE[method]:
        exact = theirs[name].grad.numpy()
        gap = np.abs(np.array(gradients[name]) - exact).max()
        assert gap <= TORCH_GRADIENT * np.abs(exact).max()


def torch_rotation(torch, values):
    """R in PyTorch: reflections one by one, or permuted blocks factor by factor."""
    eye = torch.eye(D_IN, dtype=torch.float64)
    product = eye
    if "house_u" in values:
        for u in values["house_u"].T:
            product = product @ (eye - 2 * torch.outer(u, u) / (u @ u))
    if "oft_q" in values:
        rows, columns = torch.triu_indices(BLOCK, BLOCK, 1)
        small = torch.eye(BLOCK, dtype=torch.float64)
        for level, (triangle, folded) in enumerate(zip(values["oft_q"], values["oft_base"])):
            q = torch.zeros(len(triangle), BLOCK, BLOCK, dtype=torch.float64)
            q = q.index_put((torch.arange(len(triangle))[:, None], rows, columns), triangle)
            q = q - q.mT
            blocks = (small - q) @ torch.linalg.inv(small + q) @ folded
            permutation = eye[torch.tensor(reference.butterfly_order(D_IN, BLOCK, level))]
            product = permutation @ torch.block_diag(*blocks) @ permutation.T @ product
    return product
