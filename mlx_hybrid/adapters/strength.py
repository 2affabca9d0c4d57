"""Adapters on the way between adapters: at a part of their strength, from base (t = 0) to trained (1), and averages.

    s → t·s      R → Rᵗ, which turns by t times the angles      m → m₀ + t (m − m₀)      W → W₀ + t (W − W₀)

An average of rotations is the rotation nearest to the average matrix; A, B, m and W are averaged as they are. Rotations
are taken apart on the host in float64, and stay of their kind: k reflections in the same span, and at a part of its
strength a butterfly is one factor of its dense blocks. PEFT-Arena, arXiv 2605.28819, rewinds so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_hybrid.adapters import store
from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.butterfly import Butterfly, compose_butterfly, nearest_rotation, turned
from mlx_hybrid.config import AdapterConfig, ButterflyConfig, to_tree
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.files import read_json

State = dict[str, mx.array]
NEWTON_SCHULZ = 4  # steps from the mean of two rotations; each squares the distance to the nearest one
HALF_TURN = 1e-6  # how far R¹ may be from R; beyond it an angle is too near to π to tell its sense


def spectrum(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(V, φ) with R = V diag(e^{iφ}) Vᴴ of rotations (…, n, n), φ ascending in (−π, π) and in pairs ±φ.
    i (I − R)(I + R)⁻¹ is Hermitian with eigenvalues tan(φ/2), so V is unitary however often an angle repeats. Raises
    MlxHybridError for an angle of π, from which two ways lead back."""
    eye = np.eye(r.shape[-1])
    try:
        skew = np.linalg.solve(eye + r, eye - r)
        tangents, v = np.linalg.eigh(0.5j * (skew - np.swapaxes(skew, -1, -2)))
        angles = 2 * np.arctan(tangents)
        exact = np.abs(powered(v, angles, 1.0) - r).max(initial=0.0) <= HALF_TURN
    except np.linalg.LinAlgError:
        exact = False
    if not exact:
        told = "A rotation turns by half a turn, which leaves open the way back: use a strength of 1."
        raise MlxHybridError(told)
    return v, angles


def powered(v: np.ndarray, angles: np.ndarray, t: float) -> np.ndarray:
    """Rᵗ = V diag(e^{itφ}) Vᴴ (…, n, n)."""
    return ((v * np.exp(1j * t * angles)[..., None, :]) @ np.swapaxes(v.conj(), -1, -2)).real


def reflections(us: list[tuple[float, mx.array]], t: float = 1.0) -> mx.array:
    """k unit columns (d, k) whose reflections make the average of R = H₀ … H_{k−1} of each U (d, k), by weights that
    add up to 1, to the power t. A plane's turn by φ is two reflections φ/2 apart. Where there are more than k/2 planes,
    those that turn most."""
    wide = [(weight, np.array(u, dtype=np.float64)) for weight, u in us]
    basis, _ = np.linalg.qr(np.concatenate([u for _, u in wide], axis=1))
    left, _, right = np.linalg.svd(sum(weight * chain(basis.T @ u) for weight, u in wide))
    v, angles = spectrum(left @ right)  # of the rotation nearest to the average
    pairs = wide[0][1].shape[1] // 2
    v, half = v[:, ::-1][:, :pairs], 0.5 * t * angles[::-1][:pairs]
    largest = np.take_along_axis(v, np.abs(v).argmax(axis=0)[None], 0)
    v = v * (largest.conj() / np.abs(largest))  # a turn by 0 may come in any phase: one with a real part
    first, second = basis @ v.real, basis @ v.imag
    first = first / np.linalg.norm(first, axis=0)
    second = second / np.maximum(np.linalg.norm(second, axis=0), 1e-30)
    columns = np.stack([first, np.cos(half) * first + np.sin(half) * second], axis=2)
    return mx.array(columns.reshape(len(basis), -1).astype(np.float32))


def chain(u: np.ndarray) -> np.ndarray:
    """H₀ H₁ … H_{k−1} (n, n) for the columns of U (n, k)."""
    gram = u.T @ u
    return np.eye(len(u)) - u @ np.linalg.inv(np.triu(gram, 1) + 0.5 * np.diag(np.diag(gram))) @ u.T


def blocks_at(q: mx.array, base: mx.array, t: float) -> mx.array:
    """Dense blocks (1, d/B, B, B) of Rᵗ, of a butterfly's leaves."""
    dense = np.array(compose_butterfly(turned(q, base)), dtype=np.float64)
    return mx.array(powered(*spectrum(dense), t)[None].astype(np.float32))


