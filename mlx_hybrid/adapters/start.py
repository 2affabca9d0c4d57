"""Starts taken from the gradient, without ever forming one.

For a probe branch x A B on a layer, with A = Ω (in, k) and B = 0, ∂L/∂B is (G Ω)ᵀ for the weight gradient G = ∂L/∂W
(out, in); with A = 0 and B = Qᵀ, ∂L/∂A is Gᵀ Q. So one pass over some batches sketches every layer at once, at the
memory of a LoRA, on any quantised base; passes in turn are the power iterations of a randomised SVD (Halko,
Martinsson, Tropp 2011, algorithm 4.4), as long as they see the same batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_hybrid.adapters.attach import hybrid_layers, layer_class
from mlx_hybrid.adapters.frozen import dense_weight, linear_shape
from mlx_hybrid.adapters.layer import HybridLinear, LowRank
from mlx_hybrid.adapters.plans import LayerPlan
from mlx_hybrid.adapters.rates import forward_with, total_gradient
from mlx_hybrid.config import AdapterConfig, HouseholderConfig, LowRankConfig
from mlx_hybrid.errors import MlxHybridError

HELD_OUT = 16  # columns of the first pass that measure what the others miss
STABLE_GAMMA = 16.0  # the authors' scaling of A₀ and B₀ (Wang et al. 2024, arXiv 2407.05000)


@dataclass(frozen=True)
class GradientFactors:
    """G ≈ U diag(σ) Vᵀ of one layer: U (out, k), σ (k,), V (in, k); each of a stack of experts has its own.

    `energy` estimates ‖G‖²_F without bias: Σσ² plus ‖(I − UUᵀ) G Ω‖²/h for Gaussian columns Ω (in, h) that took no part
    in finding U. Columns that did would find too little left over: U was fitted to them.
    """

    u: mx.array
    sigma: mx.array
    v: mx.array
    energy: float

    def captured(self, rank: int) -> float:
        """Share of the gradient's energy in its first `rank` directions, at most 1."""
        share = float(mx.sum(mx.square(self.sigma[..., :rank]))) / max(self.energy, 1e-30)
        return min(1.0, share)


@dataclass(frozen=True)
class SketchPass:
    """One pass over the batches is done."""

    number: int
    passes: int


def sketch_gradients(
    model: nn.Module,
    make_loss: Callable[[nn.Module], Callable],
    batches: Sequence[tuple],
    *,
    columns: int,
    passes: int,
    seed: int,
) -> Iterator[SketchPass | dict[str, GradientFactors]]:
    """Factors of every adapted layer's weight gradient, yielded last, after one SketchPass for each pass.

    `make_loss(model)` gives a summed loss of one batch. The adapters are taken off meanwhile, so G is the gradient
    of the base; the model is in training mode (some kernels have no gradient outside it) without dropout.
    """
    layers = {name: layer for name, layer in hybrid_layers(model).items() if layer.plan.from_gradient}
    probes = attach_probes(model, layers, columns)
    try:
        keys = mx.random.split(mx.random.key(seed), max(1, len(probes)))
        sides = {
            name: mx.random.normal(probe_shape(probe), key=key)
            for (name, probe), key in zip(probes.items(), keys, strict=True)
        }
        for number in range(1, passes + 1):
            forward = number % 2 == 1
            products = probe_pass(model, make_loss, batches, probes, sides, forward=forward)
            if number == 1:
                held_out = {name: product[..., -HELD_OUT:] for name, product in products.items()}
                products = {name: product[..., :-HELD_OUT] for name, product in products.items()}
            if number < passes:
                sides = {name: orthonormal(product) for name, product in products.items()}
            yield SketchPass(number, passes)
    finally:
        model.update_modules(tree_unflatten(list(layers.items())))
        for layer in hybrid_layers(model).values():
            layer.train_only_leaves()
    yield {name: factorise(sides[name], products[name], held_out[name]) for name in products}


def probe_shape(probe: HybridLinear) -> tuple[int, ...]:
    """Of the first pass's columns (…, in, k + HELD_OUT)."""
    *stack, d_in, k = probe.low_rank.lora_a.shape
    return (*stack, d_in, k + HELD_OUT)


