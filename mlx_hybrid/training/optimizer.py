"""One optimiser step: AdamW with a rate for each branch, clipping, schedules, and mixed displacements.

Mixing: λ_ℓ ∈ [0.1, 0.9] is the share of layer ℓ's step that its orthogonal branch takes. Steps are mixed, not weights:
a convex mix of I and R is a contraction, while a mixed step leaves R orthogonal and costs nothing in the forward pass.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from jaxtyping import Float
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.layer import LOW_RANK_LEAVES, ORTHOGONAL_LEAVES
from mlx_hybrid.adapters.step_gains import OTHERS, branch_of
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.config import TrainConfig
from mlx_hybrid.training.batches import Batch
from mlx_hybrid.training.distributed import ALONE, World
from mlx_hybrid.training.loss import WEIGHTS, arrays, make_losses

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
SMALLEST_SHARE, LARGEST_SHARE = 0.1, 0.9
EMA = 0.9  # of the gradient norms that λ follows
RATES = {"rest": "learning_rate", "orthogonal": "orthogonal_learning_rate"}  # of each group of leaves


def schedule(kind: str, steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the peak rate at step 0, 1, …: a linear warm-up, then a cosine, a line or none."""
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(1, steps - rising)
        return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[kind]

    return factor


def is_decayed(path: str, leaf: mx.array, *, adapted: bool) -> bool:
    """Whether weight decay acts on a leaf: of an adapter A and B alone, of whole weights the matrices alone. Rotations,
    magnitudes, norms' gains and biases are kept: zero is no natural place for them."""
    if adapted:
        return last_part(path) in LOW_RANK_LEAVES
    return leaf.ndim >= 2 and last_part(path) != "bias"  # experts' biases are stacked


def step_factors(step: mx.array, scale: mx.array) -> tuple[mx.array, ...]:
    """(1 − β₁) · scale, (1 − β₂) · scale², √(1 − β₂ᵗ) / (1 − β₁ᵗ) and ε √(1 − β₂ᵗ), at step t = 1, 2, …"""
    root = mx.sqrt(1 - BETA2**step)
    return (1 - BETA1) * scale, (1 - BETA2) * mx.square(scale), root / (1 - BETA1**step), EPSILON * root


def adamw_step(
    leaf: mx.array,
    m: mx.array,
    v: mx.array,
    gradient: mx.array,
    factors: tuple[mx.array, ...],
    *,
    rate: mx.array,
    decay: float,
) -> tuple[mx.array, mx.array, mx.array]:
    """(θ, m, v) after one AdamW step with bias correction on g = scale · `gradient`, by the step's `factors`.

        m ← β₁ m + (1 − β₁) g      v ← β₂ v + (1 − β₂) g²
        θ ← θ − rate · decay θ − rate · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)

    Every factor that is one number is applied as one, a dozen operations an entry in all: on the CPU, where nothing is
    fused, mixing and clipping then cost nothing. Loshchilov & Hutter 2019, arXiv 1711.05101.
    """
    first, second, speed, epsilon = factors
    m = BETA1 * m + first * gradient
    v = BETA2 * v + second * mx.square(gradient)
    change = (rate * speed) * m / (mx.sqrt(v) + epsilon)
    kept = (1 - rate * decay) * leaf if decay else leaf
    return (kept - change).astype(leaf.dtype), m, v


