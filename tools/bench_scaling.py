"""Step time and peak memory against batch, length, vocabulary and layers, beside what the machine could do at best.

python tools/bench_scaling.py [-o FOLDER] [--repeats 5] [--small]

Each size varies alone around CENTRE: random Llama, 256 wide, float32, every projection adapted, every token trained.
Times are processor time with one BLAS thread, medians over the repeats. FLOPs and bytes are counted in the graph of the
whole step (step_cost.py). The limit is the larger of FLOPs over the rate of a large product and bytes over the rate of
a large copy, both measured in the same run. Writes scaling.json, scaling.md and scaling.png.
"""

import argparse
import gc
import json
import os
import statistics
import time
from pathlib import Path

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

from mlx_hybrid.models.blas import prefer_openblas

prefer_openblas()

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm.models import llama  # noqa: E402
from step_cost import count  # noqa: E402

from mlx_hybrid.adapters.attach import attach  # noqa: E402
from mlx_hybrid.config import build_config  # noqa: E402
from mlx_hybrid.records.template import Example  # noqa: E402
from mlx_hybrid.training.batches import Batch, make_batch  # noqa: E402
from mlx_hybrid.training.optimizer import BranchOptimizer  # noqa: E402
from mlx_hybrid.training.step import make_step  # noqa: E402

WIDTH, WARM = 256, 2
METHODS = ("lora", "hybrid")
CENTRE = {"batch": 4, "length": 128, "vocabulary": 8192, "layers": 4}
SIZES = {
    "batch": [1, 2, 4, 8, 16], "length": [32, 64, 128, 256, 512], "vocabulary": [2048, 8192, 32768, 131072],
    "layers": [1, 2, 4, 8, 16],
}  # fmt: skip


def make_model(point: dict[str, int]) -> llama.Model:
    config = {
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": point["layers"],
        "intermediate_size": WIDTH * 11 // 4, "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
        "vocab_size": point["vocabulary"], "tie_word_embeddings": True,
    }  # fmt: skip
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    return model


def full_batch(point: dict[str, int]) -> Batch:
    rows = (
        np.random.default_rng(0)
        .integers(0, point["vocabulary"], (point["batch"], point["length"] + 1))
        .tolist()
    )
    return make_batch([Example(row, [True] * len(row), "", "", len(row)) for row in rows])


def prepare(method: str, point: dict[str, int]) -> tuple[nn.Module, BranchOptimizer]:
    model = make_model(point)
    config = build_config({"method": method, "adapter": {"start": "zeros"}}, "bench_scaling").adapter
    attach(model, config, seed=0)
    optimizer = BranchOptimizer(
        model,
        learning_rate=1e-4,
        orthogonal_learning_rate=1e-4,
        weight_decay=0.0,
        clip=1.0,
        mixing=config.mixing,
    )
    return model.train(), optimizer


def measure(method: str, point: dict[str, int], repeats: int) -> dict[str, float]:
    """Seconds of a step, bytes at its peak, and the FLOPs and bytes that are counted of it."""
    gc.collect()
    mx.clear_cache()
    model, optimizer = prepare(method, point)
    batch = full_batch(point)
    flops, moved = count(model, optimizer, batch)
    step = make_step(model, optimizer, accumulate=1, compiled=False)
    seconds = []
    for number in range(WARM + repeats):
        if number == WARM:
            mx.reset_peak_memory()
        begun = time.process_time()
        step([batch])
        seconds.append(time.process_time() - begun)
    return {
        "seconds": statistics.median(seconds[WARM:]), "fastest": min(seconds[WARM:]), "slowest": max(seconds[WARM:]),
        "peak_bytes": mx.get_peak_memory(), "flops": flops, "moved_bytes": moved,
    }  # fmt: skip


def machine_rates() -> dict[str, float]:
    """FLOPs a second of a product of 1024 × 1024, and bytes a second, read and written, of a copy of 256 MB."""
    a = mx.random.normal((1024, 1024))
    source, target = np.ones(1 << 26, np.float32), np.zeros(1 << 26, np.float32)

    def best(work) -> float:
        times = []
        for _ in range(8):
            begun = time.process_time()
            work()
            times.append(time.process_time() - begun)
        return min(times[1:])

    product, copy = best(lambda: mx.eval(a @ a)), best(lambda: np.copyto(target, source))
    return {"flops_per_second": 2 * 1024**3 / product, "bytes_per_second": 2 * source.nbytes / copy}


def table(rows: list[dict], rates: dict[str, float]) -> str:
    lines = [
        f"Products: {rates['flops_per_second'] / 1e9:.1f} GFLOP/s; copies: {rates['bytes_per_second'] / 1e9:.1f} GB/s.",
        "", "| varied | | method | ms a step | GFLOP | takes, ms | GB moved | takes, ms | reached | peak, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {row['varied']} | {row['size']:,} | {row['method']} | {1e3 * row['seconds']:.0f} | "
        f"{row['flops'] / 1e9:.2f} | {1e3 * row['flops'] / rates['flops_per_second']:.0f} | "
        f"{row['moved_bytes'] / 1e9:.2f} | {1e3 * row['moved_bytes'] / rates['bytes_per_second']:.0f} | "
        f"{100 * row['limit'] / row['seconds']:.0f} % | {row['peak_bytes'] / 1e6:.0f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(13, 6.4), layout="constrained")
    panels = figure.subplots(2, len(SIZES), sharey="row")
    for column, varied in enumerate(SIZES):
        for line, (key, label, scale) in enumerate(
            (("seconds", "ms a step", 1e3), ("peak_bytes", "peak, MB", 1e-6))
        ):
            axes = panels[line, column]
            for method, colour in zip(METHODS, ("tab:blue", "tab:orange"), strict=True):
                own = [row for row in rows if (row["varied"], row["method"]) == (varied, method)]
                sizes = [row["size"] for row in own]
                axes.plot(sizes, [scale * row[key] for row in own], "o-", color=colour, label=method)
                if key == "seconds":
                    limits = [scale * row["limit"] for row in own]
                    axes.plot(sizes, limits, "--", color=colour, label=f"{method}, limit")
            axes.set(xscale="log", yscale="log", xlabel=varied, ylabel=label if column == 0 else "")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.grid(alpha=0.3)
            if (column, line) == (0, 0):
                axes.legend(fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("."))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="two values of each size, to try the tool")
    arguments = parser.parse_args()
    rates, rows, known = machine_rates(), [], {}
    for varied, sizes in SIZES.items():
        for size in sizes[:2] if arguments.small else sizes:
            point = CENTRE | {varied: size}
            for method in METHODS:
                key = (method, *point.values())
                known[key] = known.get(key) or measure(method, point, arguments.repeats)
                limit = max(
                    known[key]["flops"] / rates["flops_per_second"],
                    known[key]["moved_bytes"] / rates["bytes_per_second"],
                )
                rows.append({"varied": varied, "size": size, "method": method, "limit": limit} | known[key])
    arguments.output.mkdir(parents=True, exist_ok=True)
    told = {"centre": CENTRE, "width": WIDTH, "rates": rates, "rows": rows}
    (arguments.output / "scaling.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "scaling.md").write_text(table(rows, rates), encoding="utf-8")
    draw(rows, arguments.output / "scaling.png")
    print(table(rows, rates))


if __name__ == "__main__":
    main()