def attach_probes(model: nn.Module, layers: dict[str, HybridLinear], columns: int) -> dict[str, HybridLinear]:
    """Replace the adapters by plain low-rank branches of `columns`, or as many as a layer can have, at scale 1."""
    probes = {}
    for name, layer in layers.items():
        rank = min(columns, *linear_shape(layer.linear))
        plan = LayerPlan(low_rank=LowRankConfig(rank=rank, alpha=float(rank), rslora=False))
        probes[name] = layer_class(layer.linear, plan)(layer.linear, plan, mx.random.key(0))
    model.update_modules(tree_unflatten(list(probes.items())))
    return probes


def probe_pass(
    model: nn.Module,
    make_loss: Callable[[nn.Module], Callable],
    batches: Sequence[tuple],
    probes: dict[str, HybridLinear],
    sides: dict[str, mx.array],
    *,
    forward: bool,
) -> dict[str, mx.array]:
    """G S (out, k) of every layer for sides S (in, k), or Gᵀ S (in, k) for sides S (out, k)."""
    for name, probe in probes.items():
        k, (d_in, d_out) = sides[name].shape[-1], linear_shape(probe.linear)
        stack = sides[name].shape[:-2]
        if forward:
            probe.put_leaves({"lora_a": sides[name], "lora_b": mx.zeros((*stack, k, d_out))})
        else:
            probe.put_leaves({"lora_a": mx.zeros((*stack, d_in, k)), "lora_b": transposed(sides[name])})
    leaf = "lora_b" if forward else "lora_a"
    model.freeze()
    for probe in probes.values():
        probe.unfreeze(keys=[leaf])
    flat = total_gradient(model, make_loss, batches)
    found = {name: flat[f"{name}.low_rank.{leaf}"] for name in probes}
    return {name: transposed(value) for name, value in found.items()} if forward else found


def transposed(matrix: mx.array) -> mx.array:
    return mx.swapaxes(matrix, -1, -2)


def orthonormal(matrix: mx.array) -> mx.array:
    """An orthonormal basis of the columns; on the CPU stream, where MLX factorises."""
    return mx.linalg.qr(matrix, stream=mx.cpu)[0]


def factorise(left: mx.array, product: mx.array, held_out: mx.array) -> GradientFactors:
    """SVD of Q (QᵀG) from Q (out, k) and GᵀQ (in, k): that of a k×k core after a thin QR. `held_out` is GΩ (out, h)."""
    q, r = mx.linalg.qr(product, stream=mx.cpu)
    core_u, sigma, core_vt = mx.linalg.svd(transposed(r), stream=mx.cpu)
    missed = held_out - left @ (transposed(left) @ held_out)
    rest = mx.sum(mx.square(missed)) / held_out.shape[-1]
    return GradientFactors(
        left @ core_u, sigma, q @ transposed(core_vt), float(mx.sum(mx.square(sigma)) + rest)
    )


def start_from_gradient(low_rank: LowRank, factors: GradientFactors) -> None:
    """Set the leaves of a fresh layer's low-rank branch; its output stays the base's, to the bit.

    `gradient`: A = V_r, B = 0. `lora-ga`: A₀ = V_r and B₀ = U_{r+1…2r}ᵀ, both × out^¼/√γ, and offsets of zero: the
    first step of plain SGD on ΔA, ΔB is then the best rank-2r approximation of the dense step.
    """
    rank = low_rank.rank
    directions = pad_columns(factors.v, rank)
    if not low_rank.offsets:
        low_rank.lora_a = directions
        low_rank.lora_b = mx.zeros_like(low_rank.lora_b)
        return
    d_out = low_rank.lora_b.shape[-1]
    size = d_out**0.25 / STABLE_GAMMA**0.5
    low_rank.lora_a0 = size * directions
    low_rank.lora_b0 = size * transposed(pad_columns(factors.u[..., rank:], rank))


def turn_along_gradient(layer: HybridLinear, factors: GradientFactors) -> None:
    """Set a fresh layer's reflections along its gradient; R stays the identity. Experts share theirs: GᵀW adds up."""
    weight = dense_weight(layer.linear, mx.float32).astype(mx.float32)
    p = factors.sigma[..., None] * (transposed(factors.u) @ weight)
    d_in = p.shape[-1]
    v = mx.moveaxis(factors.v, -2, 0).reshape(d_in, -1)
    layer.rotation.turn_along(v, p.reshape(-1, d_in))
    mx.eval(layer.rotation.house_u)


