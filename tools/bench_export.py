"""Time and peak memory of exporting an adapter of an 8B-shaped model; a Markdown table, and exit 1 beyond the limits.

python tools/bench_export.py [--methods hybrid,hybrid-boft,lora-ga] [--to peft] [--folder DIR] [--layers 32]

A random Llama of 8.0 B parameters is written to disk first (16 GB of bf16 weights, removed at the end), with random
adapters on its 224 projections. Each export is the command itself, in a process of its own; its files are checked as
always. (This process stays small, as the peak of a new one begins with its parent's.) Logits are compared too where a
float32 copy of the model fits in memory, which takes far longer: the last column says so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench
import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.layer import HybridLinear
from mlx_hybrid.adapters.store import CONFIG_FILE, FORMAT, WEIGHTS_FILE
from mlx_hybrid.adapters.targets import last_part, layer_plan
from mlx_hybrid.config import build_config, to_tree
from mlx_hybrid.exports.weights import write_shards
from mlx_hybrid.files import write_json
from mlx_hybrid.models.base import fingerprint

WIDTH, MLP, KEYS, VOCABULARY = 4096, 14336, 1024, 128256
SHAPES = {  # outputs, inputs
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KEYS, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (MLP, WIDTH),
    "mlp.up_proj": (MLP, WIDTH),
    "mlp.down_proj": (WIDTH, MLP),
}
SECONDS, BYTES = 60, 6e9
BLOCK = 1 << 24  # random numbers drawn; weights repeat them, which no step of an export notices


def write_base(folder: Path, layers: int) -> Path:
    """A model folder as transformers writes it, its linear weights of the size that trained ones have."""
    folder.mkdir()
    mx.random.seed(0)
    block = (0.02 * mx.random.normal((BLOCK,))).astype(mx.bfloat16)
    shapes = {f"{name}.weight": (VOCABULARY, WIDTH) for name in ("model.embed_tokens", "lm_head")}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{module}.weight": shape for module, shape in SHAPES.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (WIDTH,)
    shapes["model.norm.weight"] = (WIDTH,)

    def made(name: str) -> dict[str, mx.array]:
        shape = shapes[name]
        return {name: repeated(block, shape) if len(shape) == 2 else mx.ones(shape, mx.bfloat16)}

    write_shards(folder, shapes, made, "pt")
    sizes = {"intermediate_size": MLP, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 5e5}
    of_transformers = {
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    config = bench.llama_config(WIDTH, layers, VOCABULARY, **sizes, **of_transformers)
    write_json(folder / "config.json", config)
    bench.add_tokenizer(folder)
    return folder


def repeated(block: mx.array, shape: tuple[int, int]) -> mx.array:
    size = shape[0] * shape[1]
    return mx.tile(block, -(-size // BLOCK))[:size].reshape(shape)


def write_adapter(folder: Path, base: Path, method: str, layers: int) -> Path:
    """An adapter of the method's default settings with every leaf away from its start."""
    folder.mkdir()
    config = build_config({"method": method}, "bench_export").adapter
    leaves, modules = {}, []
    for layer in range(layers):
        for module, shape in SHAPES.items():
            name = f"model.layers.{layer}.{module}"
            modules.append(name)
            leaves |= {f"{name}.{leaf}": value for leaf, value in random_leaves(config, name, shape).items()}
            mx.eval(leaves)
    mx.save_safetensors(str(folder / WEIGHTS_FILE), leaves, metadata={"format": "mlx"})
    own = {
        "method": method,
        "adapter": to_tree(config),
        "seed": 0,
        "modules": modules,
        "base": {"id": base.name, "fingerprint": fingerprint(base)},
    }
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "fine_tune_type": "hybrid", "mlx_hybrid": own})
    return folder


def random_leaves(config, name: str, shape: tuple[int, int]) -> dict[str, mx.array]:
    linear = nn.Linear(shape[1], shape[0], bias=False)
    linear.weight = mx.broadcast_to(mx.zeros(()), shape)  # never looked at
    plan = layer_plan(config, shape[1], unitary=last_part(name) in config.unitary)
    layer = HybridLinear(linear, plan, mx.random.key(0))
    leaves = layer.leaves()
    moved = {leaf: v + 0.02 * mx.random.normal(v.shape) for leaf, v in leaves.items() if leaf != "oft_base"}
    return leaves | moved


def measure(adapter: Path, base: Path, out: Path, to: str) -> list[str]:
    """One run of the command, as cells of the table."""
    command = [sys.executable, "-m", "mlx_hybrid", "export", str(adapter), "--to", to, "--model", str(base)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "-o", str(out), "--json"], stdout=subprocess.PIPE, text=True)
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds, peak = time.perf_counter() - began, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if status or not printed:
        sys.exit(f"{adapter.name}: the export failed.")
    report = json.loads(printed)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    times = [f"{seconds:.0f}", f"{used.ru_utime + used.ru_stime:.0f}"]
    sizes = [f"{peak / 1e9:.2f}", f"{written / 1e6:.0f}"]
    logits = "compared" if report["checks"].get("logits") else "left out"
    held = "yes" if seconds < SECONDS and peak < BYTES else "NO"
    return [report["modules"], to, *times, *sizes, logits, held]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="hybrid,hybrid-boft,lora-ga")
    parser.add_argument("--to", default="peft", choices=["peft", "lora", "mlx-lm"])
    parser.add_argument("--folder", type=Path, help="where the model is written  [default: a temporary one]")
    parser.add_argument("--layers", type=int, default=32)
    asked = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        root = Path(name)
        base = bench.apart(write_base, root / "base", asked.layers)
        measured = ("seconds", "CPU seconds", "peak memory, GB", "written, MB", "logits", "limits held")
        bench.head("method", "modules", "to", *measured)
        for method in asked.methods.split(","):
            adapter = bench.apart(write_adapter, root / method, base, method, asked.layers)
            cells = measure(adapter, base, root / f"{method}-out", asked.to)
            bench.row(method, *cells)
            met &= cells[-1] == "yes"
    sys.exit(not met)


if __name__ == "__main__":
    main()
