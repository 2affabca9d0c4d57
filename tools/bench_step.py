"""Time one optimiser step of each method against mlx-lm's LoRA, and print the tables of docs/performance.md.

    python tools/bench_step.py                       all tables, about six minutes on two cores
    python tools/bench_step.py dense --hidden 1024   some of them, at some width

Methods take turns within each repeat, and every ratio is to the reference's step of the same repeat. Times are
processor time, so that other work on the machine counts little; there is one BLAS thread. Llama shapes, eight layers,
float32, every projection adapted, every token trained, a small vocabulary. `peft` needs PyTorch, transformers and PEFT.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from mlx_hybrid.models.blas import prefer_openblas

OPENBLAS = prefer_openblas()  # before anything imports mlx

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
from mlx.optimizers import AdamW  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm.models import llama  # noqa: E402
from mlx_lm.tuner.trainer import default_loss  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402

from mlx_hybrid.adapters.attach import attach, hybrid_layers, refold  # noqa: E402
from mlx_hybrid.adapters.frozen import use_fast_products  # noqa: E402
from mlx_hybrid.config import build_config  # noqa: E402
from mlx_hybrid.records.template import Example  # noqa: E402
from mlx_hybrid.training.batches import Batch, make_batch  # noqa: E402
from mlx_hybrid.training.loop import steps_between_refolds  # noqa: E402
from mlx_hybrid.training.optimizer import BranchOptimizer  # noqa: E402
from mlx_hybrid.training.step import make_step  # noqa: E402

RANK, VOCABULARY, LENGTH, WARM = 16, 1024, 128, 2
METHODS = ["lora", "hra", "hybrid", "boft", "hybrid-boft"]
TARGETS = {"lora": 1.0, "hra": 1.1, "hybrid": 1.1, "boft": 1.3, "hybrid-boft": 1.4}
PACKED_TARGET = 1.05
Step = Callable[[], None]


def config_of(hidden: int, layers: int) -> dict:
    return {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "intermediate_size": hidden * 11 // 4, "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY,
        "tie_word_embeddings": True, "max_position_embeddings": 2048,
    }  # fmt: skip


class Bench:
    """One base, whose arrays all models share, and one batch."""

    def __init__(self, hidden: int, tokens: int, *, layers: int = 8, packed: bool = False, fast: bool = True):
        self.config, self.packed, self.fast = config_of(hidden, layers), packed, fast
        rows, length = max(1, tokens // LENGTH), min(tokens, LENGTH)
        self.tokens = np.random.default_rng(0).integers(0, VOCABULARY, (rows, length + 1))
        mx.random.seed(0)
        self.base = None
        self.base = self.model().parameters()

    def model(self) -> nn.Module:
        model = llama.Model(llama.ModelArgs.from_dict(self.config))
        if self.packed:
            nn.quantize(model, 64, 4)
        if self.base is not None:
            model.update(self.base)
        mx.eval(model.parameters())
        return use_fast_products(model) if self.fast else model

    def batch(self) -> Batch:
        rows = self.tokens.tolist()
        batch = make_batch([Example(row, [True] * len(row), "", "", len(row)) for row in rows])
        assert batch.tokens.shape == self.tokens[:, 1:].shape, batch.tokens.shape
        return batch

    def ours(self, method: str, **changes: object) -> Step:
        """A whole step of this program's loop, its refolding in proportion."""
        sizes = {"rank": RANK} if method == "lora" else {}
        config = build_config({"method": method, "adapter": {**sizes, **changes}}, "bench").adapter
        model = self.model()
        attach(model, config)
        for index, layer in enumerate(hybrid_layers(model).values()):
            layer.started = True
            for leaf in ("lora_a0", "lora_b0"):  # as large as a start from the gradient makes them
                if (start := layer.leaves().get(leaf)) is not None:
                    layer.put_leaves({leaf: mx.random.normal(start.shape, key=mx.random.key(index)) / 32})
        optimizer = BranchOptimizer(
            model,
            learning_rate=1e-4,
            orthogonal_learning_rate=1e-4,
            weight_decay=0.0,
            clip=1.0,
            mixing=config.mixing,
        )
        step = make_step(model.train(), optimizer, accumulate=1, compiled=False)
        batch, every, done = self.batch(), steps_between_refolds(model), 0

        def run() -> None:
            nonlocal done
            step([batch])
            done += 1
            if done % every == 0:
                refold(model)

        return run

    def mlx_lm(self) -> Step:
        """A step as `mlx_lm.lora` takes it, with the same clipping-free AdamW and no compilation."""
        model = self.model()
        model.freeze()
        linear_to_lora_layers(
            model, self.config["num_hidden_layers"], {"rank": RANK, "scale": 4.0, "dropout": 0.0}
        )
        optimizer = AdamW(1e-4, weight_decay=0.0, bias_correction=True)
        gradient = nn.value_and_grad(model.train(), default_loss)
        tokens = mx.array(self.tokens)
        lengths = mx.array([[1, self.tokens.shape[1]]] * len(self.tokens))

        def run() -> None:
            (loss, count), gradients = gradient(model, tokens, lengths)
            optimizer.update(model, gradients)
            mx.eval(model.state, optimizer.state, loss, count)

        return run


def seconds(step: Step) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun


