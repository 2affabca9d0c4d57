"""Where a training step on a real model spends its time, by what is left out, beside what its products alone take.

    python tools/profile_step.py MODEL --from BENCHMARKS [--repeats 3]

One batch of eight records of SIB-200, one of each of eight languages, `lora` on every projection, float32; processor
time of one thread, medians. The products' floor is two products a weight forward and back to the inputs, at the rate
of a measured product of the MLP's shape.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import bench
import bench_train
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.config import TrainConfig, build_config
from mlx_hybrid.models.activations import silu
from mlx_hybrid.models.head import split_head
from mlx_hybrid.training.batches import Hold, make_batch, weigh_prompts
from mlx_hybrid.training.loss import arrays, loss_in_chunks
from mlx_hybrid.training.optimizer import BranchOptimizer, make_step

FIRST = (
    "layers.0.self_attn.q_proj",
)  # gradients then run through the whole body, and one layer has an adapter


def prepared(name: str, targets: tuple[str, ...] = ("dense",)) -> tuple[nn.Module, BranchOptimizer]:
    adapter = build_config({"method": "lora", "adapter": {"targets": targets}}, "profile").adapter
    model = bench_train.fresh_model(name, packed=False)
    attach(model, adapter, seed=0)
    return model.train(), BranchOptimizer(
        model, TrainConfig(learning_rate=1e-4, rates="leaf"), adapter.mixing
    )


def median(work: Callable[[], object], repeats: int) -> float:
    work()
    return statistics.median(bench.seconds(work) for _ in range(repeats))


def step_seconds(name: str, records: list, repeats: int, **how: object) -> float:
    to_base = how.pop("to_base", False)
    model, optimizer = prepared(name, **how)
    step = make_step(model, optimizer, compiled=False, to_base=to_base)
    return median(lambda: step([make_batch(records, exact=True)]), repeats)


def head_seconds(name: str, records: list, repeats: int) -> float:
    """The loss and its gradient from hidden states on."""
    body, head = split_head(bench_train.fresh_model(name, packed=False))
    tokens, positions, targets, weights = map(mx.array, arrays(make_batch(records, exact=True)))
    hidden = mx.random.normal((len(positions), body(tokens[:1, :2]).shape[-1]))
    loss = lambda h: loss_in_chunks(head.with_leaves, h, targets, weights, 64, {})[0]  # noqa: E731
    return median(lambda: mx.eval(mx.value_and_grad(loss)(hidden)), repeats)


def update_seconds(name: str, repeats: int) -> float:
    model, optimizer = prepared(name)
    zeros = {path: mx.zeros_like(leaf) for path, leaf in tree_flatten(model.trainable_parameters())}
    tree = nn.utils.tree_unflatten(list(zeros.items()))

    def update() -> None:
        mx.eval(optimizer.step(model, tree, mx.array(1.0)), model.state, optimizer.state)

    return median(update, repeats)


def floor(name: str, rows: int) -> tuple[float, float, float]:
    """GFLOP of the body's products, seconds at the measured rate, and seconds of the activations."""
    model = bench_train.fresh_model(name, packed=False)
    shapes = [linear_shape(part) for _, part in model.named_modules() if isinstance(part, nn.Linear)]
    inner, outer = max(shapes, key=lambda shape: shape[1])
    x, weight = mx.random.normal((rows, inner)), mx.random.normal((outer, inner))
    mx.eval(x, weight)
    rate = 2 * rows * inner * outer / median(lambda: mx.eval(x @ weight.T), 9)
    flops = sum(4 * rows * a * b for a, b in shapes)
    wide = mx.random.normal((rows, outer))
    both = mx.grad(lambda x: mx.sum(silu(x) * x))
    return flops / 1e9, flops / rate, len(model.layers) * median(lambda: mx.eval(both(wide)), 9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument(
        "--from", dest="benchmarks", type=Path, default=os.environ.get("MLX_HYBRID_DATA"), help="benchmarks"
    )
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    mx.disable_compile()
    name, repeats = str(Path(asked.model).expanduser()), asked.repeats
    records = bench_train.records_of("sib200", asked.benchmarks, name, steps=1).examples
    batch = make_batch(records, exact=True)
    held = weigh_prompts(records, Hold(1.0, 0.08, True), (0,))
    whole = step_seconds(name, held, repeats, to_base=True)
    alone = step_seconds(name, records, repeats)
    bare = step_seconds(name, records, repeats, targets=FIRST)
    head, update = head_seconds(name, records, repeats), update_seconds(name, repeats)
    gflop, least, bends = floor(name, batch.tokens.size)
    print(f"{Path(name).name}: {batch.tokens.shape} tokens, {batch.answers} targets, {whole:.2f} s a step")
    bench.head("part", "s", "share")
    parts = {"prompts held to the base": whole - alone, "head, loss and gradient": head, "optimiser": update}
    parts |= {"adapters": alone - bare - update, "body of the base, forward and back": bare - head}
    parts |= {f"of it products, {gflop:.0f} GFLOP": least, "of it activations": bends}
    for part, seconds in parts.items():
        bench.row(part, f"{seconds:.2f}", f"{seconds / whole:.0%}")


if __name__ == "__main__":
    main()
