"""Trained tokens a second against mlx_lm.lora: same base, same records, same batch size, taken in turns in one process.

python tools/bench_train.py [--data RECORDS] [--steps 12] [--rounds 3] [--bases float32] [--methods lora hybrid]

Both sides have float32, or both the packed base with the dequantising product (adapters/frozen.py). A trained token is
one whose loss counts. Nothing is compiled on either side: on the CPU each new shape would cost mlx-lm a run of the C++
compiler. Each round begins with steps that are not counted. Prints a Markdown table of medians over the rounds, and the
lowest and highest ratio of any round.
"""

import argparse
import json
import statistics
from pathlib import Path

from mlx_hybrid.blas import prefer_openblas

prefer_openblas()

import mlx.core as mx  # noqa: E402
import mlx.optimizers as optimizers  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm.tuner.callbacks import TrainingCallback  # noqa: E402
from mlx_lm.tuner.trainer import TrainingArgs  # noqa: E402
from mlx_lm.tuner.trainer import train as peer_train  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402

from mlx_hybrid.adapters.attach import attach, dequantise  # noqa: E402
from mlx_hybrid.base_model import load_base  # noqa: E402
from mlx_hybrid.config import build_config  # noqa: E402
from mlx_hybrid.governance.records import load_records  # noqa: E402
from mlx_hybrid.training.events import Trained  # noqa: E402
from mlx_hybrid.training.examples import Example, make_examples  # noqa: E402
from mlx_hybrid.training.loop import train  # noqa: E402
from mlx_hybrid.training.optimizer import BranchOptimizer  # noqa: E402
from mlx_hybrid.training.progress import Progress  # noqa: E402
from mlx_hybrid.training.sources import SAMPLE_FOLDER  # noqa: E402

WARM = 4  # steps of a round that are not counted
RATE = 1e-4


class Listener(TrainingCallback):
    """Keeps the reports of mlx-lm's trainer."""

    def __init__(self) -> None:
        self.reports: list[dict] = []

    def on_train_loss_report(self, info: dict) -> None:
        self.reports.append(info)

    def on_val_loss_report(self, info: dict) -> None:
        pass


def fresh_model(packed: bool, name: str):
    model = load_base(name).model
    if not packed:
        dequantise(model)
    model.freeze()
    return model


def ours(
    method: str, examples: list[Example], arguments: argparse.Namespace, packed: bool, packing: str
) -> float:
    """Trained tokens a second of this project's loop."""
    mx.clear_cache()
    steps = {"steps": WARM + arguments.steps, "batch_size": arguments.batch, "report_every": WARM}
    tree = {"method": method, "adapter": {"start": "zeros"}, "train": steps | {"packing": packing}}
    config = build_config(tree, "bench_train")
    model = fresh_model(packed, arguments.model)
    attach(model, config.adapter, method=method, seed=0)
    optimizer = BranchOptimizer(
        model, learning_rate=RATE, orthogonal_learning_rate=RATE, weight_decay=0.0, clip=1.0,
        mixing=config.adapter.mixing,
    )  # fmt: skip
    reports = [
        event
        for event in train(model, optimizer, examples, [], config.train, seed=0, progress=Progress())
        if isinstance(event, Trained)
    ]
    seconds = reports[-1].seconds - reports[0].seconds
    return sum(report.trained_tokens for report in reports[1:]) / seconds


def peer(examples: list[Example], arguments: argparse.Namespace, packed: bool) -> float:
    """Trained tokens a second of mlx-lm's trainer, with a LoRA of the same rank on the same products."""
    mx.clear_cache()
    np.random.seed(0)
    model = fresh_model(packed, arguments.model)
    keys = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    linear_to_lora_layers(model, len(model.layers), {"rank": 16, "scale": 4.0, "dropout": 0.0, "keys": keys})
    data = [(e.tokens, e.trained.index(True)) for e in examples]
    settings = TrainingArgs(
        batch_size=arguments.batch, iters=WARM + arguments.steps, val_batches=1, steps_per_report=WARM,
        steps_per_eval=10**6, steps_per_save=10**6, max_seq_length=2048, adapter_file="/dev/null",
    )  # fmt: skip
    listener = Listener()
    try:
        peer_train(
            model, optimizers.Adam(learning_rate=RATE), data, data[: arguments.batch], settings,
            training_callback=listener,
        )  # fmt: skip
    except RuntimeError as error:  # its adapter file, which nobody wants
        if "/dev/null" not in str(error) and "write" not in str(error):
            raise
    counted = listener.reports[1:]
    tokens = counted[-1]["trained_tokens"] - listener.reports[0]["trained_tokens"]
    seconds = sum(WARM / report["iterations_per_second"] for report in counted)
    return tokens / seconds


def single_turns(path: Path, name: str) -> list[Example]:
    """Records of one answer, as mlx-lm's prompt mask takes no others."""
    examples, _ = make_examples(
        load_records((path,)), load_base(name).tokenizer, max_tokens=1024, too_long="drop"
    )
    return [
        e for e in examples if all(e.trained[e.trained.index(True) : e.trained.index(True) + e.trained_count])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", type=Path, default=SAMPLE_FOLDER / "topics.jsonl")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["lora", "hybrid"])
    parser.add_argument("--bases", nargs="+", default=["float32", "4 bits"])
    arguments = parser.parse_args()
    mx.disable_compile()
    examples = single_turns(arguments.data, arguments.model)
    for base in arguments.bases:
        packed = base != "float32"
        speeds: dict[str, list[float]] = {"mlx_lm.lora": []}
        for _ in range(arguments.rounds):
            speeds["mlx_lm.lora"].append(peer(examples, arguments, packed))
            for method in arguments.methods:
                for packing in ("off", "auto"):
                    label = f"{method}, packed rows" if packing == "auto" else method
                    speeds.setdefault(label, []).append(ours(method, examples, arguments, packed, packing))
        print_table(base, speeds)


def print_table(base: str, speeds: dict[str, list[float]]) -> None:
    peers = speeds["mlx_lm.lora"]
    for label, values in speeds.items():
        ratios = [value / other for value, other in zip(values, peers, strict=True)]
        print(
            f"| {base} | {label} | {statistics.median(values):.0f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} – {max(ratios):.2f} |",
            flush=True,
        )
    print(json.dumps({"base": base, "trained_tokens_per_second": speeds}), flush=True)


if __name__ == "__main__":
    main()
