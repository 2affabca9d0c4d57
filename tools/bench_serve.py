"""Serving on a real model: mlx-lm's server and ours, tokens a second of the server's processor time.

    python tools/bench_serve.py MODEL [--clients 8] [--repeats 5]

The two take turns, each ratio is that of one turn. A newcomer is a client that comes when all others stream; it
waits for its first token.
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

import bench
import mlx.core as mx
import numpy as np

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # mlx-lm computes in the file's type, and half is slow on a CPU
        serve(in_float32(asked.model.expanduser(), Path(folder)), asked.clients, asked.repeats)


def in_float32(model: Path, folder: Path) -> Path:
    """A copy of the model whose floating weights are float32."""
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
        bench.head(
            "clients", "mlx-lm, tokens/s", "mlx-hybrid, tokens/s", "ratio", "quartiles", "newcomers' waits, s"
        )
        for count in (1, clients):
            turns = [[load(*processes[n], names[n], count) for n in SERVERS] for _ in range(repeats)]
            rates, waits = np.moveaxis(np.array(turns), -1, 0)
            medians = (f"{rate:.1f}" for rate in np.median(rates, axis=0))
            told = ", ".join(f"{wait:.1f}" for wait in np.median(waits, axis=0))
            bench.row(count, *medians, *bench.ratios(rates[:, 1], rates[:, 0]), told)
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


if __name__ == "__main__":
    main()
