"""Starts of the low-rank branch taken from the gradient, without ever forming one. For a probe branch x A B on a layer,
with A = Ω (in, k) and B = 0, ∂L/∂B is (G Ω)ᵀ for the weight gradient G = ∂L/∂W (out, in); with A = 0 and B = Qᵀ, ∂L/∂A
is Gᵀ Q. So one pass over some batches sketches every layer at once, at the memory of a LoRA, on any quantised base;
passes in turn are the power iterations of a randomised SVD (Halko, Martinsson, Tropp 2011, algorithm 4.4), as long as
they see the same batches."""

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.adapters.layer import HybridLinear, LowRank, layer_class
from mlx_hybrid.adapters.step_gains import Batches, MakeLoss, measured, total_gradient
from mlx_hybrid.adapters.targets import LayerPlan
from mlx_hybrid.config import AdapterConfig, LowRankConfig

OVERSAMPLING = 16  # columns of a sketch beyond twice the rank
STABLE_GAMMA = 16.0  # the authors' scaling of A₀ and B₀ (Wang et al. 2024, arXiv 2407.05000)

GradientFactors = tuple[mx.array, mx.array]
"""The leading singular vectors of one layer's G: U (out, k), V (in, k); each of a stack of experts has its own."""


def sketch_gradients(
    model: nn.Module, make_loss: MakeLoss, batches: Batches, *, columns: int, passes: int, seed: int
) -> Iterator[int | dict[str, GradientFactors]]:
    """The number of each pass when it is done, and last the factors of every layer that starts from its gradient. The
    adapters are taken off meanwhile, so G is the gradient of the base; the model is in training mode (some kernels have
    no gradient outside it) without dropout."""
    layers = starting(model, "gradient", "lora-ga")
    probes = attach_probes(model, layers, columns)
    keys = iter(mx.random.split(mx.random.key(seed), max(1, len(probes))))
    sides = {n: mx.random.normal(probe.low_rank.lora_a.shape, key=next(keys)) for n, probe in probes.items()}
    try:
        for number in range(1, passes + 1):
            leaf = "lora_b" if number % 2 else "lora_a"
            set_sides(probes, sides, leaf)
            gradient = total_gradient(model, make_loss, batches)
            products = {name: gradient[f"{name}.low_rank.{leaf}"] for name in probes}
            if leaf == "lora_b":  # (G S)ᵀ
                products = {name: value.swapaxes(-1, -2) for name, value in products.items()}
            if number < passes:
                sides = {name: mx.linalg.qr(value, stream=mx.cpu)[0] for name, value in products.items()}
            yield number
    finally:
        model.update_modules(tree_unflatten(list(layers.items())))
        for layer in hybrid_layers(model).values():
            layer.train_only_leaves()
    yield {name: factorise(sides[name], products[name]) for name in products}


def starting(model: nn.Module, *starts: str) -> dict[str, HybridLinear]:
    """The adapted layers whose low-rank branch starts in one of these ways."""
    layers = hybrid_layers(model).items()
    return {name: layer for name, layer in layers if layer.low_rank and layer.plan.low_rank.start in starts}


def attach_probes(model: nn.Module, layers: dict[str, HybridLinear], columns: int) -> dict[str, HybridLinear]:
    """Replace the adapters by plain low-rank branches of `columns`, or as many as a layer can have, at scale 1."""
    probes = {}
    for name, linear in ((name, layer.linear) for name, layer in layers.items()):
        rank = min(columns, *linear_shape(linear))
        plan = LayerPlan(low_rank=LowRankConfig(rank=rank, alpha=float(rank), rslora=False))
        probes[name] = layer_class(linear, plan)(linear, plan, mx.random.key(0))
    model.update_modules(tree_unflatten(list(probes.items())))
    model.freeze()
    return probes


def set_sides(probes: dict[str, HybridLinear], sides: dict[str, mx.array], leaf: str) -> None:
    """Let `leaf` get the gradient G S (out, k) for sides S (in, k), or Gᵀ S (in, k) for sides S (out, k)."""
    for name, probe in probes.items():
        side = {"lora_a": sides[name]} if leaf == "lora_b" else {"lora_b": sides[name].swapaxes(-1, -2)}
        probe.put_leaves({leaf: mx.zeros_like(probe.low_rank[leaf]), **side})
        probe.freeze()
        probe.unfreeze(keys=[leaf])


def factorise(left: mx.array, product: mx.array) -> GradientFactors:
    """Singular vectors of Q (QᵀG) from Q (out, k) and GᵀQ (in, k): those of a k×k core after a thin QR."""
    q, r = mx.linalg.qr(product, stream=mx.cpu)
    u, _, vt = mx.linalg.svd(r.swapaxes(-1, -2), stream=mx.cpu)
    return left @ u, q @ vt.swapaxes(-1, -2)


def apply_start(model: nn.Module, factors: dict[str, GradientFactors]) -> None:
    """Start the low-rank branch of every layer that has factors; the output stays the base's, to the bit. `gradient`: A
    = V_r, B = 0. `lora-ga`: A₀ = V_r and B₀ = U_{r+1…2r}ᵀ, both × out^¼/√γ, and offsets of zero: the first step of
    plain SGD on ΔA, ΔB is then the best rank-2r approximation of the dense step."""
    layers = hybrid_layers(model)
    for name, (u, v) in factors.items():
        low_rank: LowRank = layers[name].low_rank
        a, second = v[..., : low_rank.rank], u[..., low_rank.rank : 2 * low_rank.rank]
        if low_rank.offsets:
            size = low_rank.lora_b.shape[-1] ** 0.25 / STABLE_GAMMA**0.5
            low_rank.lora_a0 = size * a
            low_rank.lora_b0[..., : second.shape[-1], :] = size * second.swapaxes(-1, -2)
        else:
            low_rank.lora_a = a
    mx.eval(model.parameters())


def sketch_columns(config: AdapterConfig) -> int:
    return 2 * config.low_rank.rank + OVERSAMPLING


def input_sizes(layer: HybridLinear, x: mx.array, *rest: mx.array, **named: object) -> tuple:
    """The layer's output; Σ mean(x²) and Σ (x A)², by column of A, of its inputs."""
    flat = x.reshape(-1, x.shape[-1]).astype(mx.float32)
    seen = mx.sum(mx.square(flat @ layer.low_rank.lora_a), axis=-2, keepdims=True)
    return layer(x, *rest, **named), {"all": mx.sum(mx.mean(mx.square(flat), axis=-1)), "seen": seen}


def scale_to_inputs(model: nn.Module, make_loss: MakeLoss, batches: Batches) -> None:
    """Scale each column of A that starts along the gradient so that x·a is as large as for a random column. A leading
    direction of the gradient sees activations 12 to 63 times as large as a random one on a pretrained model, and one
    step of Adam on B moves the layer's output in proportion. B is zero, so the output stays."""
    if not (aligned := starting(model, "gradient")):
        return
    for name, sums in measured(model, make_loss, batches, dict.fromkeys(aligned, input_sizes)).items():
        if sums:
            random = sums["all"] / 3  # E[(x·a)²] for a uniform in ±1/√in
            aligned[name].low_rank.lora_a *= mx.sqrt(random / mx.maximum(sums["seen"], 1e-12))
    mx.eval(model.parameters())
