"""AdamW with bias correction for each branch, clipping, schedules, and mixed steps."""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.adapters.layer import LOW_RANK_LEAVES, ORTHOGONAL_LEAVES
from mlx_hybrid.adapters.mixing import shares, update_norms


def schedule(kind: str, steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the peak rate at step 0, 1, …: a linear warm-up, then a cosine, a line or none."""
    rising = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(1, steps - rising)
        return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[kind]

    return factor


def leaf_name(path: str) -> str:
    return path.rsplit(".", 1)[-1]


class BranchOptimizer:
    """One optimiser step over all branches.

    The orthogonal leaves and the rest have an AdamW each (own rate; rotations are never decayed). With mixing, a
    layer's displacement (new − old, after AdamW) is multiplied by 2λ on its orthogonal and 2(1 − λ) on its low-rank
    leaves: scaling gradients under Adam would do nothing.
    """

    def __init__(
        self, model: nn.Module, *, learning_rate: float, orthogonal_learning_rate: float, weight_decay: float,
        clip: float, mixing: str,
    ):  # fmt: skip
        self.peaks = {"rest": learning_rate, "orthogonal": orthogonal_learning_rate}
        self.clip, self.mixing = clip, mixing
        self.groups = {
            "rest": AdamW(learning_rate, weight_decay=weight_decay, bias_correction=True),
            "orthogonal": AdamW(orthogonal_learning_rate, weight_decay=0.0, bias_correction=True),
        }
        parameters = self.split(model.trainable_parameters())
        for name, group in self.groups.items():
            if parameters[name]:
                group.init(tree_unflatten(list(parameters[name].items())))
        self.mixed = [
            n for n, m in hybrid_layers(model).items() if m.plan.rank and m.plan.orthogonal != "none"
        ]
        self.mix = {"norms": mx.zeros((2, max(1, len(self.mixed)))), "started": mx.array(False)}

    @staticmethod
    def split(tree: dict) -> dict[str, dict[str, mx.array]]:
        """Leaves by optimiser group, flat."""
        flat = tree_flatten(tree)
        return {
            "orthogonal": {k: v for k, v in flat if leaf_name(k) in ORTHOGONAL_LEAVES},
            "rest": {k: v for k, v in flat if leaf_name(k) not in ORTHOGONAL_LEAVES},
        }

    @property
    def state(self) -> list:
        """Everything a step reads and changes, for `mx.compile` and for checkpoints."""
        return [self.groups["rest"].state, self.groups["orthogonal"].state, self.mix]

    def set_rate(self, factor: float) -> None:
        for name, group in self.groups.items():
            group.learning_rate = mx.array(self.peaks[name] * factor)

    def step(self, model: nn.Module, gradients: dict) -> tuple[mx.array, mx.array]:
        """Change the model's trainable leaves; the gradient's norm and λ (layers,) are returned."""
        lam = self.update_mixing(gradients)
        gradients, norm = clip_norm(gradients, self.clip)
        old, new_gradients = self.split(model.trainable_parameters()), self.split(gradients)
        factors = self.leaf_factors(lam)
        for name, group in self.groups.items():
            if not old[name]:
                continue
            tree = group.apply_gradients(
                tree_unflatten(list(new_gradients[name].items())), tree_unflatten(list(old[name].items()))
            )
            moved = dict(tree_flatten(tree))
            for key, factor in factors.items():
                if key in moved:
                    moved[key] = old[name][key] + factor * (moved[key] - old[name][key])
            model.update(tree_unflatten(list(moved.items())))
        return norm, lam

    def update_mixing(self, gradients: dict) -> mx.array:
        """λ (layers,) of this step from token-averaged gradients, before clipping."""
        if not self.mixed or self.mixing != "gradient":
            return mx.full((max(1, len(self.mixed)),), 0.5)
        flat = dict(tree_flatten(gradients))
        norms = mx.stack(
            [branch_norms(flat, self.mixed, leaves) for leaves in (ORTHOGONAL_LEAVES, LOW_RANK_LEAVES)]
        )
        self.mix["norms"] = update_norms(self.mix["norms"], norms, self.mix["started"])
        self.mix["started"] = mx.array(True)
        return shares(self.mix["norms"])

    def leaf_factors(self, lam: mx.array) -> dict[str, mx.array]:
        if self.mixing != "gradient":
            return {}
        factors = {}
        for index, name in enumerate(self.mixed):
            factors |= {f"{name}.{leaf}": 2 * lam[index] for leaf in ORTHOGONAL_LEAVES}
            factors |= {f"{name}.{leaf}": 2 * (1 - lam[index]) for leaf in LOW_RANK_LEAVES}
        return factors


def branch_norms(flat: dict[str, mx.array], layers: list[str], leaves: tuple[str, ...]) -> mx.array:
    """Frobenius norm of each layer's gradient over some of its leaves, (layers,)."""
    return mx.stack(
        [
            mx.sqrt(sum(mx.sum(mx.square(flat[f"{n}.{leaf}"])) for leaf in leaves if f"{n}.{leaf}" in flat))
            for n in layers
        ]
    )


def clip_norm(gradients: dict, limit: float) -> tuple[dict, mx.array]:
    """Gradients scaled so that their norm is at most `limit` (0: left alone), and the norm before."""
    norm = mx.sqrt(sum(mx.sum(mx.square(g.astype(mx.float32))) for _, g in tree_flatten(gradients)))
    if not limit:
        return gradients, norm
    scale = mx.minimum(1.0, limit / (norm + 1e-12))
    return tree_map(lambda g: (g * scale).astype(g.dtype), gradients), norm