def pad_columns(matrix: mx.array, count: int) -> mx.array:
    """The first `count` columns; zeros where there are fewer."""
    have = min(count, matrix.shape[-1])
    return mx.pad(matrix[..., :have], [(0, 0)] * (matrix.ndim - 1) + [(0, count - have)])


def check_started(model: nn.Module) -> None:
    """Raise MlxHybridError where a layer is to start from the gradient and has not: LoRA-GA would never leave zero."""
    waiting = [name for name, layer in hybrid_layers(model).items() if not layer.started]
    if waiting:
        raise MlxHybridError(
            f"{waiting[0]} is to start from the gradient and has not ({len(waiting)} modules in all): run "
            "sketch_gradients and apply_start before training, or set adapter.low_rank.start zeros and "
            "adapter.rotation.start random."
        )


def sketch_columns(config: AdapterConfig) -> int:
    """Columns of a sketch that serves every start the settings ask for, and the oversampling."""
    low_rank, rotation = config.low_rank, config.rotation
    columns = 2 * low_rank.rank if low_rank and low_rank.from_gradient else 0
    turned = (
        2 * rotation.reflections if isinstance(rotation, HouseholderConfig) and rotation.from_gradient else 0
    )
    return max(columns, turned) + config.sketch.oversampling


class InputWatch(nn.Module):
    """An adapted layer that counts what its inputs are: Σ mean(x²), Σ (x A)² and how many were seen."""

    def __init__(self, layer: HybridLinear):
        super().__init__()
        self.layer = layer
        self._square = mx.array(0.0)
        self._seen = mx.array(0.0)
        self._count = 0

    def __call__(self, x: mx.array, *rest: mx.array, **named: object) -> mx.array:
        flat = x.reshape(-1, x.shape[-1]).astype(mx.float32)
        self._square = self._square + mx.sum(mx.mean(mx.square(flat), axis=-1))
        self._seen = self._seen + mx.sum(mx.square(flat @ self.layer.low_rank.lora_a), axis=-2, keepdims=True)
        self._count += flat.shape[0]
        mx.eval(self._square, self._seen)
        return self.layer(x, *rest, **named)

    def scale(self) -> mx.array:
        """What each column of A is multiplied by, (…, 1, r)."""
        random = self._square / 3  # E[(x·a)²] for a uniform in ±1/√in
        return mx.sqrt(random / mx.maximum(self._seen, 1e-12))


def scale_to_inputs(
    model: nn.Module, make_loss: Callable[[nn.Module], Callable], batches: Sequence[tuple]
) -> None:
    """Scale each column of A that starts along the gradient so that x·a is as large as for a random column.

    A leading direction of the gradient sees activations 12 to 63 times as large as a random one on a pretrained
    model, and one step of Adam on B moves the layer's output in proportion. B is zero, so the output stays.
    """
    aligned = {
        name: layer
        for name, layer in hybrid_layers(model).items()
        if layer.plan.low_rank and layer.plan.low_rank.start == "gradient"
    }
    watched = {name: InputWatch(layer) for name, layer in aligned.items()}
    if not watched:
        return
    forward_with(watched, model, make_loss, batches)
    for name, watch in watched.items():
        if watch._count:
            low_rank = aligned[name].low_rank
            low_rank.lora_a = low_rank.lora_a * watch.scale()
    mx.eval(model.parameters())


def apply_start(model: nn.Module, factors: dict[str, GradientFactors]) -> dict[str, float]:
    """Start every layer that has factors; the share of its gradient's energy that each low-rank start holds."""
    captured = {}
    for name, layer in hybrid_layers(model).items():
        if name not in factors:
            continue
        layer.started = True
        rotation, low_rank = layer.plan.rotation, layer.plan.low_rank
        if rotation and rotation.from_gradient:
            turn_along_gradient(layer, factors[name])
        if low_rank and low_rank.from_gradient:
            start_from_gradient(layer.low_rank, factors[name])
            captured[name] = factors[name].captured(layer.low_rank.down().shape[-1])
    mx.eval(model.parameters())
    return captured
