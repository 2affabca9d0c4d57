"""Trained tokens a second against `mlx_lm.lora` on XNLI and SIB-200: same base, records and batch size, in turns.

python tools/bench_train.py [--from BENCHMARKS] [--rounds 3] [--tasks xnli sib200] [--bases float32 "4 bits"]

Both sides have float32, or both the packed base with the dequantising product (adapters/frozen.py). Every turn trains
one epoch of the same records after a step that is not counted, so that both see each record once; mlx-lm's data set and
loop are its own, and its time is what it reports, without the making of batches. A trained token is one of an answer,
whose loss counts; mlx-lm's loss also counts a pad a record, which is left out. Nothing is compiled on either side: on
the CPU each new shape would cost mlx-lm a run of the C++ compiler. Prints a Markdown table of medians over the rounds,
and the lowest and highest ratio to the mlx-lm epoch of the same round.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from mlx_hybrid.models.blas import prefer_openblas

prefer_openblas()

import mlx.core as mx  # noqa: E402
import mlx.optimizers as optimizers  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm.tuner.callbacks import TrainingCallback  # noqa: E402
from mlx_lm.tuner.datasets import CacheDataset  # noqa: E402
from mlx_lm.tuner.trainer import TrainingArgs  # noqa: E402
from mlx_lm.tuner.trainer import train as peer_train  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402

from mlx_hybrid.adapters.attach import attach, dequantise  # noqa: E402
from mlx_hybrid.config import build_config  # noqa: E402
from mlx_hybrid.evaluation.benchmarks.folders import Choice, write_task  # noqa: E402
from mlx_hybrid.models.base import load_base, load_tokenizer_of  # noqa: E402
from mlx_hybrid.records.record import load_records  # noqa: E402
from mlx_hybrid.records.template import Example, make_examples  # noqa: E402
from mlx_hybrid.training.events import Trained  # noqa: E402
from mlx_hybrid.training.loop import train  # noqa: E402
from mlx_hybrid.training.optimizer import BranchOptimizer  # noqa: E402
from mlx_hybrid.training.progress import Progress  # noqa: E402

LANGUAGES = ("en", "es", "de", "ru", "ar", "zh", "sw", "th")
PEER, SORTED = (
    "mlx_lm.lora",
    "mlx_lm.lora, sorted by length",
)  # as it means to: it sorts chats by their number of keys
SIDES = {"lora": 1.5, "hybrid": 1.3}  # what is measured beside the peer, and the least ratio asked for
RATE, RANK, WARM = 1e-4, 16, 1


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
    """Keeps the reports of mlx-lm's trainer."""

    def __init__(self) -> None:
        self.reports: list[dict] = []

    def on_train_loss_report(self, info: dict) -> None:
        self.reports.append(info)


def records_of(task: str, arguments: argparse.Namespace) -> tuple[list[dict], list[Example]]:
    """A whole number of batches of the task's training records, of all languages, and their tokens."""
    shots = arguments.batch * arguments.steps // len(LANGUAGES)
    choice = Choice(languages=LANGUAGES, shots=shots, folder=arguments.folder)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task"
        write_task(task, path, choice, ["train"])
        lines = (path / "train.jsonl").read_text(encoding="utf-8").splitlines()
        examples, _ = make_examples(
            load_records((path / "train.jsonl",)), load_tokenizer_of(arguments.model), max_tokens=1024
        )
    return [json.loads(line) for line in lines], examples


def fresh_model(packed: bool, name: str):
    model = load_base(name).model
    if not packed:
        dequantise(model)
    model.freeze()
    return model


def ours(method: str, examples: list[Example], arguments: argparse.Namespace, packed: bool) -> float:
    """Trained tokens a second of this project's loop, batches made within the time."""
    mx.clear_cache()
    model = fresh_model(packed, arguments.model)

    def settings(steps: int):
        options = {"steps": steps, "batch_size": arguments.batch, "report_every": steps}
        tree = {"method": method, "adapter": {"start": "zeros"}, "train": options}
        return build_config(tree, "bench_train")

    adapter = settings(WARM).adapter
    attach(model, adapter, seed=0)
    optimizer = BranchOptimizer(
        model, learning_rate=RATE, orthogonal_learning_rate=RATE, weight_decay=0.0, clip=1.0, mixing=adapter.mixing
    )  # fmt: skip
    for steps in (WARM, len(examples) // arguments.batch):
        events = train(model, optimizer, examples, [], settings(steps).train, seed=0, progress=Progress())
        (report,) = [event for event in events if isinstance(event, Trained)]
    return report.trained_tokens / report.seconds


def peer(
    records: list[dict],
    examples: list[Example],
    arguments: argparse.Namespace,
    packed: bool,
    by_length: bool = False,
) -> float:
    """Trained tokens a second of mlx-lm's trainer, with a LoRA of the same rank on the same products."""
    mx.clear_cache()
    model = fresh_model(packed, arguments.model)
    keys = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
    linear_to_lora_layers(
        model, len(model.layers), {"rank": RANK, "scale": 4.0, "dropout": 0.0, "keys": keys}
    )
    chats, optimizer = Chats(records, examples), optimizers.Adam(learning_rate=RATE)
    data = [chats.process(chat) for chat in chats] if by_length else CacheDataset(chats)
    for steps in (WARM, len(examples) // arguments.batch):
        np.random.seed(0)
        listener = Listener()
        settings = TrainingArgs(
            batch_size=arguments.batch, iters=steps, steps_per_report=steps, steps_per_save=10**6, max_seq_length=2048,
            adapter_file=os.devnull,
        )  # fmt: skip
        with redirect_stdout(io.StringIO()):
            peer_train(model, optimizer, data, None, settings, training_callback=listener)
    (report,) = listener.reports
    return (report["trained_tokens"] - len(examples)) * report["iterations_per_second"] / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get("MLX_HYBRID_DATA")
    parser.add_argument(
        "--from", dest="folder", type=Path, default=folder, help="local copy of the benchmarks"
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--tasks", nargs="+", default=["xnli", "sib200"])
    parser.add_argument("--bases", nargs="+", default=["float32", "4 bits"])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON of every round's figures")
    arguments = parser.parse_args()
    mx.disable_compile()
    results = []
    print(
        "| task | base | | trained tokens/s | ratio | lowest – highest | asked |\n|---|---|---|---|---|---|---|"
    )
    for task in arguments.tasks:
        records, examples = records_of(task, arguments)
        for base in arguments.bases:
            speeds: dict[str, list[float]] = {label: [] for label in (PEER, SORTED, *arguments.sides)}
            for _ in range(arguments.rounds):
                for label in (PEER, SORTED):
                    speed = peer(records, examples, arguments, base != "float32", by_length=label == SORTED)
                    speeds[label].append(speed)
                for side in arguments.sides:
                    speeds[side].append(ours(side, examples, arguments, base != "float32"))
            print_rows(f"{task} | {base}", speeds)
            results.append({"task": task, "base": base, "trained_tokens_per_second": speeds})
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def print_rows(what: str, speeds: dict[str, list[float]]) -> None:
    for label, values in speeds.items():
        ratios = [value / other for value, other in zip(values, speeds[PEER], strict=True)]
        asked = SIDES.get(label)
        spread = f"{min(ratios):.2f} – {max(ratios):.2f}" if label != PEER else ""
        print(
            f"| {what} | {label} | {statistics.median(values):.1f} | {statistics.median(ratios):.2f} | {spread} | "
            f"{asked or ''} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