def interleave(steps: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step in each repeat; the order turns by one each time."""
    names = list(steps)
    for step in list(steps.values()) * WARM:
        step()
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(steps[name]))
    return times


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, and the quartiles beside it."""
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def peak_bytes(step: Step) -> int:
    """What one step holds beyond what was there before it."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    step()
    return mx.get_peak_memory() - before


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: object) -> None:
    row(*cells)
    print("|---" * len(cells) + "|")


def compare(hidden: int, tokens: int, repeats: int, *, packed: bool) -> None:
    """Every method against mlx-lm's LoRA on the same base."""
    bench = Bench(hidden, tokens, packed=packed)
    steps = {"mlx-lm LoRA": bench.mlx_lm()} | {method: bench.ours(method) for method in METHODS}
    times = interleave(steps, repeats)
    reference = times["mlx-lm LoRA"]
    weights = sum(value.nbytes for _, value in tree_flatten(bench.base))
    memory = {name: weights + peak_bytes(step) for name, step in steps.items()}
    print(
        f"\n{'4-bit' if packed else 'float32'} base, hidden {hidden}, {tokens} tokens, {repeats} repeats:\n"
    )
    head("method", "ms a step", "ratio", "quartiles", "target", "peak memory")
    for name, found in times.items():
        ratio, low, high = spread([a / b for a, b in zip(found, reference, strict=True)])
        target = (PACKED_TARGET if packed else TARGETS[name]) if name in TARGETS else ""
        share = memory[name] / memory["mlx-lm LoRA"]
        row(
            name,
            f"{1e3 * statistics.median(found):.0f}",
            f"{ratio:.2f}",
            f"{low:.2f}–{high:.2f}",
            target,
            f"{share:.2f}",
        )
    if packed and hidden <= 512:
        slow = Bench(hidden, tokens, packed=True, fast=False).mlx_lm()
        gain = min(seconds(slow) for _ in range(2)) / statistics.median(reference)
        print(f"\nmlx-lm LoRA with MLX's own quantised product on the CPU: {gain:.1f} times the step above.")


def peft_steps(hidden: int, tokens: np.ndarray, layers: int) -> dict[str, Step]:
    """PEFT's LoRA, OFT, BOFT and HRA on the same shapes, each a step of AdamW."""
    import torch
    from peft import BOFTConfig, HRAConfig, LoraConfig, OFTConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    linear = {"target_modules": "all-linear"}
    kinds = {
        "LoRA": LoraConfig(r=RANK, lora_alpha=RANK, **linear),
        "OFT": OFTConfig(r=0, oft_block_size=64, **linear),
        "BOFT": BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=1, **linear),
        "HRA": HRAConfig(r=RANK, **linear),
    }
    inputs = torch.tensor(tokens[:, :-1].astype(np.int64))

    def make(kind: object) -> Step:
        model = get_peft_model(LlamaForCausalLM(LlamaConfig(**config_of(hidden, layers))), kind).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

        def run() -> None:
            optimizer.zero_grad()
            model(input_ids=inputs, labels=inputs).loss.backward()
            optimizer.step()

        return run

    return {name: make(kind) for name, kind in kinds.items()}


def beside_peft(hidden: int, tokens: int, repeats: int) -> None:
    """Our overhead over our LoRA, PEFT's over PEFT's; two layers, as PEFT's slowest takes seconds a step."""
    bench = Bench(hidden, tokens, layers=2)
    ours = interleave({name: bench.ours(name) for name in METHODS}, repeats)
    theirs = interleave(peft_steps(hidden, bench.tokens, 2), repeats)
    print(
        f"\nOver the same library's LoRA, hidden {hidden}, two layers, {tokens} tokens, {repeats} repeats:\n"
    )
    head("method", "ms a step", "ratio", "quartiles")
    for library, times, base in (("mlx-hybrid", ours, "lora"), ("PEFT", theirs, "LoRA")):
        for name, found in times.items():
            ratio, low, high = spread([a / b for a, b in zip(found, times[base], strict=True)])
            row(
                f"{library} {name}",
                f"{1e3 * statistics.median(found):.0f}",
                f"{ratio:.2f}",
                f"{low:.2f}–{high:.2f}",
            )


def growth(repeats: int) -> None:
    """How a step grows with each size, the others fixed; base and adapter together."""
    standard = {"hidden": 256, "layers": 4, "tokens": 128}
    sweeps = {
        "tokens": [({"tokens": n}, {}, {}, n) for n in (64, 128, 256, 512)],
        "layers": [({"layers": n}, {}, {}, n) for n in (2, 4, 8, 16)],
        "hidden": [({"hidden": n}, {}, {}, n) for n in (256, 512, 768, 1024)],
        "rank and reflections": [({}, {"rank": n, "reflections": n}, {"rank": n}, n) for n in (4, 8, 16, 32)],
        "dense block": [({}, {}, {"factors": m}, 8 << (m - 1)) for m in (2, 3, 4)],
    }
    print(f"\nms a step; otherwise hidden 256, four layers, 128 tokens, rank 8; median of {repeats}:\n")
    head("size", "value", "hybrid", "hybrid-boft")
    for name, values in sweeps.items():
        for base, own, other, value in values:
            bench = Bench(**standard | base)
            steps = {"hybrid": bench.ours("hybrid", **own), "hybrid-boft": bench.ours("hybrid-boft", **other)}
            row(
                name,
                value,
                *(f"{1e3 * statistics.median(v):.0f}" for v in interleave(steps, repeats).values()),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help="dense, packed, peft, growth")
    parser.add_argument("--hidden", type=int, nargs="*", default=[512, 1024])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    tables = options.tables or ["dense", "packed", "peft", "growth"]
    print(f"MLX {mx.__version__} on {mx.default_device()}, OpenBLAS {'found' if OPENBLAS else 'not found'}.")
    for hidden in options.hidden:
        for name in ("dense", "packed"):
            if name in tables:
                compare(hidden, options.tokens, options.repeats, packed=name == "packed")
    if "peft" in tables:
        beside_peft(512, options.tokens, options.repeats)
    if "growth" in tables:
        growth(max(3, options.repeats // 4))


if __name__ == "__main__":
    main()
