"""Powers and averages of adapters, against SciPy's fractional powers and NumPy in float64."""

import mlx.core as mx
import numpy as np
import pytest
import reference
from hf_bases import folder_of, one_thread, trained  # noqa: F401
from scipy.linalg import fractional_matrix_power, polar
from table import (
    BASE_IDS,
    BASES,
    BLOCK,
    D_IN,
    PLANS,
    ROTATING,
    SCALE,
    Wrapped,
    inputs,
    leaves,
    shaken,
    weight,
)
from tolerances import DEFECT, EFFECT, ROUNDING

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.store import adapter_state, read_adapter_config
from mlx_hybrid.adapters.strength import (
    at_strength,
    averaged,
    blocks_at,
    config_at,
    powered,
    reflections,
    spectrum,
    state_at,
)
from mlx_hybrid.config import AdapterConfig, ButterflyConfig
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.exports.adapter import open_source

POWER, SAVED = 1e-9, 1e-5


def turned(angles: list[float], seed: int = 0) -> np.ndarray:
    """A rotation by some angles, each in a plane of its own."""
    frame, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(2 * len(angles), 2 * len(angles))))
    middle = np.zeros_like(frame)
    for i, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        middle[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, -s], [s, c]]
    return frame @ middle @ frame.T


def config_of(method: str) -> AdapterConfig:
    plan = PLANS[method]
    return AdapterConfig(rotation=plan.rotation, low_rank=plan.low_rank)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("angles", [[0.3, 1.2, 2.9], [0.5, 0.5, 0.5], [0.0, 0.0, 1e-7], [3.1, -2.0, 0.0]])
def test_a_power_of_a_rotation_is_scipys(angles, t):
    r = turned(angles)
    ours = powered(*spectrum(r), t)
    assert np.abs(ours - fractional_matrix_power(r, t).real).max() <= POWER
    assert np.abs(ours @ ours.T - np.eye(len(r))).max() <= POWER


def test_half_a_turn_leaves_open_the_way_back_and_is_refused():
    with pytest.raises(MlxHybridError, match="use a strength of 1"):
        spectrum(turned([np.pi, 0.2]))


