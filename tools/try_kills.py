"""Kill a training run at random moments with SIGKILL, resume each time, and compare the end with an unbroken run.

python tools/try_kills.py [--kills 200] [--seed 0] [--longest SECONDS]

A kill may come while Python starts, while data are read, in a step, in a validation or in the middle of a checkpoint;
then the run goes on with `--resume`, until enough kills are done, and ends. The last adapter, the optimiser and the
best adapter must be those of the unbroken run, bit for bit, and the metrics those of its steps.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_hybrid.training.sources import SAMPLE_FOLDER

SETTINGS = (
    "model=bundled", "method=hybrid", f"data.paths=[{SAMPLE_FOLDER / 'topics.jsonl'}]",
    "governance.enabled=false", "evaluate=false",
    "adapter.start=zeros", "adapter.layers=1", "train.batch_size=2", "train.report_every=5", "train.validate_every=20",
    "train.save_every=1", "data.valid_share=0.01", "data.test_share=0",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What the kills came to; `faults` is empty when all is as it should be."""

    kills: int
    restarts: int
    from_nothing: int
    seconds: float
    faults: tuple[str, ...]


def command(run: Path, settings: tuple[str, ...]) -> list[str]:
    """Begin the run, or go on with it where a checkpoint is there."""
    program = [sys.executable, "-m", "mlx_hybrid", "finetune"]
    if list(run.glob("checkpoints/step-*")):
        return [*program, "--resume", str(run)]
    return [*program, *(f"--set={s}" for s in settings), "-o", str(run)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONWARNINGS": "ignore", "OPENBLAS_NUM_THREADS": "1"}


def start(run: Path, settings: tuple[str, ...]) -> subprocess.Popen:
    return subprocess.Popen(
        command(run, settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def finish(process: subprocess.Popen, what: str) -> list[str]:
    _, said = process.communicate()
    return (
        [] if process.returncode == 0 else [f"{what} ended with {process.returncode}: {said.strip()[-300:]}"]
    )


def try_kills(folder: Path, kills: int, seed: int, longest: float, settings: tuple[str, ...]) -> Outcome:
    """Train once unbroken and once killed `kills` times, each after up to `longest` seconds of work."""
    begun, rng = time.monotonic(), random.Random(seed)
    whole, broken = folder / "whole", folder / "broken"
    faults = finish(start(whole, settings), "the unbroken run")
    done = from_nothing = restarts = 0
    while done < kills and not faults:
        if broken.exists() and not list(broken.glob("checkpoints/step-*")):
            from_nothing += 1
            subprocess.run(["rm", "-rf", str(broken)], check=True)
        process = start(broken, settings)
        restarts += 1
        wait(process, broken, rng.uniform(0, longest))
        if process.poll() is not None:
            faults += finish(process, f"the run after {done} kills")
            break
        process.kill()
        process.communicate()
        done += 1
    if not faults and status(broken) != "finished":
        faults += finish(start(broken, settings), "the last resumption")
    faults += [] if faults else compare(whole, broken)
    return Outcome(done, restarts, from_nothing, time.monotonic() - begun, tuple(faults))


def wait(process: subprocess.Popen, run: Path, seconds: float) -> None:
    """Let the process be at work for `seconds`: from when it first writes, or for twice as long since its start."""
    latest = time.monotonic() + 60
    before = newest(run)
    while process.poll() is None and time.monotonic() < latest and newest(run) == before:
        time.sleep(0.01)
    ends = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < ends:
        time.sleep(0.005)


def newest(run: Path) -> str:
    return max((path.name for path in run.glob("checkpoints/*")), default="")


def status(run: Path) -> str:
    path = run / "run.json"
    return json.loads(path.read_text()).get("status", "") if path.exists() else ""


def compare(whole: Path, broken: Path) -> list[str]:
    """Differences between two finished runs."""
    from safetensors.numpy import load_file

    last = max(path.name for path in (whole / "checkpoints").glob("step-*"))
    files = [f"checkpoints/{last}/adapter.safetensors", f"checkpoints/{last}/optimizer.safetensors",
             "adapter/adapters.safetensors"]  # fmt: skip
    faults = []
    for name in files:
        if not (broken / name).exists():
            faults.append(f"{name} is missing")
            continue
        a, b = load_file(whole / name), load_file(broken / name)
        if a.keys() != b.keys() or not all(np.array_equal(a[key], b[key]) for key in a):
            faults.append(f"{name} differs")
    if metrics(whole) != metrics(broken):
        faults.append("metrics.jsonl differs")
    return faults


def metrics(run: Path) -> list[tuple]:
    """Steps, losses and λ; speeds and times differ by nature."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss_nats_per_token", "valid_loss_nats_per_token", "gradient_norm", "mixing")
    return [tuple(str(row.get(key)) for key in keys) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    settings = (*SETTINGS, f"train.steps={arguments.steps}")
    with tempfile.TemporaryDirectory() as folder:
        outcome = try_kills(Path(folder), arguments.kills, arguments.seed, arguments.longest, settings)
    print(
        f"{outcome.kills} kills, {outcome.restarts} starts, {outcome.from_nothing} before the first checkpoint, "
        f"{outcome.seconds:.0f} s: {'; '.join(outcome.faults) or 'equal to the unbroken run, bit for bit'}."
    )
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
