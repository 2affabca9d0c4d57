"""One optimiser step over both branches: rates, decay, clipping, schedules, and mixed displacements."""

import math

import mlx.core as mx
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from mlx.utils import tree_flatten, tree_map
from tolerances import ADAM, ROUNDING
from toys import tiny_llama

from mlx_hybrid.adapters.attach import attach, hybrid_layers
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.config import TrainConfig, build_config
from mlx_hybrid.training.optimizer import (
    EMA,
    LARGEST_SHARE,
    SMALLEST_SHARE,
    BranchOptimizer,
    schedule,
    shares,
)

ROTATIONS = ("house_u", "oft_q")


def adapted(method: str = "hybrid", **changes):
    model = tiny_llama()
    attach(model, build_config({"method": method, "adapter": changes}, "t").adapter)
    return model


def optimizer_of(model, **changes) -> BranchOptimizer:
    mixing = changes.pop("mixing", "gradient")
    settings = {"learning_rate": 1e-2, "orthogonal_learning_rate": 1e-3, "clip": 0.0, "rates": "leaf"}
    return BranchOptimizer(model, TrainConfig(**{**settings, **changes}), mixing)


def flat(model) -> dict[str, mx.array]:
    return {name: value + 0 for name, value in tree_flatten(model.trainable_parameters())}


def random_gradients(model, scale=lambda name: 1.0, seed: int = 0):
    names = list(flat(model))

    def draw(path, leaf):
        return scale(path) * mx.random.normal(leaf.shape, key=mx.random.key(seed + names.index(path)))

    from mlx.utils import tree_map_with_path

    return tree_map_with_path(draw, model.trainable_parameters())


def displacement(model, gradients, **changes) -> dict[str, mx.array]:
    """What one step moves."""
    before = flat(model)
    optimizer_of(model, **changes).step(model, gradients)
    return {name: value - before[name] for name, value in flat(model).items()}


def size(a: mx.array) -> float:
    return mx.sqrt(mx.mean(mx.square(a))).item()


def test_the_first_step_is_the_rate_in_every_entry_as_in_pytorch():
    """AdamW with bias correction: |step| = rate whatever the gradient's size; without, it would be 3.2 times that."""
    model = adapted("lora")
    moved = displacement(model, random_gradients(model, lambda _: 1e-3))
    for name, change in moved.items():
        assert size(change) == pytest.approx(1e-2, rel=1e-3), name
        assert mx.max(mx.abs(change)).item() <= 1e-2 * (1 + ROUNDING), name


@pytest.mark.peft
def test_several_steps_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    model = adapted("lora", targets=["q_proj"])
    optimizer = optimizer_of(model, weight_decay=0.1, clip=1.0)
    theirs = {n: torch.nn.Parameter(torch.tensor(np.array(v))) for n, v in flat(model).items()}
    reference = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.1)
    start = flat(model)
    for step in range(5):
        gradients = random_gradients(model, lambda _: 0.5, seed=100 * step)
        for name, gradient in tree_flatten(gradients):
            theirs[name].grad = torch.tensor(np.array(gradient))
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        reference.step()
        optimizer.step(model, gradients)
    for name, value in flat(model).items():
        assert np.abs(np.array(value) - theirs[name].detach().numpy()).max() <= ROUNDING
        assert size(value - start[name]) > 1e-3


def test_each_branch_has_its_rate_and_rotations_are_never_decayed():
    model = adapted("hybrid")
    for layer in hybrid_layers(model).values():
        layer.low_rank.lora_b = layer.low_rank.lora_b + 1.0
    before = flat(model)
    still = tree_map(mx.zeros_like, model.trainable_parameters())
    moved = displacement(model, still, weight_decay=0.5, mixing="off")
    for name, change in moved.items():
        if last_part(name) in ROTATIONS:
            assert size(change) == 0
        else:
            assert mx.allclose(change, -1e-2 * 0.5 * before[name], rtol=1e-3, atol=1e-7), name
    model = adapted("hybrid")
    optimizer, before = optimizer_of(model, mixing="off"), flat(model)
    optimizer.set_rate(0.5)
    optimizer.step(model, random_gradients(model))
    for name, value in flat(model).items():
        rate = 0.5 * (1e-3 if last_part(name) in ROTATIONS else 1e-2)
        assert size(value - before[name]) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(
    ("method", "decays"),
    [
        ("dora", lambda name, leaf: last_part(name) in ("lora_a", "lora_b")),
        ("hra", lambda name, leaf: False),
        ("full", lambda name, leaf: leaf.ndim == 2),
    ],
)
def test_only_low_rank_factors_and_whole_matrices_decay(method, decays):
    model = adapted(method)
    model.update(tree_map(lambda leaf: leaf + 1.0, model.trainable_parameters()))
    before = flat(model)
    moved = displacement(model, tree_map(mx.zeros_like, model.trainable_parameters()), weight_decay=0.5)
    kept = [name for name, leaf in before.items() if not decays(name, leaf)]
    assert kept
    for name, change in moved.items():
        if name in kept:
            assert size(change) == 0, name
        else:
            assert size(change + 1e-2 * 0.5 * before[name]) <= 1e-3 * size(change), name


