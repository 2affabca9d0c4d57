"""Trained tokens a second against `mlx_lm.lora` on XNLI and SIB-200: same base, records and batch size, in turns.

    python tools/bench_train.py [--from BENCHMARKS] [--rounds 3] [--tasks xnli sib200] [--bases float32 "4 bits"]
    python tools/bench_train.py --model FOLDER [--rounds 3] [--steps 8] [--tasks sib200] [--bases float32]

Both sides have float32, or both the packed base with the dequantising product (adapters/frozen.py); mlx-lm's has MLX's
own activations. Every turn trains one epoch of the same records after a step that is not counted, data set and loop
each its own; processor time of one thread, so that other work counts little. A trained token is one of an answer,
whose loss counts; mlx-lm's loss also counts a pad a record, which is left out. Nothing is compiled on either side: on
the CPU each new shape would cost mlx-lm a run of the C++ compiler. Prints medians over the rounds, the lowest and
highest ratio in a round, and the highest peak of memory.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

import bench
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.trainer import TrainingArgs
from mlx_lm.tuner.trainer import train as peer_train
from mlx_lm.tuner.utils import linear_to_lora_layers

from mlx_hybrid.adapters.attach import attach, dequantise
from mlx_hybrid.adapters.frozen import unpack
from mlx_hybrid.config import ModelConfig, TrainConfig, build_config
from mlx_hybrid.evaluation.benchmarks.tasks import write_task
from mlx_hybrid.models.activations import GELU_APPROX, SILU
from mlx_hybrid.models.base import load_base, tokenizer_for
from mlx_hybrid.records.examples import Example, make_examples
from mlx_hybrid.records.record import load_records
from mlx_hybrid.training.checkpoint import Progress
from mlx_hybrid.training.events import Trained
from mlx_hybrid.training.loop import Training
from mlx_hybrid.training.optimizer import BranchOptimizer

LANGUAGES = ("en", "es", "de", "ru", "ar", "zh", "sw", "th")
PEER = "mlx_lm.lora"
SORTED = f"{PEER}, sorted by length"  # as it means to: it sorts chats by their number of keys
HELD = "lora, prompts held"  # the default; the others train the answers alone, as the peer does
# what is measured beside the peer, and the least ratio asked for
SIDES = {"lora": 1.5, "hybrid": 1.3, HELD: ""}
RATE, WARM, BATCH = 1e-4, 1, 8
KEYS = [f"self_attn.{one}_proj" for one in "qkvo"] + [f"mlp.{one}_proj" for one in ("gate", "up", "down")]


class Chats:
    """Records as mlx-lm's chat data set gives them, but tokenised beforehand."""

    def __init__(self, records: list[dict], examples: list[Example]):
        self.records, self.examples = records, examples

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        return self.records[index] | {"index": index}

    def process(self, record: dict) -> tuple[list[int], int]:
        example = self.examples[record["index"]]
        return example.tokens, example.trained.index(True)


class Listener(TrainingCallback):
    def __init__(self) -> None:
        self.reports: list[dict] = []

    def on_train_loss_report(self, info: dict) -> None:
        self.reports.append(info)