@pytest.mark.parametrize("t", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("size", [0.0, 0.05, 0.5])
def test_reflections_at_a_part_of_their_turn_are_as_many_and_its_power(size, t):
    start = np.repeat(np.random.default_rng(1).normal(size=(D_IN, 3)), 2, axis=1)
    u = start + size * np.random.default_rng(2).normal(size=start.shape)
    r = reference.householder(u)
    ours = reflections([(1.0, mx.array(u.astype(np.float32)))], t)
    assert ours.shape == u.shape
    exact = fractional_matrix_power(r, t).real
    assert np.abs(reference.householder(np.array(ours, np.float64)) - exact).max() <= ROUNDING


@pytest.mark.parametrize("t", [0.25, 0.75])
def test_blocks_of_a_butterfly_are_powers_of_the_composed_ones(t):
    layer = shaken("", "boft", size=0.08).rotation
    r = reference.rotation(
        {name: np.array(layer[name], np.float64) for name in ("oft_q", "oft_base")}, D_IN, BLOCK
    )
    blocks = blocks_at(layer.oft_q, layer.oft_base, t)
    ours = np.zeros_like(r)
    for i, block in enumerate(np.array(blocks[0], np.float64)):
        n = len(block)
        ours[i * n : (i + 1) * n, i * n : (i + 1) * n] = block
    assert np.abs(ours - fractional_matrix_power(r, t).real).max() <= 10 * ROUNDING
    assert np.abs(ours - r).max() > EFFECT


@pytest.mark.parametrize("mode", BASES[:2], ids=BASE_IDS[:2])
@pytest.mark.parametrize("method", PLANS)
def test_a_layer_at_a_part_of_its_strength_is_its_equation_and_comes_back(method, mode):
    layer, x, t = shaken(mode, method), inputs(), 0.4
    model, trained, before = Wrapped(layer), leaves(layer), layer(inputs())
    config = config_at(config_of(method), state_at(adapter_state(model), t, {}.__getitem__), t)
    with at_strength(model, t, {}.__getitem__):
        y, small = np.array(layer(x), np.float64), leaves(layer)
    r = fractional_matrix_power(reference.rotation(trained, D_IN, BLOCK), t).real
    exact = np.array(x, np.float64) @ r @ weight(layer).T
    if "lora_a" in trained:
        a, b = trained["lora_a"], trained["lora_b"]
        a0, b0 = trained.get("lora_a0", 0 * a), trained.get("lora_b0", 0 * b)
        exact += t * SCALE * np.array(x, np.float64) @ ((a + a0) @ (b + b0) - a0 @ b0)
        assert config.low_rank.alpha == pytest.approx(t * PLANS[method].low_rank.alpha)
    assert np.abs(y - exact).max() <= 10 * ROUNDING * np.abs(exact).max()
    if "oft_base" in small:
        assert (config.rotation.block_size, config.rotation.factors) == (small["oft_base"].shape[-1], 1)
    assert mx.array_equal(layer(x), before)
    assert config_at(config_of(method), adapter_state(model), 1.0) == config_of(method)
    with at_strength(model, 1.0, {}.__getitem__):
        assert mx.array_equal(layer(x), before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", ["lora", "lora-ga", "dora", "hra", "hybrid", "hybrid-boft"])
def test_saved_weights_at_half_the_strength_are_those_of_the_equations(method, tmp_path):
    adapter, base = trained(method, "llama"), folder_of("llama")
    whole = open_source(str(adapter), model=base)
    half = open_source(str(adapter), model=base, strength=0.5, place=tmp_path)
    assert read_adapter_config(tmp_path).extra["strength"] == 0.5
    rotation = whole.info.adapter.rotation
    for module in whole.info.modules[:3]:
        layer = whole.layer(module, whole.base)
        leaves = {name: np.array(leaf, np.float64) for name, leaf in layer.leaves().items()}
        weight = np.array(layer.linear.weight, np.float64)
        block = layer.rotation.block_size if isinstance(rotation, ButterflyConfig) else 0
        turn = reference.rotation(leaves, weight.shape[1], block)
        exact = weight @ fractional_matrix_power(turn, 0.5).real.T
        if "lora_a" in leaves:
            a, b = leaves["lora_a"], leaves["lora_b"]
            a0, b0 = leaves.get("lora_a0", 0 * a), leaves.get("lora_b0", 0 * b)
            exact = exact + 0.5 * layer.low_rank.scale * ((a + a0) @ (b + b0) - a0 @ b0).T
        if "m" in leaves:
            before = np.linalg.norm(weight, axis=1)
            size = before + 0.5 * (leaves["m"] - before)
            exact = exact * (size / np.linalg.norm(exact, axis=1))[:, None]
        found = np.array(half.layer(module, half.base).merged_weight(), np.float64)
        assert np.abs(found - exact).max() <= SAVED * np.abs(exact).max()
        assert np.abs(found - weight).max() > 100 * SAVED * np.abs(weight).max()


def test_blocks_of_two_sizes_cannot_be_said_of_one_factor():
    state = {f"{name}.oft_base": mx.zeros((1, 4, size, size)) for name, size in (("a", 8), ("b", 16))}
    with pytest.raises(ConfigError, match=r"blocks are \[8, 16\] wide"):
        config_at(config_of("boft"), state, 0.5)


def test_whole_weights_and_magnitudes_lie_between_what_they_were_and_what_they_are():
    state = {"a.weight": mx.array([[3.0]]), "b.m": mx.array([5.0])}
    before = {"a.weight": mx.array([[1.0]]), "b.m": mx.array([1.0])}
    half = state_at(state, 0.25, before.__getitem__)
    assert {name: value.item() for name, value in half.items()} == {"a.weight": 1.5, "b.m": 2.0}


@pytest.mark.parametrize("w", [0.1, 0.5])
def test_averages_of_rotations_are_the_nearest_rotations(w):
    rng = np.random.default_rng(3)
    start = np.repeat(rng.normal(size=(D_IN, 2)), 2, axis=1)
    old, new = (start + 0.1 * rng.normal(size=start.shape) for _ in range(2))
    mean = (1 - w) * reference.householder(old) + w * reference.householder(new)
    near, _ = polar(mean)
    both = (mx.array(u.astype(np.float32)) for u in (old, -new))  # a sign is no matter
    found = averaged(*({"a.house_u": u} for u in both), w)["a.house_u"]
    ours = reference.householder(np.array(found, np.float64))
    assert np.linalg.norm(ours - near) <= 0.2 * np.linalg.norm(near - reference.householder(old))
    blocks = [np.stack([turned([a, b], seed) for seed in range(3)]) for a, b in ((0.1, 0.4), (0.3, 0.2))]
    exact = np.stack([polar((1 - w) * x + w * y)[0] for x, y in zip(*blocks, strict=True)])
    bases = [mx.array(b.astype(np.float32)) for b in blocks]
    found = averaged(*({"a.oft_base": b, "a.oft_q": mx.zeros((3, 6))} for b in bases), w)["a.oft_base"]
    assert np.abs(np.array(found) - exact).max() <= ROUNDING


@pytest.mark.parametrize("method", PLANS)
def test_the_average_of_an_adapter_with_itself_is_itself_and_stays_a_rotation(method):
    layer = shaken("", method, size=0.08)
    model, before = Wrapped(layer), layer(inputs())
    state = adapter_state(model)
    mean = averaged(state, state, 0.3)
    layer.put_leaves({name.rpartition(".")[2]: value for name, value in mean.items()})
    assert mx.max(mx.abs(layer(inputs()) - before)).item() <= 10 * ROUNDING * mx.max(mx.abs(before)).item()
    if method in ROTATING:
        assert hybrid_layers(model)["layer"].rotation.defect() <= DEFECT
    other = averaged(state, adapter_state(Wrapped(shaken("", method, size=0.02))), 0.3)
    for name in other:
        if name.rpartition(".")[2].startswith("lora_"):
            far = leaves(shaken("", method, size=0.02))[name.rpartition(".")[2]]
            assert np.allclose(other[name], 0.7 * np.array(state[name]) + 0.3 * far, atol=ROUNDING)
