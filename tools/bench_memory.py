"""Estimated beside measured peak memory over tiny random models; a Markdown table, and exit 1 beyond the tolerance.

python tools/bench_memory.py [--limit 0.15] [--only METHOD]

Widths, depths, vocabularies, batches, lengths, methods, packed and dense bases, with and without recomputed
activations. Every peak is that of the gradient start and two steps, in a process of its own.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import bench
import mlx.core as mx
import numpy as np
from mlx_lm.models import llama
from mlx_lm.utils import quantize_model, save_model

from mlx_hybrid.adapters.frozen import on_cpu, unpack
from mlx_hybrid.config import Config, build_config
from mlx_hybrid.models.base import load_base
from mlx_hybrid.records.examples import Example, Tokenised
from mlx_hybrid.training.batches import make_batch
from mlx_hybrid.training.memory.estimate import Load, estimate
from mlx_hybrid.training.memory.limits import set_limits
from mlx_hybrid.training.memory.shape import model_shape
from mlx_hybrid.training.optimizer import make_step
from mlx_hybrid.training.setup import Setup, attach_adapter, start_from_records

STEPS = 2  # the second has moments to update


@dataclass(frozen=True)
class Case:
    """One model and one batch."""

    method: str
    width: int
    layers: int
    vocabulary: int
    records: int
    tokens: int
    bits: int = 0
    recompute: bool = False
    heads: int = 4
    pairs: int = 2
    mlp: int = 3
    learnt: int = 2  # one token in so many is a target


CASES = [
    Case("lora", 128, 4, 2000, 4, 128),
    Case("lora", 256, 2, 20000, 4, 256, heads=8, pairs=1),
    Case("lora", 256, 6, 8000, 2, 192, bits=4),
    Case("lora", 128, 8, 500, 2, 256, recompute=True, heads=2),
    Case("hybrid", 128, 6, 2000, 8, 128),
    Case("hybrid", 256, 4, 8000, 2, 256, bits=4),
    Case("hybrid", 512, 4, 8000, 2, 192, heads=8, mlp=4),
    Case("hybrid", 256, 8, 2000, 4, 128, recompute=True),
    Case("hybrid", 256, 4, 20000, 1, 384, bits=4, recompute=True, heads=8),
    Case("hybrid-unitary", 256, 3, 2000, 4, 192),
    Case("hra", 256, 4, 2000, 2, 256, mlp=2),
    Case("lora-ga", 256, 4, 2000, 4, 128, pairs=4),
    Case("dora", 256, 3, 2000, 2, 192),
    Case("boft", 256, 4, 2000, 2, 192),
    Case("hybrid-boft", 256, 4, 2000, 4, 128, bits=4),
    Case("lora", 128, 2, 151936, 2, 256, learnt=1),
    Case("hybrid", 128, 2, 48000, 4, 256, bits=4, learnt=1),
    Case("full", 256, 4, 8000, 2, 128),
    Case("full", 128, 4, 2000, 4, 192, recompute=True),
    Case("full", 128, 2, 48000, 4, 256, learnt=1),
]


def write_base(case: Case, folder: Path) -> None:
    """A random Llama with the bundled tokenizer's files, which nothing here reads."""
    heads = {"num_attention_heads": case.heads, "num_key_value_heads": case.pairs}
    sizes = {"intermediate_size": case.mlp * case.width, "head_dim": case.width // case.heads}
    config = bench.llama_config(case.width, case.layers, case.vocabulary, **heads, **sizes)
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    if case.bits:
        model, config = quantize_model(model, config, 64, case.bits)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    bench.add_tokenizer(folder)


def measure(case: Case) -> tuple[int, int]:
    """(estimated, measured) peak bytes."""
    with tempfile.TemporaryDirectory() as name:
        write_base(case, Path(name))
        mx.clear_cache()
        train = {"batch_size": case.records, "grad_checkpoint": case.recompute}
        config = build_config({"model": name, "method": case.method, "train": train}, "bench_memory")
        load = Load(case.records, case.tokens, case.records * case.tokens // case.learnt)
        return estimate(model_shape(config), load, config).peak, bench.apart(measured_peak, config, load)


def random_examples(load: Load, vocabulary: int) -> list[Example]:
    """A record of each row's size; its last tokens are trained."""
    rng = np.random.default_rng(0)
    length, learnt = load.tokens + 1, -(-load.targets // load.rows)
    trained = [i >= length - learnt for i in range(length)]
    tokens = rng.integers(0, vocabulary, (load.rows, length)).tolist()
    return [Example(own, trained, f"r:{row}", "", length) for row, own in enumerate(tokens)]


def measured_peak(config: Config, load: Load) -> int:
    """Bytes at the peak of the gradient start and two steps, begun with the base in memory."""
    base = load_base(config.model.name)
    unpack(base.model)
    set_limits()
    examples = random_examples(load, base.tokenizer.vocabulary)
    setup = Setup(base, [Tokenised(examples), Tokenised(), Tokenised()])
    attach_adapter(config, setup)
    mx.eval(base.model.parameters(), setup.optimizer.state)
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in start_from_records(config, setup):
        pass
    base.model.train()
    step = make_step(base.model, setup.optimizer, compiled=not on_cpu())
    for _ in range(STEPS):
        step([make_batch(examples)])
    return mx.get_peak_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=0.15)
    parser.add_argument("--only", help="a method")
    arguments = parser.parse_args()
    sizes = ("method", "base", "width × layers", "vocabulary", "batch × tokens", "recomputed")
    bench.head(*sizes, "estimated, MB", "measured, MB", "off")
    worst = 0.0
    for case in (case for case in CASES if arguments.only in (None, case.method)):
        guess, peak = measure(case)
        off = guess / peak - 1
        worst = max(worst, abs(off))
        base, again = f"{case.bits} bits" if case.bits else "float32", "yes" if case.recompute else "no"
        shape, load = f"{case.width} × {case.layers}", f"{case.records} × {case.tokens}"
        sizes = (case.method, base, shape, f"{case.vocabulary:,}", load, again)
        bench.row(*sizes, f"{guess / 1e6:.1f}", f"{peak / 1e6:.1f}", f"{100 * off:+.1f} %")
    print(f"\nWorst: {100 * worst:.1f} %")
    sys.exit(worst > arguments.limit)


if __name__ == "__main__":
    main()
