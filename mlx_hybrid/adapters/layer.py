"""HybridLinear: a frozen linear layer on a rotated input, plus a low-rank update.

    y = (x R) Wᵀ + s · x (A B − A₀ B₀) + bias      R orthogonal (in, in);  A (in, r), B (r, out)

There is one product with the base weight, on a rotated input, so packed weights are never touched. Merged, the layer
is W' = W Rᵀ + s (A B − A₀ B₀)ᵀ; A₀ and B₀ are zero but for the LoRA-GA start.
"""

from dataclasses import dataclass
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.butterfly import (
    LARGEST_SKEW,
    cayley,
    compose_butterfly,
    defect,
    dense_block_size,
    householder_core,
    householder_defect,
    householder_matrix,
    nearest_rotation,
    paired_reflections,
    rotate_blocks,
    skew,
    skew_norm,
    triangle_size,
)
from mlx_hybrid.adapters.dropout import Dropout
from mlx_hybrid.adapters.frozen import dense_weight, frozen_matmul
from mlx_hybrid.adapters.low_rank import low_rank_scale, random_down_projection

ORTHOGONAL_LEAVES = ("house_u", "oft_q")
LOW_RANK_LEAVES = ("lora_a", "lora_b")
MAGNITUDE_LEAVES = ("m",)
STATE_LEAVES = ("oft_base", "lora_a0", "lora_b0")


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one layer carries."""

    orthogonal: Literal["none", "householder", "butterfly"]
    reflections: int = 0
    block_size: int = 0
    factors: int = 0
    rank: int = 0
    alpha: float = 16.0
    rslora: bool = True
    dropout: float = 0.0
    start: Literal["zeros", "gradient", "lora-ga"] = "zeros"
    """Where the low-rank leaves start."""
    reflection_start: Literal["random", "gradient"] = "random"
    """Where the reflections start."""
    offsets: bool = False
    """The low-rank leaves are offsets from frozen A₀, B₀ (LoRA-GA)."""
    magnitude: bool = False
    """Each output's magnitude is trained apart (DoRA)."""

    @property
    def scale(self) -> float:
        """s of the low-rank branch."""
        return low_rank_scale(self.alpha, self.rank, self.rslora)

    @property
    def turned_by_gradient(self) -> bool:
        """Whether the reflections start along the gradient."""
        return self.orthogonal == "householder" and self.reflection_start == "gradient"

    @property
    def needs_gradient(self) -> bool:
        """Whether either branch starts from the gradient (gradient_start.py)."""
        return self.turned_by_gradient or bool(self.rank and self.start != "zeros")

    def parameter_count(self, d_in: int, d_out: int, experts: int = 1) -> int:
        """Trainable entries: k·in, or m·in·(b−1)/2, plus r·(in + out) for each expert, and out with magnitudes."""
        rotation = {
            "none": 0,
            "householder": self.reflections * d_in,
            "butterfly": self.factors * d_in * (self.block_size - 1) // 2,
        }[self.orthogonal]
        return rotation + experts * self.rank * (d_in + d_out) + (d_out if self.magnitude else 0)


