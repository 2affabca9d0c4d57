"""Time one optimiser step of each method against mlx-lm's LoRA, and print the tables of docs/performance.md.

    python tools/bench_step.py                       both tables, about five minutes on two cores
    python tools/bench_step.py dense --hidden 1024   one of them, at some width
    python tools/bench_step.py --model FOLDER        on a real model, packed where it is

Methods take turns within each repeat, and every ratio is to the reference's step of the same repeat. Llama shapes,
eight layers, float32, every projection adapted, every token trained, a small vocabulary.
"""

import argparse
import statistics
from pathlib import Path

import bench
import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from mlx_hybrid.adapters.attach import attach, hybrid_layers, refold
from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.config import TrainConfig, build_config
from mlx_hybrid.training.batches import Batch
from mlx_hybrid.training.loop import steps_between_refolds
from mlx_hybrid.training.optimizer import BranchOptimizer, make_step

VOCABULARY, LENGTH, LAYERS = 1024, 128, 8
TARGETS = {"lora": 1.0, "hra": 1.1, "hybrid": 1.1, "boft": 1.3, "hybrid-boft": 1.4}
PACKED_TARGET = 1.05


class Bench:
    """One base, whose arrays all models share, and one batch."""

    def __init__(
        self, hidden: int, tokens: int, *, packed: bool = False, fast: bool = True, folder: Path | None = None
    ):
        self.config, self.packed, self.fast = bench.llama_config(hidden, LAYERS, VOCABULARY), packed, fast
        self.folder = folder
        self.tokens = bench.random_rows(VOCABULARY, tokens, LENGTH)
        mx.random.seed(0)
        self.base = None
        self.base = self.model().parameters()

    def model(self) -> nn.Module:
        if self.folder:
            model, _ = load_model(self.folder)
            model.set_dtype(mx.float32)
        else:
            model = llama.Model(llama.ModelArgs.from_dict(self.config))
        if self.packed and not self.folder:
            nn.quantize(model, 64, 4)
        if self.base is not None:
            model.update(self.base)
        mx.eval(model.parameters())
        return use_fast_products(model) if self.fast else model

    def batch(self) -> Batch:
        batch = bench.trained_batch(self.tokens)
        assert batch.tokens.shape == self.tokens[:, 1:].shape, batch.tokens.shape
        return batch

    def ours(self, method: str) -> bench.Step:
        """A whole step of this program's loop, its refolding in proportion."""
        sizes = {"rank": bench.RANK} if method == "lora" else {}
        config = build_config({"method": method, "adapter": sizes}, "bench").adapter
        model = self.model()
        attach(model, config)
        for index, layer in enumerate(hybrid_layers(model).values()):
            for leaf in ("lora_a0", "lora_b0"):  # as large as a start from the gradient makes them
                if (start := layer.leaves().get(leaf)) is not None:
                    layer.put_leaves({leaf: mx.random.normal(start.shape, key=mx.random.key(index)) / 32})
        optimizer = BranchOptimizer(model, TrainConfig(learning_rate=1e-4, rates="leaf"), config.mixing)
        step = make_step(model.train(), optimizer, compiled=False)
        batch, every, done = self.batch(), steps_between_refolds(model), 0

        def run() -> None:
            nonlocal done
            step([batch])
            done += 1
            if done % every == 0:
                refold(model)

        return run

    def mlx_lm(self) -> bench.Step:
        """A step as `mlx_lm.lora` takes it, with the same clipping-free AdamW and no compilation."""
        model = self.model()
        model.freeze()
        linear_to_lora_layers(model, len(model.layers), {"rank": bench.RANK, "scale": 4.0, "dropout": 0.0})
        optimizer = AdamW(1e-4, weight_decay=0.0, bias_correction=True)
        gradient = nn.value_and_grad(model.train(), default_loss)
        tokens = mx.array(self.tokens)
        lengths = mx.array([[1, self.tokens.shape[1]]] * len(self.tokens))

        def run() -> None:
            (loss, count), gradients = gradient(model, tokens, lengths)
            optimizer.update(model, gradients)
            mx.eval(model.state, optimizer.state, loss, count)

        return run


def peak_bytes(step: bench.Step) -> int:
    """What one step holds beyond what was there before it."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    step()
    return mx.get_peak_memory() - before


def compare(hidden: int, tokens: int, repeats: int, *, packed: bool, folder: Path | None = None) -> None:
    """Every method against mlx-lm's LoRA on the same base."""
    base, reference = Bench(hidden, tokens, packed=packed, folder=folder), "mlx-lm LoRA"
    steps = {reference: base.mlx_lm()} | {method: base.ours(method) for method in TARGETS}
    times = bench.take_turns(steps, repeats)
    weights = sum(value.nbytes for _, value in tree_flatten(base.base))
    memory = {name: weights + peak_bytes(step) for name, step in steps.items()}
    kind = folder.name if folder else f"{'4-bit' if packed else 'float32'} base, hidden {hidden}"
    print(f"\n{kind}, {tokens} tokens, {repeats} repeats:\n")
    bench.head("method", "ms a step", "ratio", "quartiles", "target", "peak memory")
    for name, found in times.items():
        target = (PACKED_TARGET if packed else TARGETS[name]) if name in TARGETS else ""
        took, share = f"{1e3 * statistics.median(found):.0f}", f"{memory[name] / memory[reference]:.2f}"
        bench.row(name, took, *bench.ratios(found, times[reference]), target, share)
    if packed and hidden <= 512 and not folder:
        slow = Bench(hidden, tokens, packed=True, fast=False).mlx_lm()
        gain = min(bench.seconds(slow) for _ in range(2)) / statistics.median(times[reference])
        print(f"\nmlx-lm LoRA with MLX's own quantised product on the CPU: {gain:.1f} times the step above.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help="dense, packed  [default: both]")
    parser.add_argument("--model", type=Path, help="a folder, in place of small Llamas")
    parser.add_argument("--hidden", type=int, nargs="*", default=[512, 1024])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    found = "found" if bench.OPENBLAS else "not found"
    print(f"MLX {mx.__version__} on {mx.default_device()}, OpenBLAS {found}.")
    if options.model:
        compare(0, options.tokens, options.repeats, packed=False, folder=options.model.expanduser())
    for hidden in () if options.model else options.hidden:
        for name in options.tables or ("dense", "packed"):
            compare(hidden, options.tokens, options.repeats, packed=name == "packed")


if __name__ == "__main__":
    main()