def averaged(old: State, new: State, weight: float) -> State:
    """(1 − w) · old + w · new, of the tensors of one adapter at two times; a butterfly's factor by factor."""
    mean = {}
    for name, value in new.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "house_u":
            mean[name] = reflections([(1 - weight, old[name]), (weight, value)])
        elif leaf == "oft_base":
            q = f"{owner}.oft_q"
            factors = (1 - weight) * turned(old[q], old[name]) + weight * turned(new[q], value)
            for _ in range(NEWTON_SCHULZ):
                factors = nearest_rotation(factors)
            mean[name], mean[q] = factors, mx.zeros_like(new[q])
        elif leaf != "oft_q":
            mean[name] = ((1 - weight) * old[name] + weight * value).astype(value.dtype)
    mx.eval(mean)
    return mean


def state_at(state: State, t: float, plain: Callable[[str], mx.array]) -> State:
    """The tensors of an adapter at strength t, but for what s → t·s does (`config_at`). `plain(name)` is what a
    magnitude or a weight that trains whole was before training."""
    if t == 1:
        return dict(state)
    at = {}
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        if leaf == "house_u":
            at[name] = reflections([(1.0, value)], t)
        elif leaf == "oft_base":
            at[name] = blocks_at(state[f"{owner}.oft_q"], value, t)
            _, blocks, size, _ = at[name].shape
            at[f"{owner}.oft_q"] = mx.zeros((1, blocks, size * (size - 1) // 2))
        elif leaf.startswith("lora_"):
            at[name] = value
        elif leaf != "oft_q":
            at[name] = plain(name) + t * (value - plain(name))
    return at


def config_at(config: AdapterConfig, state: State, t: float) -> AdapterConfig:
    """The settings of an adapter whose tensors at strength t are `state`. Raises ConfigError for blocks of several
    sizes, which settings cannot say of one factor."""
    low_rank, rotation = config.low_rank, config.rotation
    if low_rank:
        low_rank = replace(low_rank, alpha=t * low_rank.alpha)
    if isinstance(rotation, ButterflyConfig) and t != 1:
        sizes = {value.shape[-1] for name, value in state.items() if name.endswith(".oft_base")}
        if len(sizes) > 1:
            raise ConfigError(
                f"strength: the layers' blocks are {sorted(sizes)} wide, and at a part of its strength an adapter has "
                "one size; set adapter.rotation.block_size and factors to one that divides all, or use a strength of 1."
            )
        rotation = replace(rotation, block_size=sizes.pop(), factors=1)
    return replace(config, low_rank=low_rank, rotation=rotation)


def write_at_strength(source: Path, folder: Path, t: float, plain: Callable[[str], mx.array]) -> None:
    """Write the adapter of folder `source` at strength t to `folder`; `plain` as in `state_at`."""
    info, state = store.read_adapter_config(source), state_at(store.read_weights(source), t, plain)
    own = {"method": info.method, "base": info.base, "seed": info.seed, "modules": info.modules, **info.extra}
    own["adapter"] = to_tree(config_at(info.adapter, state, t))
    own["strength"] = t * info.extra.get("strength", 1.0)
    tree = read_json(source / store.CONFIG_FILE) | {"format": store.FORMAT, "mlx_hybrid": own}
    if "lora_parameters" in tree:
        tree["lora_parameters"]["scale"] *= t
    store.write_adapter(folder, state, tree)


@contextmanager
def at_strength(model: nn.Module, t: float, plain: Callable[[str], mx.array]) -> Iterator[None]:
    """Within it the adapted model is at strength t; `plain` as in `state_at`."""
    trained, layers = store.adapter_state(model), hybrid_layers(model)
    scales = {name: layer.low_rank.scale for name, layer in layers.items() if layer.low_rank}

    def put(state: State, t: float) -> None:
        for name, layer in layers.items():
            if isinstance(layer.rotation, Butterfly):
                factors, count, size, _ = state[f"{name}.oft_base"].shape
                layer.rotation = Butterfly(count * size, size, factors)
            if name in scales:
                layer.low_rank.scale = t * scales[name]
        store.set_state(model, state, "the adapter at a part of its strength")

    put(state_at(trained, t, plain), t)
    try:
        yield
    finally:
        put(trained, 1.0)
