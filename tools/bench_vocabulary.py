"""Memory at a large vocabulary beside mlx-lm's LoRA, and over a thousand steps; figures of docs/performance.md.

    python tools/bench_vocabulary.py            a minute, and up to 8 GB
    python tools/bench_vocabulary.py --steady   a thousand steps on batches of uneven length

Both sides train a LoRA of rank 8 on every projection of the same tiny random Llama, every token of 4 records of 512,
and each peak (`mx.get_peak_memory`) is that of two steps in a process of its own.
"""

import argparse
import json
import multiprocessing

from mlx_hybrid.models.blas import prefer_openblas

BODY = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 384,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip
RANK, STEPS = 8, 2


def make_model(vocabulary: int):
    import mlx.core as mx
    from mlx_lm.models import llama

    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(BODY | {"vocab_size": vocabulary}))
    mx.eval(model.parameters())
    return model


def token_rows(records: int, tokens: int, vocabulary: int):
    import numpy as np

    return np.random.default_rng(0).integers(0, vocabulary, (records, tokens + 1))


def peer_peak(vocabulary: int, records: int, tokens: int) -> int:
    """Bytes of mlx-lm's own loss and LoRA layers."""
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.optimizers import Adam
    from mlx_lm.tuner.trainer import default_loss
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = make_model(vocabulary)
    model.freeze()
    keys = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    linear_to_lora_layers(model, 2, {"rank": RANK, "scale": 4.0, "dropout": 0.0, "keys": keys})
    optimizer, gradient = Adam(1e-4), nn.value_and_grad(model.train(), default_loss)
    rows = mx.array(token_rows(records, tokens, vocabulary))
    lengths = mx.array([[1, tokens + 1]] * records)
    mx.reset_peak_memory()
    for _ in range(STEPS):
        (loss, _), gradients = gradient(model, rows, lengths)
        optimizer.update(model, gradients)
        mx.eval(model.state, optimizer.state, loss)
    return mx.get_peak_memory()


def trainer(vocabulary: int):
    """(model, step) of this project's loop."""
    from mlx_hybrid.adapters.attach import attach
    from mlx_hybrid.config import build_config
    from mlx_hybrid.training.optimizer import BranchOptimizer
    from mlx_hybrid.training.step import make_step

    config = build_config({"method": "lora", "adapter": {"rank": RANK}}, "bench").adapter
    model = make_model(vocabulary)
    attach(model, config)
    optimizer = BranchOptimizer(
        model, learning_rate=1e-4, orthogonal_learning_rate=1e-4, weight_decay=0.0, clip=1.0, mixing="off"
    )
    return make_step(model.train(), optimizer, accumulate=1, compiled=False)


def batch_of(rows: list[list[int]]):
    from mlx_hybrid.records.template import Example
    from mlx_hybrid.training.batches import make_batch

    return make_batch([Example(row, [False] + [True] * (len(row) - 1), "", "", len(row)) for row in rows])


def our_peak(vocabulary: int, records: int, tokens: int) -> int:
    import mlx.core as mx

    step, batch = trainer(vocabulary), batch_of(token_rows(records, tokens, vocabulary).tolist())
    mx.reset_peak_memory()
    for _ in range(STEPS):
        step([batch])
    return mx.get_peak_memory()


def steady(steps: int) -> list[dict]:
    """Active, cached and peak bytes along a run on batches of 16 to 200 tokens."""
    import mlx.core as mx
    import numpy as np

    from mlx_hybrid.training.loop import CACHE_EVERY

    step, rng, rows = trainer(2000), np.random.default_rng(0), []
    for number in range(1, steps + 1):
        step([batch_of([rng.integers(0, 2000, rng.integers(16, 200)).tolist() for _ in range(4)])])
        if number % CACHE_EVERY == 0:
            mx.clear_cache()  # as the loop does
        if number % (steps // 10) == 0:
            memory = {"active": mx.get_active_memory(), "peak": mx.get_peak_memory()}
            rows.append({"step": number} | {k: round(v / 1e6, 2) for k, v in memory.items()})
            mx.reset_peak_memory()
    return rows


def apart(function, *arguments):
    """In a process of its own, with OpenBLAS where there is one."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=prefer_openblas) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steady", action="store_true")
    parser.add_argument("--vocabulary", type=int, nargs="*", default=[16_384, 32_000, 151_936])
    options = parser.parse_args()
    if options.steady:
        for row in apart(steady, 1000):
            print(json.dumps(row))
        return
    print("| vocabulary | mlx-lm LoRA, MB | lora, MB | ratio |\n|---|---|---|---|")
    for vocabulary in options.vocabulary:
        peer, own = (apart(function, vocabulary, 4, 512) for function in (peer_peak, our_peak))
        print(f"| {vocabulary:,} | {peer / 1e6:.0f} | {own / 1e6:.0f} | {own / peer:.2f} |", flush=True)


if __name__ == "__main__":
    main()
