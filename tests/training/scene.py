"""What the tests of the loop train: a tiny model, records that it can learn by heart, and a run of some steps."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from toys import tiny_llama

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.adapters.start import apply_start, sketch_gradients
from mlx_hybrid.adapters.store import adapter_state
from mlx_hybrid.config import PRESETS, TrainConfig, build_config
from mlx_hybrid.records.examples import Example
from mlx_hybrid.training.batches import make_batch
from mlx_hybrid.training.checkpoint import Progress
from mlx_hybrid.training.loop import Training
from mlx_hybrid.training.loss import arrays, make_loss
from mlx_hybrid.training.memory.limits import checkpoint_layers
from mlx_hybrid.training.optimizer import BranchOptimizer

METHODS = list(PRESETS)
SETTINGS = TrainConfig(
    steps=6, batch_size=3, learning_rate=1e-2, orthogonal_learning_rate=1e-2, report_every=2, validate_every=4,
    save_every=100, rates="leaf",
)  # fmt: skip


def examples(count: int = 11, longest: int = 30, seed: int = 0) -> list[Example]:
    """Random tokens of uneven length; the last two thirds are trained."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, longest, count).tolist()
    return [
        Example(
            rng.integers(3, 250, n).tolist(),
            [i >= n // 3 for i in range(n)],
            f"data.jsonl:{line}",
            "sw" if line % 4 == 0 else "en",
            int(n),
        )
        for line, n in enumerate(sizes, 1)
    ]


def material(
    method: str = "hybrid", settings: TrainConfig = SETTINGS, *, mode: str = "", seed: int = 0, **changes
):
    """(model, optimizer) with a fresh adapter, started as its config says."""
    model = use_fast_products(tiny_llama(mode, num_hidden_layers=1))
    config = build_config({"method": method, "adapter": changes}, "test").adapter
    attach(model, config, seed=seed)
    if config.from_gradient:
        start(model, config.low_rank.rank, seed)
    if settings.grad_checkpoint:
        checkpoint_layers(model)
    return model, BranchOptimizer(model, settings, config.mixing)


class Listening(BranchOptimizer):
    """Keeps the gradient it was given, and moves nothing."""

    def step(self, model, gradients, count):
        self.gradients = {name: gradient / count for name, gradient in tree_flatten(gradients)}
        return mx.array(1.0), mx.array([0.5])


def listening(model) -> Listening:
    return Listening(model, SETTINGS, "off")


def start(model, rank: int, seed: int) -> None:
    batch = arrays(make_batch(examples(4)))
    *_, factors = sketch_gradients(model, make_loss, [batch], columns=2 * rank, passes=2, seed=seed)
    apply_start(model, factors)


def run(
    model,
    optimizer,
    settings: TrainConfig = SETTINGS,
    *,
    seed: int = 0,
    progress=None,
    stop=lambda: False,
    **kw,
):
    """All events of a run; `held_back` and `records` may be given."""
    records = kw.get("records") or examples()
    held_back = kw.get("held_back", examples(4, seed=1))
    how = {"stop": stop, "temperature": kw.get("temperature", 1.0)}
    return list(Training(model, optimizer, records, held_back, settings, seed, progress or Progress(), **how))


def trained(
    method: str = "hybrid", settings: TrainConfig = SETTINGS, *, seed: int = 0, mode: str = "", **changes
):
    """The adapter after a whole run."""
    model, optimizer = material(method, settings, mode=mode, seed=seed, **changes)
    run(model, optimizer, settings, seed=seed)
    return state(model)


def state(model) -> dict[str, mx.array]:
    return {name: value + 0 for name, value in adapter_state(model).items()}


def everything(model, optimizer) -> dict[str, mx.array]:
    return state(model) | {f"optimizer.{n}": v + 0 for n, v in tree_flatten(optimizer.state)}


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    """To the bit."""
    return set(a) == set(b) and all(mx.array_equal(a[name], b[name]).item() for name in a)


def changed(settings: TrainConfig = SETTINGS, **values) -> TrainConfig:
    return replace(settings, **values)