@pytest.mark.parametrize("mixing", ["off", "fixed"])
def test_off_and_fixed_share_half_and_half(mixing):
    model = adapted("hybrid")
    _, lam = optimizer_of(model, mixing=mixing).step(
        model, random_gradients(model, lambda n: 1 + 9 * ("house" in n))
    )
    assert lam.tolist() == [0.5] * 14


def planted(name: str) -> float:
    """The first layer's rotations have ten times the gradient of the second's; low-rank ones the same everywhere."""
    return 10.0 if "layers.0." in name and last_part(name) in ROTATIONS else 1.0


@pytest.mark.parametrize("method", ["hybrid", "hybrid-boft"])
def test_the_share_follows_a_planted_imbalance(method):
    model = adapted(method)
    optimizer = optimizer_of(model)
    _, lam = optimizer.step(model, random_gradients(model, planted))
    by_layer = dict(zip(optimizer.mixed, lam.tolist(), strict=True))
    favoured = [value for name, value in by_layer.items() if "layers.0." in name]
    others = [value for name, value in by_layer.items() if "layers.1." in name]
    assert min(favoured) > max(others)
    assert all(SMALLEST_SHARE <= value <= LARGEST_SHARE for value in by_layer.values())
    _, balanced = optimizer_of(model).step(model, random_gradients(model))
    assert max(favoured) - min(others) > 2 * (mx.max(balanced) - mx.min(balanced)).item()


@pytest.mark.parametrize("method", ["hybrid", "hybrid-boft"])
def test_a_share_moves_its_branch_and_leaves_the_sum_alone(method):
    """Under AdamW the displacement is 2λ of what it would be, whatever the gradient's size: steps are mixed."""
    model, other = adapted(method), adapted(method)
    gradients = random_gradients(model, planted)
    optimizer = optimizer_of(model)
    before = flat(model)
    _, lam = optimizer.step(model, gradients)
    mixed = {name: value - before[name] for name, value in flat(model).items()}
    plain = displacement(other, gradients, mixing="off")
    for share, layer in zip(lam.tolist(), optimizer.mixed, strict=True):
        for name in plain:
            if name.startswith(layer + "."):
                factor = 2 * share if last_part(name) in ROTATIONS else 2 * (1 - share)
                assert mx.allclose(mixed[name], factor * plain[name], rtol=1e-3, atol=1e-7), name
                assert size(mixed[name]) == pytest.approx(factor * size(plain[name]), rel=1e-3)


def test_a_layer_with_one_branch_is_left_alone():
    model = adapted("hybrid-unitary")
    optimizer = optimizer_of(model)
    assert not any(name.endswith(("o_proj", "down_proj")) for name in optimizer.mixed)
    before = flat(model)
    optimizer.step(model, random_gradients(model, planted))
    for name, value in flat(model).items():
        if "o_proj" in name or "down_proj" in name:
            assert size(value - before[name]) == pytest.approx(1e-3, rel=1e-3)


def test_gradients_are_clipped_as_one_vector_after_the_share_is_taken():
    model, other = adapted("hybrid"), adapted("hybrid")
    gradients = random_gradients(model, planted)
    whole = np.concatenate([np.array(g, dtype=np.float64).ravel() for _, g in tree_flatten(gradients)])
    norm, lam = optimizer_of(model, clip=1e-3).step(model, gradients)
    assert norm.item() == pytest.approx(np.linalg.norm(whole), rel=ROUNDING)
    _, free = optimizer_of(other, clip=0.0).step(other, gradients)
    assert mx.array_equal(lam, free)


