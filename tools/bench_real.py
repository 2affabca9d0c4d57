"""Ratios on a real model: this code beside an earlier revision of it, on the same records and the same core.

    python tools/bench_real.py MODEL --data FOLDER [--before REVISION] [--records 13] [--repeats 5] [--what generate]

Each side runs in a process of its own; the two take turns, each ratio is that of one turn, times are processor time.
FOLDER holds `sib200/` and `flores200/` as `mlx-hybrid task` reads them. `generate` translates FLORES from English.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import bench
import numpy as np

from mlx_hybrid.evaluation.benchmarks.tasks import build_records
from mlx_hybrid.evaluation.sets import evaluation_set, from_fields, item, limited
from mlx_hybrid.models.base import read_tokenizer
from mlx_hybrid.records.examples import question_tokens

ROOT = Path(__file__).parents[1]
LANGUAGES = ("deu_Latn", "eng_Latn", "ind_Latn", "rus_Cyrl", "spa_Latn", "swh_Latn", "tur_Latn", "zho_Hans")
NAMES = {
    "score": {"options": "answers to which of the labels", "losses": "loss of the answers"},
    "generate": {"generate": "translations of at most 48 tokens"},
}
WORKER = """
import json, sys, time
try:
    from mlx_hybrid.models.blas import prefer_openblas
except ImportError:  # as it was before
    from mlx_hybrid.blas import prefer_openblas
prefer_openblas()
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import load_model, load_tokenizer
from mlx_hybrid.adapters.frozen import use_fast_products
try:
    from mlx_hybrid.models.activations import use_fast_activations
except ImportError:
    use_fast_activations = lambda: None
from mlx_hybrid.evaluation.scoring import OptionItem, score_options, sequence_nll

use_fast_activations()
model, _ = load_model(Path(sys.argv[1]))
model.set_dtype(mx.float32)
use_fast_products(model)
items = [OptionItem(*item) for item in json.loads(sys.stdin.readline())]
texts = [item.prompt + item.options[0] for item in items]
masks = [[0] * len(item.prompt) + [1] * len(item.options[0]) for item in items]

def generate():
    tokenizer, prompts = load_tokenizer(Path(sys.argv[1])), [item.prompt for item in items]
    try:
        from mlx_hybrid.adapters.frozen import unpack
        from mlx_hybrid.models.generate import Sampling, answers
    except ImportError:  # as translations were made before
        from mlx_lm.generate import batch_generate
        return [len(batch_generate(model, tokenizer, prompts, max_tokens=48).texts)]
    unpack(model)
    return [len(list(answers(model, tokenizer, prompts, [Sampling(max_tokens=48)] * len(items))))]

jobs = {
    "options": lambda: [scores.reshape(len(scores), -1)[:, 0].tolist() for scores in score_options(model, items)],
    "losses": lambda: sequence_nll(model, texts, masks)[0].tolist(),
    "generate": generate,
}
for line in sys.stdin:
    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.process_time()
    values = jobs[line.strip()]()
    print(json.dumps([time.process_time() - start, mx.get_peak_memory(), values]), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--before", default="105d0fc", help="revision whose code is the reference")
    parser.add_argument("--records", type=int, default=13, help="of each of the eight languages")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--what", choices=NAMES, default="score")
    asked = parser.parse_args()
    make = flores_items if asked.what == "generate" else sib200_items
    items = make(asked.model, asked.data, asked.records)
    print(f"{asked.model.name}: {len(items)} records, {len(LANGUAGES)} languages")
    bench.head("what", "before, s", "now, s", "ratio", "quartiles", "peak, MB", "largest difference")
    with tempfile.TemporaryDirectory() as folder:
        git = ["git", "-C", str(ROOT), "archive", asked.before, "mlx_hybrid"]
        archive = subprocess.run(git, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        sides = [start(Path(folder), asked.model, items), start(ROOT, asked.model, items)]
        for job, name in NAMES[asked.what].items():
            turns = [[tell(side, job) for side in sides] for _ in range(asked.repeats)]
            before, now = (list(zip(*own)) for own in zip(*turns))
            seconds = (f"{np.median(times):.1f}" for times, *_ in (before, now))
            peaks = " → ".join(f"{max(peaks) / 1e6:.0f}" for _, peaks, _ in (before, now))
            gap = max(abs(np.subtract(a, b)).max() for a, b in zip(before[2][0], now[2][0]))
            bench.row(name, *seconds, *bench.ratios(now[0], before[0]), peaks, f"{gap:.1e}")
        for side in sides:
            side.communicate()


def sib200_items(model: Path, data: Path, records: int) -> list[tuple[list[int], list[list[int]]]]:
    """(prompt, options) as token ids, as `evaluate` asks them."""
    rows = build_records("sib200", "test", LANGUAGES, folder=data)
    chosen = limited(evaluation_set(from_fields(rows, "sib200")), records, 0)
    tokenizer = read_tokenizer(str(model))
    asked = [item(record, own, tokenizer) for record, own in zip(chosen.records, chosen.options)]
    return [(own.prompt, own.options) for own in asked]


def flores_items(model: Path, data: Path, records: int) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts as `evaluate` has them translated, without options."""
    others = [language for language in LANGUAGES if language != "eng_Latn"]
    both_ways = build_records("flores", "test", others, folder=data)
    rows = [row for row in both_ways if row["source_language"] == "eng_Latn"]
    chosen = limited(evaluation_set(from_fields(rows, "flores")), records, 0)
    tokenizer = read_tokenizer(str(model))
    return [(question_tokens(record, tokenizer), [[]]) for record in chosen.records]


def start(package: Path, model: Path, items: list) -> subprocess.Popen:
    words, pipe = [sys.executable, "-c", WORKER, str(model.expanduser())], subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(package)}
    side = subprocess.Popen(words, env=environment, cwd=package, stdin=pipe, stdout=pipe, text=True)
    side.stdin.write(json.dumps(items) + "\n")
    return side


def tell(side: subprocess.Popen, job: str) -> tuple[float, int, list]:  # seconds, bytes, values
    side.stdin.write(f"{job}\n")
    side.stdin.flush()
    return json.loads(side.stdout.readline())


if __name__ == "__main__":
    main()