class HybridLinear(nn.Module):
    """A frozen linear layer with an orthogonal branch, a low-rank branch, or both.

    `plan.orthogonal`: `householder` is k reflections in compact WY form (HRA, arXiv 2405.17484); `butterfly` is m
    factors of Cayley blocks (BOFT, arXiv 2311.06243). A fresh layer equals its base: to the bit for butterfly and low
    rank, within 1e-6·max|y| for householder.
    """

    def __init__(self, linear: nn.Module, plan: LayerPlan, key: mx.array):
        super().__init__()
        self.linear = linear
        self._plan = plan
        self._settled = None
        self._started = not plan.needs_gradient
        self.dropout = Dropout(plan.dropout)
        d_in, d_out = linear_shape(linear)
        stack = linear.weight.shape[:-2]  # (E,) for experts
        house_key, lora_key = mx.random.split(key)
        if plan.orthogonal == "householder":
            self.house_u = paired_reflections(d_in, plan.reflections, house_key)
        elif plan.orthogonal == "butterfly":
            blocks = d_in // plan.block_size
            self.oft_q = mx.zeros((plan.factors, blocks, triangle_size(plan.block_size)))
            size = plan.block_size
            self.oft_base = mx.broadcast_to(mx.eye(size), (plan.factors, blocks, size, size)) + 0
        if plan.rank:
            self.lora_b = mx.zeros((*stack, plan.rank, d_out))
            if plan.offsets:
                self.lora_a = mx.zeros((*stack, d_in, plan.rank))
                self.lora_a0, self.lora_b0 = self.lora_a + 0, self.lora_b + 0
            else:
                self.lora_a = random_down_projection(d_in, plan.rank, lora_key, stack)
        self.train_only_leaves()

    def train_only_leaves(self) -> None:
        """Freeze everything but the branches' trainable leaves."""
        self.freeze()
        leaves = (*ORTHOGONAL_LEAVES, *LOW_RANK_LEAVES, *MAGNITUDE_LEAVES)
        self.unfreeze(keys=[leaf for leaf in leaves if leaf in self], recurse=False)

    @property
    def started(self) -> bool:
        """Whether the branches are where their plan starts them; a start from the gradient is applied, or loaded."""
        return self._started

    def mark_started(self) -> None:
        self._started = True

    @property
    def plan(self) -> LayerPlan:
        return self._plan

    def __call__(self, x: mx.array) -> mx.array:
        plan = self._plan
        if plan.orthogonal == "householder":
            rotated, low = self._reflect(x)
        else:
            rotated = self._rotate(x)
            low = self.dropout(x) @ self.down().astype(x.dtype) if plan.rank else None
        y = frozen_matmul(rotated, self.linear)
        if low is not None:
            y = y + (plan.scale * (low @ self.up().astype(x.dtype))).astype(y.dtype)
        return y + self.linear.bias if "bias" in self.linear else y

    def down(self) -> mx.array:
        """A of the low-rank branch s · x A B: (in, r), or [ΔA, A₀] (in, 2r) where the leaves are offsets."""
        return mx.concatenate([self.lora_a, self.lora_a0], axis=-1) if self._plan.offsets else self.lora_a

    def up(self) -> mx.array:
        """B of the low-rank branch: (r, out), or [B₀ + ΔB; ΔB] (2r, out), which is AB − A₀B₀ in one product."""
        if not self._plan.offsets:
            return self.lora_b
        return mx.concatenate([self.lora_b0 + self.lora_b, self.lora_b], axis=-2)

    def _reflect(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        """x R = x − (x U T) Uᵀ, and x A: one product with [U, A] where dropout leaves the input alone."""
        u, k = self.house_u, self._plan.reflections
        core = householder_core(u) if self._settled is None else self._settled
        u, core = u.astype(x.dtype), core.astype(x.dtype)
        low = None
        if not self._plan.rank:
            coordinates = x @ u
        elif self._plan.dropout and self.training:
            coordinates, low = x @ u, self.dropout(x) @ self.down().astype(x.dtype)
        else:
            both = x @ mx.concatenate([u, self.down().astype(x.dtype)], axis=1)
            coordinates, low = both[..., :k], both[..., k:]
        return reflect(x, coordinates, core, u), low

    def _rotate(self, x: mx.array) -> mx.array:
        if self._plan.orthogonal == "none":
            return x
        dense = self.dense_blocks() if self._settled is None else self._settled
        return rotate_blocks(x, dense.astype(x.dtype))

    def factor_rotations(self) -> mx.array:
        """The butterfly's factors (m, in/b, b, b): Cayley(Q) · base."""
        return cayley(skew(self.oft_q, self._plan.block_size)) @ self.oft_base

    def dense_blocks(self) -> mx.array:
        """R of a butterfly as dense blocks (in/B, B, B)."""
        return mx.checkpoint(self._compose)(
            self.oft_q, self.oft_base
        )  # forming them anew costs less than keeping

    def _compose(self, q: mx.array, base: mx.array) -> mx.array:
        return compose_butterfly(cayley(skew(q, self._plan.block_size)) @ base)

    def rotation(self) -> mx.array:
        """R (in, in), dense; the identity without an orthogonal branch. To look at: merging is thin."""
        d_in, _ = linear_shape(self.linear)
        if self._plan.orthogonal == "householder":
            return householder_matrix(self.house_u)
        if self._plan.orthogonal == "butterfly":
            return rotate_blocks(mx.eye(d_in), self.dense_blocks())
        return mx.eye(d_in)

    def rotation_defect(self) -> float:
        """max |R Rᵀ − I|, over the blocks of a butterfly or by rows for reflections; nothing (in, in) is formed."""
        if self._plan.orthogonal == "butterfly":
            return defect(self.dense_blocks())
        if self._plan.orthogonal == "householder":
            return householder_defect(self.house_u)
        return 0.0

    def merged_weight(self) -> mx.array:
        """W' = W Rᵀ + s (A B − A₀ B₀)ᵀ (…, out, in) in float32, from the weight as it is, dequantised where packed."""
        weight = dense_weight(self.linear, mx.float32).astype(mx.float32)
        if self._plan.orthogonal == "householder":
            u = self.house_u
            weight = weight - ((weight @ u) @ householder_core(u).T) @ u.T
        elif self._plan.orthogonal == "butterfly":
            weight = rotate_blocks(weight, mx.swapaxes(self.dense_blocks(), -1, -2))
        if self._plan.rank:
            weight = weight + self._plan.scale * mx.swapaxes(self.down() @ self.up(), -1, -2)
        return weight

    def fuse(self, dequantize: bool = True) -> nn.Module:
        """The layer as one linear layer; dequantised, since a small update vanishes in the grid of a packed weight."""
        d_in, d_out = linear_shape(self.linear)
        fused = nn.Linear(d_in, d_out, bias="bias" in self.linear)
        fused.weight = self.merged_weight().astype(self.weight_dtype())
        if "bias" in self.linear:
            fused.bias = self.linear.bias
        if dequantize or not hasattr(self.linear, "scales"):
            return fused
        layer = self.linear
        return nn.QuantizedLinear.from_linear(fused, layer.group_size, layer.bits, mode=layer.mode)

    def weight_dtype(self) -> mx.Dtype:
        """The type of the base's weights once unpacked."""
        dtype = getattr(self.linear, "scales", self.linear.weight).dtype
        return dtype if mx.issubdtype(dtype, mx.floating) else mx.float32

    def settle(self, core: mx.array | None = None) -> None:
        """Form the rotation once, or take the core T of its reflections; to follow the leaves again, `unsettle`."""
        if core is not None:
            self._settled = core
        elif self._plan.orthogonal == "householder":
            self._settled = householder_core(self.house_u)
        elif self._plan.orthogonal == "butterfly":
            self._settled = self.dense_blocks()

    @property
    def settled(self) -> bool:
        return self._settled is not None

    def unsettle(self) -> None:
        self._settled = None

    def reach(self) -> mx.array:
        """An upper bound of the largest ‖Q‖₂ among a butterfly's blocks; 0 for other branches."""
        if self._plan.orthogonal != "butterfly":
            return mx.array(0.0)
        return skew_norm(self.oft_q)

    def refold(self, force: bool = False) -> bool:
        """Keep the rotation exact: unit reflections; a factor with ‖Q‖₂ > 0.5 moves into `oft_base`.

        R does not change, beyond one Newton–Schulz step towards orthogonality. Called between steps. Adam's moments
        stay as they are: after a fold Q restarts at 0, where its tangent space is the same up to the fold's rotation.
        """
        if self._plan.orthogonal == "householder":
            self.house_u = self.house_u / mx.linalg.norm(self.house_u, axis=0, keepdims=True)
            return False
        if self._plan.orthogonal == "none":
            return False
        if not force and self.reach().item() <= LARGEST_SKEW:
            return False
        self.oft_base = nearest_rotation(self.factor_rotations())
        self.oft_q = mx.zeros_like(self.oft_q)
        return True


def reflect(x: mx.array, coordinates: mx.array, core: mx.array, u: mx.array) -> mx.array:
    """x R = x − (x U) T Uᵀ (…, in), from x (…, in), x U (…, k), T (k, k) and U (in, k)."""
    return x - (coordinates @ core) @ u.T


def linear_shape(linear: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer, or of each of stacked experts; packed or not."""
    out, packed = linear.weight.shape[-2:]
    if hasattr(linear, "scales"):
        return packed * 32 // linear.bits, out
    return packed, out


def fits_butterfly(d_in: int, plan: LayerPlan) -> bool:
    dense = dense_block_size(plan.block_size, plan.factors) if plan.block_size else 0
    return bool(dense) and d_in % dense == 0
