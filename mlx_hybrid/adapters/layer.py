"""HybridLinear: a frozen linear layer on a rotated input, plus a low-rank update.

    y = (x R) Wᵀ + s · x (A B − A₀ B₀) + bias      R orthogonal (in, in);  A (in, r), B (r, out)

The base weight is met once, on a rotated input, so packed weights are never touched. A₀ and B₀ are zero but for the
LoRA-GA start.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.butterfly import Butterfly
from mlx_hybrid.adapters.frozen import dense_weight, frozen_matmul, linear_shape
from mlx_hybrid.adapters.householder import Householder, paired_reflections
from mlx_hybrid.adapters.targets import LayerPlan, is_experts, layer_plan
from mlx_hybrid.config import AdapterConfig, HouseholderConfig, LowRankConfig, RotationConfig, build, to_tree
from mlx_hybrid.errors import ConfigError

ORTHOGONAL_LEAVES = ("house_u", "oft_q")
LOW_RANK_LEAVES = ("lora_a", "lora_b")
MAGNITUDE_LEAVES = ("m",)
STATE_LEAVES = ("oft_base", "lora_a0", "lora_b0")
TRAINED_LEAVES = (*ORTHOGONAL_LEAVES, *LOW_RANK_LEAVES, *MAGNITUDE_LEAVES)

Rotation = Householder | Butterfly
USUAL_ROTATION, USUAL_LOW_RANK = HouseholderConfig(), LowRankConfig(rank=8)


class Dropout(nn.Module):
    """Zeroes a share of the entries in training and scales the others up by as much. A layer that runs again in the
    backward pass must drop what it dropped: the key of the last mask can be given back."""

    def __init__(self, share: float):
        super().__init__()
        self._share, self._given, self._last = share, None, None

    @property
    def acts(self) -> bool:
        return self.training and self._share > 0

    def __call__(self, x: mx.array) -> mx.array:
        if not self.acts:
            return x
        keep, key = 1 - self._share, self._given
        self._last = mx.random.randint(0, 1 << 31, (2,), dtype=mx.uint32) if key is None else key
        return mx.random.bernoulli(keep, x.shape, key=self._last) * x * (1 / keep)


class LowRank(nn.Module):
    """s · x A B, with A (…, in, r) and B (…, r, out), one of each for every expert of a stack (…); s is α/√r (rsLoRA,
    arXiv 2312.03732), else α/r (LoRA, arXiv 2106.09685). After `lora-ga` the leaves are offsets ΔA, ΔB from frozen A₀,
    B₀, and the branch is s · [xΔA, xA₀] [B₀ + ΔB; ΔB]: the same as s · x (A B − A₀ B₀), zero to the bit at the start
    and without cancellation."""

    def __init__(self, d_in: int, d_out: int, config: LowRankConfig, key: mx.array, stack: tuple = ()):
        super().__init__()
        self.scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        self.dropout, self.rank = Dropout(config.dropout), config.rank
        self.lora_b, shape = mx.zeros((*stack, config.rank, d_out)), (*stack, d_in, config.rank)
        self.offsets = config.start == "lora-ga"
        if self.offsets:
            self.lora_a = mx.zeros(shape)
            self.lora_a0, self.lora_b0 = self.lora_a + 0, self.lora_b + 0
        else:  # as mlx-lm starts it
            self.lora_a = mx.random.uniform(-1 / math.sqrt(d_in), 1 / math.sqrt(d_in), shape, key=key)

    def down(self) -> mx.array:
        """A (…, in, r), or [ΔA, A₀] (…, in, 2r) where the leaves are offsets."""
        return mx.concatenate([self.lora_a, self.lora_a0], axis=-1) if self.offsets else self.lora_a

    def up(self) -> mx.array:
        """B (…, r, out), or [B₀ + ΔB; ΔB] (…, 2r, out), which is AB − A₀B₀ in one product."""
        if not self.offsets:
            return self.lora_b
        return mx.concatenate([self.lora_b0 + self.lora_b, self.lora_b], axis=-2)

    def enter(self, x: mx.array) -> mx.array:
        """x A (…, r), with dropout on x in training."""
        return self.dropout(x) @ self.down().astype(x.dtype)

    def leave(self, low: mx.array) -> mx.array:
        """s · (x A) B (…, out)."""
        return self.scale * (low @ self.up().astype(low.dtype))

    def delta(self) -> mx.array:
        """s (A B)ᵀ (…, out, in)."""
        return self.scale * mx.swapaxes(self.down() @ self.up(), -1, -2)


class HybridLinear(nn.Module):
    """A frozen linear layer with a rotation, a low-rank update, or both; each is None where the plan has none. A fresh
    layer equals its base: to the bit for butterfly and low rank, within 1e-6·max|y| for reflections."""

    def __init__(self, linear: nn.Module, plan: LayerPlan, key: mx.array):
        super().__init__()
        self.linear, self.plan = linear, plan
        d_in, d_out = linear_shape(linear)
        rotation_key, low_rank_key = mx.random.split(key)
        self.rotation: Rotation | None = None
        if isinstance(plan.rotation, HouseholderConfig):
            self.rotation = Householder(paired_reflections(d_in, plan.rotation.reflections, rotation_key))
        elif plan.rotation:
            self.rotation = Butterfly(d_in, plan.rotation.block_size, plan.rotation.factors)
        stack = tuple(linear.weight.shape[:-2])  # (E,) for experts
        self.low_rank = plan.low_rank and LowRank(d_in, d_out, plan.low_rank, low_rank_key, stack)
        self.train_only_leaves()

    @classmethod
    def from_base(
        cls,
        linear: nn.Module,
        *,
        rotation: RotationConfig | dict | None = USUAL_ROTATION,
        low_rank: LowRankConfig | dict | None = USUAL_LOW_RANK,
        seed: int = 0,
    ) -> "HybridLinear":
        """Put a hybrid adapter on one `nn.Linear` or `nn.QuantizedLinear`.

            y = (x R) Wᵀ + s · x A B + bias       x (…, in);  W (out, in);  R (in, in);  A (in, r);  B (r, out)

        R is k Householder reflections (HRA, arXiv 2405.17484) or m butterfly factors (BOFT, arXiv 2311.06243); s is
        α/√r (rsLoRA, arXiv 2312.03732). The base is frozen and used as it is, packed or not; the branches are float32.

            layer = HybridLinear.from_base(linear, rotation={"kind": "butterfly", "block_size": 8}, low_rank=None)
            layer(x), layer.rotation.defect(), layer.fuse()

        `rotation` and `low_rank` are settings as under `adapter`, or None for no such branch; by default those of
        `hybrid`. Raises ConfigError for settings that do not fit the layer, and for a `linear` that is none.
        """
        if not isinstance(linear, nn.Linear | nn.QuantizedLinear):
            raise ConfigError(f"from_base: {type(linear).__name__} is no linear layer.")
        given = {"rotation": to_tree(rotation), "low_rank": to_tree(low_rank)}
        config = build(AdapterConfig, given, "from_base", "")
        if config.full or (config.low_rank and config.low_rank.magnitude):
            raise ConfigError("from_base: needs a rotation or a low-rank branch, without magnitudes (DoRA).")
        plan = layer_plan(config, linear_shape(linear)[0])
        plan.check_fit("the layer", *linear_shape(linear))
        return cls(linear, plan, mx.random.key(seed))

    def train_only_leaves(self) -> None:
        self.freeze()
        self.unfreeze(keys=list(TRAINED_LEAVES))

    def __call__(self, x: mx.array) -> mx.array:
        rotation, low_rank = self.rotation, self.low_rank
        # x R and x A: of reflections one product with [U, A]
        if rotation and low_rank and not low_rank.dropout.acts:
            rotated, low = rotation.rotate_beside(x, low_rank.down().astype(x.dtype))
        else:
            rotated, low = rotation.rotate(x) if rotation else x, low_rank and low_rank.enter(x)
        y = frozen_matmul(rotated, self.linear)
        y = y if low is None else y + low_rank.leave(low).astype(y.dtype)
        return y + self.linear.bias.astype(y.dtype) if "bias" in self.linear else y

    def leaves(self) -> dict[str, mx.array]:
        """Every tensor of the adapter, trained or not, by the name that it is saved under."""
        return {leaf: owner[leaf] for leaf, owner in self._owners().items()}

    def put_leaves(self, values: dict[str, mx.array]) -> None:
        """Replace tensors by the names of `leaves`. Raises KeyError for another name."""
        owners = self._owners()
        for leaf, value in values.items():
            owners[leaf][leaf] = value

    def _owners(self) -> dict[str, nn.Module]:
        modules = [module for module in (self.rotation, self.low_rank, self) if module is not None]
        return {leaf: m for m in modules for leaf in (*TRAINED_LEAVES, *STATE_LEAVES) if leaf in m}

    def merged_weight(self) -> mx.array:
        """W' = W Rᵀ + s (A B − A₀ B₀)ᵀ (…, out, in) in float32, of the dequantised weight."""
        weight = dense_weight(self.linear, mx.float32).astype(mx.float32)
        if self.rotation is not None:
            weight = self.rotation.merge(weight)
        return weight if self.low_rank is None else weight + self.low_rank.delta()

    def fuse(self) -> nn.Linear:
        """The layer as one dense linear layer: a small update would vanish in the grid of a packed weight."""
        fused = nn.Linear(*linear_shape(self.linear), bias="bias" in self.linear)
        fused.weight = self.merged_weight().astype(self.weight_dtype())
        if "bias" in self.linear:
            fused.bias = self.linear.bias
        return fused

    def weight_dtype(self) -> mx.Dtype:
        """The type of the base's weights once unpacked."""
        dtype = getattr(self.linear, "scales", self.linear.weight).dtype
        return dtype if mx.issubdtype(dtype, mx.floating) else mx.float32


