"""One training step on an NVIDIA GPU: every method on a 4-bit base, beside PEFT in bf16 on the same card.

    python tools/bench_gpu.py [--shapes 1B 8B] [--tokens 2048] [--repeats 10]     under ten minutes
    python tools/bench_gpu.py --dry-run                                           tiny shapes, on any machine

Llama shapes with random weights, every projection adapted, every token trained. Ours needs the extra `cuda`, PEFT's
side the extra `peft` with a torch for the card; each side runs in a process of its own and gives back its memory.
"""

import argparse
import statistics
import time

import bench

METHODS = ("lora", "dora", "hra", "boft", "hybrid", "hybrid-boft")
LENGTH = 512
SHAPES = {  # width, layers, heads, heads of keys, width of the MLP, vocabulary
    "tiny": (128, 2, 4, 2, 256, 512),
    "1B": (2048, 16, 32, 8, 8192, 128_256),
    "8B": (4096, 32, 32, 8, 14_336, 128_256),
}


def config_of(shape: str) -> dict:
    width, layers, heads, keys, inner, vocabulary = SHAPES[shape]
    sizes = {"num_attention_heads": heads, "num_key_value_heads": keys, "intermediate_size": inner}
    tied = {"tie_word_embeddings": shape != "8B"}
    return bench.llama_config(width, layers, vocabulary, **sizes, **tied)


def timed(step: bench.Step, repeats: int) -> float:
    """Median seconds of a step, after three that warm up."""
    times = []
    for _ in range(3 + repeats):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[3:])


def ours(shape: str, method: str, tokens: int, repeats: int) -> tuple[float, float]:
    """(seconds a step, peak GB) of this project on a base packed in 4 bits, compiled where MLX compiles."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.models import llama

    from mlx_hybrid.adapters.attach import attach
    from mlx_hybrid.adapters.frozen import on_cpu, use_fast_products
    from mlx_hybrid.config import TrainConfig, build_config
    from mlx_hybrid.training.optimizer import BranchOptimizer, make_step

    model = llama.Model(llama.ModelArgs.from_dict(config_of(shape)))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, 64, 4)
    use_fast_products(model)
    mx.eval(model.parameters())
    config = build_config({"method": method}, "bench_gpu").adapter
    attach(model, config)
    optimizer = BranchOptimizer(model, TrainConfig(learning_rate=1e-4, rates="leaf"), config.mixing)
    step = make_step(model.train(), optimizer, compiled=not on_cpu())
    batch = bench.trained_batch(bench.random_rows(SHAPES[shape][-1], tokens, LENGTH))
    mx.reset_peak_memory()
    return timed(lambda: step([batch]), repeats), mx.get_peak_memory() / 1e9


def peft(shape: str, method: str, tokens: int, repeats: int) -> tuple[float, float]:
    """The same of PEFT on transformers' model in bf16."""
    import torch
    from peft import BOFTConfig, HRAConfig, LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    kinds = {
        "lora": LoraConfig(r=bench.RANK, target_modules="all-linear"),
        "dora": LoraConfig(r=bench.RANK, target_modules="all-linear", use_dora=True),
        "hra": HRAConfig(r=8, target_modules="all-linear"),
        "boft": BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=2, target_modules="all-linear"),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        base = LlamaForCausalLM(LlamaConfig(**config_of(shape))).to(torch.bfloat16)
        model = get_peft_model(base, kinds[method]).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    inputs = torch.tensor(bench.random_rows(SHAPES[shape][-1], tokens, LENGTH), device=device)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=inputs, labels=inputs).loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = timed(step, repeats)
    return seconds, torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1B", "8B"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true")
    asked = parser.parse_args()
    if asked.dry_run:
        asked.shapes, asked.tokens, asked.repeats = ["tiny"], 64, 2
    bench.head("shape", "method", "program", "ms a step", "tokens/s", "peak, GB")
    for shape in asked.shapes:
        for side, methods in ((ours, METHODS), (peft, METHODS[:4])):
            for method in methods:
                try:
                    seconds, peak = bench.apart(side, shape, method, asked.tokens, asked.repeats)
                except Exception as error:  # one that does not fit leaves the others their turn
                    bench.row(shape, method, side.__name__, type(error).__name__, "", "")
                    continue
                speed = f"{asked.tokens / seconds:.0f}"
                bench.row(shape, method, side.__name__, f"{1e3 * seconds:.1f}", speed, f"{peak:.2f}")


if __name__ == "__main__":
    main()