class BranchOptimizer:
    """One optimiser step over all branches. The orthogonal leaves and the rest have a rate each; `is_decayed` says what
    decays. The displacement under AdamW is multiplied by what `branch_factors` says: scaling gradients under Adam would
    do nothing. Moments are float32 whatever the leaves are."""

    def __init__(self, model: nn.Module, config: TrainConfig, mixing: str):
        orthogonal = config.orthogonal_learning_rate or config.learning_rate
        self.peaks = {"rest": config.learning_rate, "orthogonal": orthogonal}
        self.weight_decay, self.clip, self.mixing = config.weight_decay, config.clip, mixing
        self.clock = {"step": mx.array(0), **{name: mx.array(peak) for name, peak in self.peaks.items()}}
        leaves = model.trainable_parameters()
        self.moments = {name: tree_map(lambda leaf: mx.zeros(leaf.shape), leaves) for name in ("m", "v")}
        adapted, flat = hybrid_layers(model), dict(tree_flatten(leaves))
        self.mixed = [n for n, m in adapted.items() if m.low_rank is not None and m.rotation is not None]
        self.decayed = {n for n, leaf in flat.items() if is_decayed(n, leaf, adapted=bool(adapted))}
        self.groups = [name for name in RATES if name in {rate_group(n) for n in flat}]
        self.mix = {"norms": mx.zeros((2, max(1, len(self.mixed)))), "started": mx.array(False)}
        self.factors = {in_one(branch_of(n)): mx.array(1.0) for n in flat if config.rates == "share"}

    def set_factors(self, factors: dict[str, float]) -> None:
        """What the rate of each branch is multiplied by from now on, by its path (adapters/step_gains.py)."""
        given = {in_one(path): value for path, value in factors.items()}
        self.factors = {path: mx.array(given.get(path, given.get(OTHERS, 1.0))) for path in self.factors}

    @property
    def state(self) -> list:
        """Everything a step reads and changes, for `mx.compile` and for checkpoints."""
        return [self.clock, self.moments, self.mix, self.factors]

    def put_state(self, flat: dict[str, mx.array]) -> None:
        """Take arrays by the names that flattening `state` gives, in place: a compiled step holds these containers."""
        for name, value in flat.items():
            *path, leaf = name.split(".")
            node = self.state
            for part in path:
                node = node[int(part)] if isinstance(node, list) else node[part]
            node[leaf] = value

    def begin_again(self) -> None:
        """Forget every step; the rates keep their factors."""
        steps = dict(tree_flatten([self.clock, self.moments, self.mix]))
        self.put_state({name: mx.zeros_like(value) for name, value in steps.items()})

    def rates(self, factor: float = 1.0) -> dict[str, float]:
        """The rates that act at this factor of their peaks, by the names of their settings."""
        return {RATES[name]: factor * self.peaks[name] for name in self.groups}

    def shared(self) -> list[str]:
        """The layers whose step is shared between two branches."""
        return [] if self.mixing == "off" else self.mixed

    def set_rate(self, factor: float) -> None:
        self.clock |= {name: mx.array(peak * factor) for name, peak in self.peaks.items()}

    def step(
        self, model: nn.Module, gradients: dict, count: mx.array | float = 1.0
    ) -> tuple[mx.array, mx.array]:
        """Step by gradients summed over `count` tokens; the mean gradient's norm and λ (layers,)."""
        gradients = dict(tree_flatten(gradients))
        flat = {name: gradient.astype(mx.float32).reshape(-1) for name, gradient in gradients.items()}
        squares = {name: mx.inner(own, own) for name, own in flat.items()}  # no array of squares is formed
        norm = mx.sqrt(sum(squares.values())) / count
        lam = self.update_mixing(squares, count)
        own = self.branch_factors(lam)
        self.clock["step"] = self.clock["step"] + 1
        scale = mx.minimum(1.0, self.clip / (norm + 1e-12)) if self.clip else mx.ones_like(norm)
        factors = step_factors(self.clock["step"], scale / count)
        leaves = dict(tree_flatten(model.trainable_parameters()))
        m, v = (dict(tree_flatten(self.moments[name])) for name in ("m", "v"))
        for name, leaf in leaves.items():
            rate = own.get(in_one(branch_of(name)), 1.0) * self.clock[rate_group(name)]
            decay = self.weight_decay if name in self.decayed else 0.0
            given = (leaf, m[name], v[name], gradients[name], factors)
            leaves[name], m[name], v[name] = adamw_step(*given, rate=rate, decay=decay)
        model.update(tree_unflatten(list(leaves.items())))
        self.moments |= {"m": tree_unflatten(list(m.items())), "v": tree_unflatten(list(v.items()))}
        return norm, lam

    def update_mixing(self, squares: dict[str, mx.array], count: mx.array | float) -> mx.array:
        """λ (layers,) of this step from the squared norms of gradients over `count` tokens, before clipping."""
        if not self.mixed or self.mixing not in ("gradient", "inverted"):
            return mx.full((max(1, len(self.mixed)),), 0.5)
        sums = defaultdict(int)
        for name, square in squares.items():
            sums[branch_of(name)] += square
        rows = [[sums[f"{name}.{branch}"] for name in self.mixed] for branch in ("rotation", "low_rank")]
        norms = mx.sqrt(mx.stack([mx.stack(row) for row in rows])) / count
        self.mix["norms"] = mx.where(self.mix["started"], EMA * self.mix["norms"] + (1 - EMA) * norms, norms)
        self.mix["started"] = mx.array(True)
        lam = shares(self.mix["norms"])
        return 1 - lam if self.mixing == "inverted" else lam

    def branch_factors(self, lam: mx.array) -> dict[str, mx.array]:
        """What the rates of branches are multiplied by, by the branches' paths. Each has its own factor, and its part
        of a step that two share: (λ, 1 − λ) / √(λ² + (1 − λ)²), since what the two add to an output is uncorrelated; of
        Adam's own rates 2λ and 2(1 − λ)."""
        factors = dict(self.factors)
        whole = mx.rsqrt(mx.square(lam) + mx.square(1 - lam)) if factors else 2 * mx.ones_like(lam)
        for index, name in enumerate(self.shared()):
            for branch, part in (("rotation", lam[index]), ("low_rank", 1 - lam[index])):
                path = in_one(f"{name}.{branch}")
                factors[path] = whole[index] * part * factors.get(path, 1.0)
        return factors