class HybridExperts(HybridLinear):
    """y_e = (x R) W_eᵀ + s · x (A_e B_e − A₀_e B₀_e) + bias_e for the experts e of a mixture that `indices` name. They
    are stacked, (E, out, in): one rotation for all, A (E, in, r) and B (E, r, out). The router is no part of it."""

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x (…, n, in) and `indices` (…), as `SwitchLinear` takes them, to (…, n, out)."""
        rotated = x if self.rotation is None else self.rotation.rotate(x)
        y, low_rank = self.linear(rotated, indices, sorted_indices), self.low_rank
        if low_rank is None:
            return y
        low = low_rank.dropout(x)
        for side in (low_rank.down(), low_rank.up()):
            low = mx.gather_mm(low, side.astype(x.dtype), rhs_indices=indices, sorted_indices=sorted_indices)
        return y + (low_rank.scale * low).astype(y.dtype)


class DoraLinear(HybridLinear):
    """y = (x Wᵀ + s · x A B) · m / ‖W + s (A B)ᵀ‖ + bias, the norm over each row and without a gradient: DoRA (Liu et
    al. 2024, arXiv 2402.09353), a baseline. m (out,) starts at W's row norms, so a fresh layer is its base up to the
    rounding of the quotient. The norm needs no dense weight: ‖w + Δ‖² = ‖w‖² + 2 w·Δ + ‖Δ‖², where w·Δ comes from W A,
    r rows through the packed weight."""

    def __init__(self, linear: nn.Module, plan: LayerPlan, key: mx.array):
        super().__init__(linear, plan, key)
        self._squares = mx.sum(mx.square(dense_weight(linear, mx.float32).astype(mx.float32)), axis=1)
        self.m = mx.sqrt(self._squares)
        self.train_only_leaves()

    def __call__(self, x: mx.array) -> mx.array:
        y = frozen_matmul(x, self.linear)
        y = y + self.low_rank.leave(self.low_rank.enter(x)).astype(y.dtype)
        y = y * (self.m / self.row_norms()).astype(y.dtype)
        return y + self.linear.bias if "bias" in self.linear else y

    def row_norms(self) -> mx.array:
        """‖W + s (A B)ᵀ‖ of each row, (out,), in float32 and without a gradient."""
        a, b = mx.stop_gradient(self.low_rank.lora_a), mx.stop_gradient(self.low_rank.lora_b)
        s = self.low_rank.scale
        projected = frozen_matmul(a.T.astype(self.weight_dtype()), self.linear).astype(mx.float32)
        cross = mx.sum(b * projected, axis=0)
        square = mx.sum(b * ((a.T @ a) @ b), axis=0)
        return mx.sqrt(mx.maximum(self._squares + 2 * s * cross + s * s * square, 1e-12))

    def merged_weight(self) -> mx.array:
        """W' = (W + s (A B)ᵀ) · m / ‖W + s (A B)ᵀ‖ by rows, (out, in) in float32."""
        weight = super().merged_weight()
        return weight * (self.m / mx.linalg.norm(weight, axis=1))[:, None]


def layer_class(module: nn.Module, plan: LayerPlan) -> type[HybridLinear]:
    if is_experts(module):
        return HybridExperts
    return DoraLinear if plan.low_rank and plan.low_rank.magnitude else HybridLinear
