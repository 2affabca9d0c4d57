"""One rate moves every method and every width alike: measured steps against what training really does."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from toys import tiny_llama

from mlx_hybrid.adapters.attach import attach, hybrid_layers
from mlx_hybrid.adapters.start import apply_start, scale_to_inputs, sketch_columns, sketch_gradients
from mlx_hybrid.adapters.step_gains import OTHERS, USUAL_GAIN, dense_layers, rate_factors, step_gains
from mlx_hybrid.config import TrainConfig, build_config
from mlx_hybrid.training.optimizer import BranchOptimizer

pytestmark = pytest.mark.slow

METHODS = {
    "share": ("lora", "lora-ga", "dora", "hra", "boft", "hybrid", "hybrid-boft", "full"),
    "leaf": ("lora", "full"),  # enough to show that Adam's own rate does not
}
WIDTHS = {64: 4, 256: 8}
STEPS = (1, 8, 32)
RATE = 1e-4
FACTOR = 2.0
"""Between any two methods or widths, at any of STEPS: the bar that the project sets itself."""
LINEAR = 1e-3
"""Of a gain: differences of float32 outputs that a step of 1e-3 has moved by a hundredth."""


def loss_of(model):
    return lambda tokens: mx.sum(nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]))


def texts(seed: int) -> mx.array:
    """Text with something to learn: each token follows from the one before, with some noise."""
    rng = np.random.default_rng(seed)
    tokens = np.cumsum(rng.choice([1, 2, 7], (4, 33), p=[0.7, 0.2, 0.1]), axis=1) + rng.integers(
        0, 200, (4, 1)
    )
    return mx.array(tokens % 250)


def started(method: str, width: int, rates: str = "share"):
    model = tiny_llama(hidden_size=width, intermediate_size=2 * width, num_attention_heads=WIDTHS[width])
    config = build_config({"method": method, "model": "x"}, "test").adapter
    whole = {name: layer.weight + 0 for name, layer in dense_layers(model).items()}
    attach(model, config, seed=0)
    batches = [(texts(n),) for n in range(2)]
    if config.from_gradient:
        columns = sketch_columns(config)
        *_, factors = sketch_gradients(model, loss_of, batches, columns=columns, passes=2, seed=0)
        apply_start(model, factors)
        scale_to_inputs(model, loss_of, batches)
    gains = step_gains(model, loss_of, batches)
    train = TrainConfig(learning_rate=RATE, clip=0.0, rates=rates)
    optimizer = BranchOptimizer(model, train, config.mixing)
    if rates == "share":
        optimizer.set_factors(rate_factors(gains))
    return model, optimizer, gains, whole


class Change(nn.Module):
    """An adapted layer that notes how far its output is from its base's."""

    def __init__(self, layer, weight):
        super().__init__()
        self.layer, self._weight = layer, weight
        self._shares = []

    def __call__(self, x):
        y, base = self.layer(x), x @ self._weight.T
        self._shares.append(
            mx.mean(mx.sum(mx.square(y - base), -1) / mx.sum(mx.square(base), -1)).item() ** 0.5
        )
        return y


def change(model, whole: dict[str, mx.array]) -> float:
    """By how much of its size the typical layer's output differs from the base's, whose weights are `whole`."""
    layers = hybrid_layers(model) or dense_layers(model)
    watched = {name: Change(layer, whole[name]) for name, layer in layers.items()}
    model.update_modules(tree_unflatten(list(watched.items())))
    model(texts(9))
    model.update_modules(tree_unflatten(list(layers.items())))
    return float(np.median([watch._shares for watch in watched.values()]))


def changes(method: str, width: int, rates: str) -> list[float]:
    """At each of STEPS."""
    model, optimizer, _, whole = started(method, width, rates)
    gradient, seen = nn.value_and_grad(model, loss_of(model)), []
    model.train()
    for step in range(1, max(STEPS) + 1):
        tokens = texts(step)
        _, gradients = gradient(tokens)
        optimizer.step(model, gradients, float(tokens.size))
        mx.eval(model.parameters(), optimizer.state)
        if step in STEPS:
            seen.append(change(model, whole))
    return seen


@pytest.fixture(scope="module")
def moved():
    """(methods · widths, steps) by kind of rate."""
    return {
        rates: np.array([changes(method, width, rates) for method in methods for width in WIDTHS])
        for rates, methods in METHODS.items()
    }


def test_one_rate_moves_every_method_and_width_alike(moved):
    assert (moved["share"].max(0) < FACTOR * moved["share"].min(0)).all()
    assert (moved["leaf"].max(0) > FACTOR * moved["leaf"].min(0)).all()


def test_a_first_step_moves_an_output_by_the_usual_gain_times_the_rate(moved):
    first = moved["share"][:, 0]
    assert (first > USUAL_GAIN * RATE / FACTOR).all()
    assert (first < USUAL_GAIN * RATE * FACTOR).all()


def test_gains_of_a_low_rank_branch_are_those_of_its_product():
    """s · x A sign(g) over y, in float64."""
    model, *_ = started("lora", 64, "leaf")
    batches = [(texts(n),) for n in range(2)]
    gains = step_gains(model, loss_of, batches)
    seen: dict[str, list] = {}
    layers = hybrid_layers(model)
    watched = {name: Inputs(layer, seen.setdefault(name, [])) for name, layer in layers.items()}
    gradient = dict(tree_flatten(nn.value_and_grad(model, both(model))(batches)[1]))
    model.update_modules(tree_unflatten(list(watched.items())))
    for (tokens,) in batches:
        model(tokens[:, :-1])
    for name, layer in layers.items():
        x = np.concatenate(seen[name]).astype(np.float64)
        sign = np.sign(np.array(gradient[f"{name}.low_rank.lora_b"]))
        step = layer.low_rank.scale * (x @ np.array(layer.low_rank.lora_a, np.float64)) @ sign
        y = x @ np.array(layer.linear.weight, np.float64).T
        expected = np.sqrt(np.mean((step**2).sum(-1) / (y**2).sum(-1)))
        assert gains[f"{name}.low_rank"] == pytest.approx(expected, rel=LINEAR)
    assert gains.keys() == {f"{name}.low_rank" for name in layers}


class Inputs(nn.Module):
    def __init__(self, layer, seen):
        super().__init__()
        self.layer, self._seen = layer, seen

    def __call__(self, x):
        self._seen.append(np.array(x.reshape(-1, x.shape[-1])))
        return self.layer(x)


def both(model):
    loss = loss_of(model)
    return lambda batches: sum(loss(tokens) for (tokens,) in batches)


def test_a_measurement_leaves_the_model_as_it_was():
    model, *_ = started("hybrid", 64)
    before = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    step_gains(model, loss_of, [(texts(3),)])
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[n], after[n]) for n in before)


def test_branches_of_a_kind_keep_among_themselves_the_rates_that_adam_gives_them():
    gains = {"a.low_rank": 4.0, "b.low_rank": 5.0, "c.low_rank": 20.0, "d.low_rank": 0.0, "a.rotation": 40.0}
    expected = {path: USUAL_GAIN / (40.0 if path == "a.rotation" else 5.0) for path in gains}
    del expected["d.low_rank"]  # no gradient reaches it, and Adam leaves it alone
    assert rate_factors(gains) == pytest.approx(expected | {OTHERS: USUAL_GAIN / 5.0})
