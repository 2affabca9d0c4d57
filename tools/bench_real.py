"""Ratios on a real model: this code beside an earlier revision of it, on the same records and the same core.

    python tools/bench_real.py MODEL --data FOLDER [--before REVISION] [--records 13] [--repeats 5]
    python tools/bench_real.py MODEL --data FOLDER --what generate [--records 13]
    python tools/bench_real.py MODEL --data FOLDER --what serve [--clients 8]

Each side runs in a process of its own, on one thread; the two take turns, each ratio is that of one turn, times are
processor time. FOLDER holds `sib200/` as `mlx-hybrid task` reads it. `generate` answers the records' texts, to be
translated, side by side, beside mlx-lm's `batch_generate`, which was used before; `serve` has clients ask mlx-lm's
server and ours, in tokens a second of the server's processor time.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
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
def texts_of(*_):
    from mlx_lm.utils import load_tokenizer
    tokenizer = load_tokenizer(Path(sys.argv[1]))
    try:
        from mlx_hybrid.models.generate import Sampling, answers
        from mlx_hybrid.adapters.frozen import unpack
    except ImportError:
        from mlx_lm.generate import batch_generate
        made = batch_generate(model, tokenizer, [item.prompt for item in items], max_tokens=32).texts
        return [len(tokenizer.encode(text)) for text in made]
    unpack(model, 1e10)
    made = dict(answers(model, tokenizer, [item.prompt for item in items], [Sampling(max_tokens=32)] * len(items)))
    return [len(made[i]) for i in range(len(items))]


jobs["generate"] = texts_of
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
    parser.add_argument("--what", choices=("score", "generate", "serve"), default="score")
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    if options.what == "serve":
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # mlx-lm computes in the file's type, and half is slow on a CPU
            serve(in_float32(options.model.expanduser(), Path(folder)), options.clients, options.repeats)
        return
    items = sib200_items(options.model, options.data, options.records)
    print(f"{options.model.name}: {len(items)} records of SIB-200, {len(LANGUAGES)} languages")
    print("| what | before, s | now, s | ratio | quartiles | peak, MB | largest difference |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        unpack(options.before, Path(folder))
        sides = [Side(Path(folder), options.model, items), Side(ROOT, options.model, items)]
        score = {"options": "answers to which of the labels", "losses": "loss of the answers"}
        for job, name in (score if options.what == "score" else {"generate": "answers of 32 tokens"}).items():
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


def in_float32(model: Path, folder: Path) -> Path:
    """A copy of the model whose floating weights are float32."""
    import mlx.core as mx

    place = Path(shutil.copytree(model, folder / model.name))
    for path in place.glob("*.safetensors"):
        weights = mx.load(str(path))
        whole = {
            n: w.astype(mx.float32) if mx.issubdtype(w.dtype, mx.floating) else w for n, w in weights.items()
        }
        mx.save_safetensors(str(path), whole, {"format": "mlx"})
    return place


SERVERS = {
    "mlx-lm": ["-m", "mlx_lm.server", "--model", "{model}", "--port", "{port}", "--log-level", "ERROR"],
    "mlx-hybrid": ["-m", "mlx_hybrid", "serve", "{model}", "--port", "{port}"],
}


def serve(model: Path, clients: int, repeats: int) -> None:
    """Tokens a second of processor time at one client and at several, and a newcomer's wait for its first token."""
    processes = {}
    for port, (name, words) in enumerate(SERVERS.items(), 8191):
        words = [word.format(model=model, port=port) for word in words]
        fast = {"LD_PRELOAD": "libopenblas.so.0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, **fast, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL)
        processes[name] = (process, f"http://127.0.0.1:{port}/v1")
    try:
        names = {}
        for name, (process, url) in processes.items():
            names[name] = model.name if name == "mlx-hybrid" else str(model)
            wait_for(url)
            load(process, url, names[name], 1)
        print(
            "| clients | mlx-lm, tokens/s | mlx-hybrid, tokens/s | ratio | quartiles | newcomer's first token, s |"
        )
        print("|---|---|---|---|---|---|")
        for count in (1, clients):
            turns = [[load(*processes[n], names[n], count) for n in SERVERS] for _ in range(repeats)]
            rates = np.array([[rate for rate, _ in turn] for turn in turns])
            waits = np.median([[wait for _, wait in turn] for turn in turns], axis=0)
            low, middle, high = np.quantile(rates[:, 1] / rates[:, 0], (0.25, 0.5, 0.75))
            theirs, ours = np.median(rates, axis=0)
            told = f"{middle:.2f} | {low:.2f}–{high:.2f} | {waits[0]:.1f}, {waits[1]:.1f}"
            print(f"| {count} | {theirs:.1f} | {ours:.1f} | {told} |", flush=True)
    finally:
        for process, _ in processes.values():
            process.terminate()


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/models").read()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{url} does not answer.")


def load(process: subprocess.Popen, url: str, model: str, clients: int) -> tuple[float, float]:
    """(tokens a second of processor time, seconds to the first token of a client that comes when all others stream)"""
    begun = threading.Barrier(clients)
    before = processor_time(process.pid)
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(ask, url, model, number, begun) for number in range(clients)]
        told = [one.result() for one in asked]
    spent = processor_time(process.pid) - before
    return sum(count for count, _ in told) / spent, told[-1][1]


def ask(url: str, model: str, number: int, begun: threading.Barrier) -> tuple[int, float]:
    """Stream one answer; (its tokens, seconds until the first). The last client waits until all others stream."""
    last = number == begun.parties - 1
    if last:
        begun.wait()
    prompt = f"Story number {number}, told {time.time()}: once upon a time there was"
    asked = {"model": model, "prompt": prompt, "max_tokens": 48, "stream": True}
    body = json.dumps(asked | {"stream_options": {"include_usage": True}}).encode()
    request = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
    start, first, tokens = time.monotonic(), 0.0, 0
    with urllib.request.urlopen(request) as reply:
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            if not first:
                first = time.monotonic() - start
                if not last:
                    begun.wait()
            tokens = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", tokens)
    return tokens, first


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
