"""Estimated beside measured peak memory over tiny random models; a Markdown table, and exit 1 beyond the tolerance.

python tools/bench_memory.py [--limit 0.15] [--only METHOD]

Widths, depths, vocabularies, batches, lengths, methods, packed and dense bases, with and without recomputed
activations. Every peak is that of the gradient start and two steps, in a process of its own.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlx_hybrid.blas import prefer_openblas

prefer_openblas()

import mlx.core as mx  # noqa: E402
from mlx_lm.models import llama  # noqa: E402
from mlx_lm.utils import quantize_model, save_model  # noqa: E402

from mlx_hybrid.base_model import BUNDLED_FOLDER  # noqa: E402
from mlx_hybrid.config import Config, build_config  # noqa: E402
from mlx_hybrid.training.estimate import Load, estimate  # noqa: E402
from mlx_hybrid.training.model_shape import model_shape  # noqa: E402
from mlx_hybrid.training.probe import probe  # noqa: E402


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
    Case("full", 256, 4, 8000, 2, 128),
    Case("full", 128, 4, 2000, 4, 192, recompute=True),
]


def write_base(case: Case, folder: Path) -> None:
    """A random Llama with the bundled tokenizer's files, which nothing here reads."""
    config = {
        "model_type": "llama", "hidden_size": case.width, "num_hidden_layers": case.layers,
        "intermediate_size": case.mlp * case.width, "num_attention_heads": case.heads,
        "num_key_value_heads": case.pairs, "head_dim": case.width // case.heads, "rms_norm_eps": 1e-5,
        "vocab_size": case.vocabulary, "tie_word_embeddings": True, "eos_token_id": 2,
    }  # fmt: skip
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    if case.bits:
        model, config = quantize_model(model, config, 64, case.bits)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    for path in BUNDLED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, folder)


def settings(case: Case, folder: Path) -> Config:
    tree = {
        "model": str(folder), "method": case.method,
        "train": {"batch_size": case.records, "grad_checkpoint": case.recompute},
    }  # fmt: skip
    return build_config(tree, "bench_memory")


def measure(case: Case) -> tuple[int, int]:
    """(estimated, measured) peak bytes."""
    with tempfile.TemporaryDirectory() as name:
        write_base(case, Path(name))
        mx.clear_cache()
        config = settings(case, Path(name))
        load = Load(case.records, case.tokens, case.records * case.tokens // case.learnt)
        return estimate(model_shape(config), load, config).peak, probe(config, load)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=float, default=0.15)
    parser.add_argument("--only", help="a method")
    arguments = parser.parse_args()
    print(
        "| method | base | width × layers | vocabulary | batch × tokens | recomputed "
        "| estimated, MB | measured, MB | off |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for case in (case for case in CASES if arguments.only in (None, case.method)):
        guess, peak = measure(case)
        off = guess / peak - 1
        worst = max(worst, abs(off))
        base = f"{case.bits} bits" if case.bits else "float32"
        print(
            f"| {case.method} | {base} | {case.width} × {case.layers} | {case.vocabulary:,} | "
            f"{case.records} × {case.tokens} | {'yes' if case.recompute else 'no'} | {guess / 1e6:.1f} | "
            f"{peak / 1e6:.1f} | {100 * off:+.1f} % |",
            flush=True,
        )
    print(f"\nWorst: {100 * worst:.1f} %")
    sys.exit(worst > arguments.limit)


if __name__ == "__main__":
    main()