def records_of(
    task: str, benchmarks: Path | None, model: str, steps: int, languages: tuple[str, ...] = LANGUAGES
) -> Chats:
    """So many batches of the task's training records, of all the languages, and their tokens."""
    chosen = {"languages": languages, "shots": BATCH * steps // len(languages), "folder": benchmarks}
    with tempfile.TemporaryDirectory() as folder:
        write_task(task, Path(folder) / "task", splits=["train"], **chosen)
        path = Path(folder) / "task" / "train.jsonl"
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        tokenizer = tokenizer_for(ModelConfig(name=model))
        return Chats(records, make_examples(load_records((path,)), tokenizer, max_tokens=1024).examples)


def fresh_model(name: str, packed: bool):
    mx.clear_cache()
    model = load_base(name).model
    if not packed:
        dequantise(model)
    elif not any(path.endswith(".scales") for path, _ in tree_flatten(model.parameters())):
        raise SystemExit(f"{name} is not packed: name a packed model for the base of 4 bits.")
    model.set_dtype(mx.float32)
    model.freeze()
    return model


def ours(method: str, chats: Chats, name: str, packed: bool) -> tuple[int, float]:
    """Trained tokens of this project's loop, and the seconds they took."""
    model, held = fresh_model(name, packed), method == HELD
    unpack(model)
    tree = {"method": method.partition(",")[0], "adapter": {"start": "zeros"}}
    adapter = build_config(tree, "bench_train").adapter
    attach(model, adapter, seed=0)
    optimizer = BranchOptimizer(model, TrainConfig(learning_rate=RATE, rates="leaf"), adapter.mixing)
    for steps in (WARM, len(chats) // BATCH):
        options = {"steps": steps, "batch_size": BATCH, "report_every": steps, "prompt_weight": float(held)}
        settings = build_config(tree | {"train": options}, "bench_train").train
        events = Training(model, optimizer, chats.examples, [], settings, 0, Progress(), to_base=held)
        begun = time.process_time()
        (report,) = [event for event in events if isinstance(event, Trained)]
    return report.trained_tokens, time.process_time() - begun


def peer(label: str, chats: Chats, name: str, packed: bool) -> tuple[int, float]:
    """Trained tokens of mlx-lm's trainer, with a LoRA of the same rank on the same products, and their seconds."""
    model = fresh_model(name, packed)
    nn.silu, nn.gelu_approx = SILU, GELU_APPROX
    parameters = {"rank": bench.RANK, "scale": 4.0, "dropout": 0.0, "keys": KEYS}
    linear_to_lora_layers(model, len(model.layers), parameters)
    optimizer = optimizers.Adam(learning_rate=RATE)
    data = [chats.process(chat) for chat in chats] if label == SORTED else CacheDataset(chats)
    for steps in (WARM, len(chats) // BATCH):
        np.random.seed(0)
        listener, files = Listener(), {"steps_per_save": 10**6, "adapter_file": os.devnull}
        settings = TrainingArgs(
            batch_size=BATCH, iters=steps, steps_per_report=steps, max_seq_length=2048, **files
        )
        begun = time.process_time()
        with redirect_stdout(io.StringIO()):
            peer_train(model, optimizer, data, None, settings, training_callback=listener)
    return listener.reports[0]["trained_tokens"] - len(chats), time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = os.environ.get("MLX_HYBRID_DATA")
    parser.add_argument(
        "--from", dest="benchmarks", type=Path, default=usual, help="local copy of the benchmarks"
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--tasks", nargs="+", default=["xnli", "sib200"])
    parser.add_argument("--bases", nargs="+", default=["float32", "4 bits"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--languages", nargs="+", default=LANGUAGES)
    asked = parser.parse_args()
    mx.disable_compile()
    bench.head("task", "base", "", "trained tokens/s", "ratio", "lowest – highest", "asked", "peak, GB")
    for task in asked.tasks:
        chats = records_of(task, asked.benchmarks, asked.model, asked.steps, asked.languages)
        for base in asked.bases:
            labels = (PEER, SORTED, *SIDES)
            turns = [
                {label: turn(label, chats, asked.model, base) for label in labels}
                for _ in range(asked.rounds)
            ]
            for label in labels:
                speeds, peaks = zip(*(found[label] for found in turns))
                ratios = [found[label][0] / found[PEER][0] for found in turns]
                shown = (f"{statistics.median(speeds):.1f}", f"{statistics.median(ratios):.2f}")
                spread = f"{min(ratios):.2f} – {max(ratios):.2f}" if label != PEER else ""
                bench.row(task, base, label, *shown, spread, SIDES.get(label, ""), f"{max(peaks) / 1e9:.2f}")


def turn(label: str, chats: Chats, model: str, base: str) -> tuple[float, int]:
    """Trained tokens a second, and the peak of memory in bytes."""
    mx.reset_peak_memory()
    tokens, seconds = (ours if label in SIDES else peer)(label, chats, model, base != "float32")
    return tokens / seconds, mx.get_peak_memory()


if __name__ == "__main__":
    main()