def rate_group(path: str) -> str:
    return "orthogonal" if last_part(path) in ORTHOGONAL_LEAVES else "rest"


def in_one(path: str) -> str:
    """A path as one name, which a tree of arrays keeps whole."""
    return path.replace(".", "/")


def shares(norms: Float[mx.array, "2 layers"]) -> Float[mx.array, " layers"]:
    """λ (layers,) from the norms (2, layers) of the orthogonal and the low-rank branch: λ_ℓ = g_o / (g_o + g_r), each g
    divided by its mean over the layers, so that the branches' scales are commensurate; ½ where both are zero."""
    mean = mx.mean(norms, axis=1, keepdims=True)
    relative = mx.where(mean > 0, norms / mx.maximum(mean, 1e-30), 0.0)
    total = relative[0] + relative[1]
    share = mx.where(total > 0, relative[0] / mx.maximum(total, 1e-30), 0.5)
    return mx.clip(share, SMALLEST_SHARE, LARGEST_SHARE)


def make_step(
    model: nn.Module,
    optimizer: BranchOptimizer,
    *,
    compiled: bool,
    world: World = ALONE,
    to_base: bool = False,
) -> Callable:
    """step(batches) → (loss sum, trained tokens, gradient norm, λ), one optimiser step over some batches. The loss is
    that of the answers, the gradient of what holds prompts too; both and the count of answers' tokens are summed over
    the batches and the machines, and divided once."""
    losses_and_gradient = nn.value_and_grad(model, make_losses(model))
    state = [model.state, optimizer.state, mx.random.state]
    wrap = partial(mx.compile, inputs=state, outputs=state) if compiled else lambda function: function

    @wrap
    def part(*batch: mx.array) -> tuple:
        (_, loss), gradients = losses_and_gradient(*batch)
        return loss, mx.sum(batch[WEIGHTS] > 0), gradients

    update = wrap(partial(optimizer.step, model))

    def step(batches: list[Batch]) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        loss, count, gradients = part(*arrays(batches[0], to_base=to_base))
        for batch in batches[1:]:
            more = part(*arrays(batch, to_base=to_base))
            loss, count, gradients = tree_map(mx.add, (loss, count, gradients), more)
            mx.eval(loss, count, gradients)
        loss, count = world.sum(mx.stack([loss, count]))
        result = (loss, count, *update(world.mean_gradients(gradients), count / world.size))
        del gradients  # so that each is freed as it is used
        mx.eval(state, result)
        return result

    return step