def test_gradients_summed_over_tokens_make_the_step_of_their_mean():
    model, other = adapted("hybrid"), adapted("hybrid")
    gradients, before = random_gradients(model, planted), flat(model)
    norm, lam = optimizer_of(model, clip=1.0).step(model, tree_map(lambda g: 7 * g, gradients), mx.array(7))
    mean_norm, mean_lam = optimizer_of(other, clip=1.0).step(other, gradients)
    assert norm.item() == pytest.approx(mean_norm.item(), rel=ROUNDING)
    assert mx.allclose(lam, mean_lam, rtol=ROUNDING)
    for name, value in flat(other).items():
        assert mx.max(mx.abs(flat(model)[name] - value)).item() <= ADAM * size(value - before[name]), name


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_schedule_rises_and_falls(kind):
    factor = schedule(kind, 100, 0.1)
    values = [factor(step) for step in range(100)]
    assert values[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert values[10] == 1.0
    middle = {"cosine": 0.5, "linear": 0.5, "constant": 1.0}[kind]
    assert values[55] == pytest.approx(middle)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert 0 < values[99] <= (1.0 if kind == "constant" else 0.02)
    quarter = {"cosine": 0.5 * (1 + math.cos(math.pi * 0.25)), "linear": 0.75, "constant": 1.0}[kind]
    assert schedule(kind, 80, 0.0)(20) == pytest.approx(quarter)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_short_schedules_never_stand_still(steps, warmup):
    factor = schedule("cosine", steps, warmup)
    assert all(factor(step) > 0 for step in range(steps))


@pytest.mark.parametrize(
    ("norms", "share"),
    [
        ([[1.0] * 4] * 2, [0.5] * 4),
        ([[100.0, 100.0], [0.01, 0.01]], [0.5, 0.5]),  # branches of another scale
        ([[1.0, 3.0], [2.0, 2.0]], [0.5 / 1.5, 1.5 / 2.5]),  # relative norms 0.5 and 1.5, and 1 and 1
        ([[1e6, 1e-6], [1e-6, 1e6]], [LARGEST_SHARE, SMALLEST_SHARE]),
        ([[0.0] * 3] * 2, [0.5] * 3),
        ([[0.0, 0.0], [1.0, 1.0]], [SMALLEST_SHARE] * 2),
    ],
    ids=["equal", "scaled", "relative", "bounds", "no gradient", "one branch without"],
)
def test_the_share_is_the_relative_norm_within_its_bounds(norms, share):
    assert shares(mx.array(norms)).tolist() == pytest.approx(share)


@pytest.mark.parametrize(
    "wrong", [lambda: shares(mx.ones((3, 4))), lambda: shares(mx.ones((2, 4), dtype=mx.int32))]
)
def test_wrong_shapes_are_caught_under_test(wrong):
    with pytest.raises(TypeCheckError):
        wrong()


def mixed(mixing: str) -> BranchOptimizer:
    """An optimiser of two layers, for its mixing alone."""
    optimizer = BranchOptimizer.__new__(BranchOptimizer)
    optimizer.mixed, optimizer.mixing = ["a", "b"], mixing
    optimizer.mix = {"norms": mx.zeros((2, 2)), "started": mx.array(False)}
    return optimizer


def squares(*norms: float) -> dict[str, mx.array]:
    """Of the gradients of both branches of one layer and then the other."""
    names = [f"{layer}.{leaf}" for layer in "ab" for leaf in ("rotation.house_u", "low_rank.lora_a")]
    return {name: mx.array(norm**2) for name, norm in zip(names, norms, strict=True)}


def test_norms_are_averaged_from_the_first_value_on():
    optimizer = mixed("gradient")
    optimizer.update_mixing(squares(4.0, 2.0, 1.0, 1.0), 1.0)
    assert optimizer.mix["norms"].tolist() == [[4.0, 1.0], [2.0, 1.0]]
    optimizer.update_mixing(squares(16.0, 4.0, 2.0, 2.0), 2.0)
    assert optimizer.mix["norms"][0, 0].item() == pytest.approx(EMA * 4 + (1 - EMA) * 8)
    assert optimizer.mix["norms"][1, 0].item() == pytest.approx(2.0)


def test_inverted_the_smaller_gradient_takes_the_larger_part():
    found = {}
    for mixing in ("gradient", "inverted"):
        found[mixing] = mixed(mixing).update_mixing(squares(3.0, 1.0, 1.0, 3.0), 1.0).tolist()
    assert found["inverted"] == pytest.approx([1 - lam for lam in found["gradient"]])
    assert found["gradient"][0] > 0.5 > found["inverted"][0]
