"""Ratios on a real model: this code beside an earlier revision of it, on the same records and the same core.

    python tools/bench_real.py MODEL --data FOLDER [--before REVISION] [--records 13] [--repeats 5]

Each side runs in a process of its own, on one thread; the two take turns, each ratio is that of one turn, times are
processor time. FOLDER holds `sib200/` as `mlx-hybrid task` reads it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
LANGUAGES = ("deu_Latn", "eng_Latn", "ind_Latn", "rus_Cyrl", "spa_Latn", "swh_Latn", "tur_Latn", "zho_Hans")
WORKER = """
import json, sys, time
try:
    from mlx_hybrid.models.blas import prefer_openblas
except ImportError:
    from mlx_hybrid.blas import prefer_openblas
prefer_openblas()
import mlx.core as mx
from mlx_lm.utils import load_model
from pathlib import Path
from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.evaluation.scoring import OptionItem, score_options, sequence_nll
model, _ = load_model(Path(sys.argv[1]))
model.set_dtype(mx.float32)
use_fast_products(model)
items = [OptionItem(*item) for item in json.loads(sys.stdin.readline())]
texts = [item.prompt + item.options[0] for item in items]
masks = [[0] * len(item.prompt) + [1] * len(item.options[0]) for item in items]
jobs = {
    "options": lambda: [scores.tolist() for scores in score_options(model, items)],
    "losses": lambda: sequence_nll(model, texts, masks)[0].tolist(),
}
for line in sys.stdin:
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.process_time()
    values = jobs[line.strip()]()
    print(json.dumps([time.process_time() - start, mx.get_peak_memory(), values]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--before", default="105d0fc", help="revision whose code is the reference")
    parser.add_argument("--records", type=int, default=13, help="of each of the eight languages")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    items = sib200_items(options.model, options.data, options.records)
    print(f"{options.model.name}: {len(items)} records of SIB-200, {len(LANGUAGES)} languages")
    print("| what | before, s | now, s | ratio | quartiles | peak, MB | largest difference |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        unpack(options.before, Path(folder))
        sides = [Side(Path(folder), options.model, items), Side(ROOT, options.model, items)]
        for job, name in (("options", "answers to which of the labels"), ("losses", "loss of the answers")):
            print(row(name, [[side.run(job) for side in sides] for _ in range(options.repeats)]), flush=True)
        for side in sides:
            side.close()


def sib200_items(model: Path, data: Path, records: int) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt, options) as token ids, as `evaluate` asks them."""
    sys.path.insert(0, str(ROOT))
    from mlx_hybrid.evaluation.benchmarks.tasks import build_records
    from mlx_hybrid.evaluation.sets import evaluation_set, from_fields, item, limited
    from mlx_hybrid.models.base import load_tokenizer_of

    rows = build_records("sib200", "test", LANGUAGES, folder=data)
    chosen = limited(evaluation_set(from_fields(rows, "sib200")), records, 0)
    tokenizer = load_tokenizer_of(str(model))
    asked = [item(record, own, tokenizer) for record, own in zip(chosen.records, chosen.options)]
    return [(own.prompt, own.options) for own in asked]


def unpack(revision: str, folder: Path) -> None:
    """The package as it was at a revision."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, "mlx_hybrid"], check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)


class Side:
    """A process that holds the model and does a job when told to."""

    def __init__(self, package: Path, model: Path, items: list):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(model.expanduser())],
            env={**os.environ, "PYTHONPATH": str(package), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            cwd=package, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.tell(json.dumps(items))

    def tell(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def run(self, job: str) -> tuple[float, int, list]:
        """(seconds, bytes, values)"""
        self.tell(job)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def row(name: str, turns: list) -> str:
    before, now = ([turn[side] for turn in turns] for side in (0, 1))
    seconds = [np.median([own[0] for own in side]) for side in (before, now)]
    low, middle, high = np.quantile([b[0] / a[0] for a, b in turns], (0.25, 0.5, 0.75))
    peaks = [max(own[1] for own in side) / 1e6 for side in (before, now)]
    gap = max(abs(np.subtract(a, b)).max() for a, b in zip(before[0][2], now[0][2]))
    return (
        f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} | {middle:.2f} | {low:.2f}–{high:.2f} | "
        f"{peaks[0]:.0f} → {peaks[1]:.0f} | {gap:.1e} |"
    )


if __name__ == "__main__":
    main()
