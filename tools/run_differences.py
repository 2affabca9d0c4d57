"""What is not the same in two runs that should be, bit for bit: one that was broken off and one that was not."""

import json
from pathlib import Path

import numpy as np

from mlx_hybrid.run import Run


def newest(run: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return Run(run).saved_step() or 0


def compare_progress(whole: Path, broken: Path, name: str) -> list[str]:
    """Of the checkpoint `name`, without the times."""
    same = progress(whole / name) == progress(broken / name)
    return [] if same else [f"{name}/progress.json differs"]


def progress(folder: Path) -> dict:
    saved = json.loads((folder / "progress.json").read_text())
    return saved | {"seconds": 0, "window": saved["window"] | {"seconds": 0}}


def differences(whole: Path, broken: Path, files: list[str]) -> list[str]:
    """Files of arrays that are not those of the unbroken run, bit for bit."""
    from safetensors.numpy import load_file

    faults = []
    for name in files:
        if not (broken / name).exists():
            faults.append(f"{name} is missing")
            continue
        a, b = load_file(whole / name), load_file(broken / name)
        if a.keys() != b.keys() or not all(np.array_equal(a[key], b[key]) for key in a):
            faults.append(f"{name} differs")
    return faults


def compare(whole: Path, broken: Path) -> list[str]:
    """Differences between two finished runs."""
    last = f"checkpoints/step-{newest(whole):07d}"
    arrays = [f"{last}/adapter.safetensors", f"{last}/optimizer.safetensors", "adapter/adapters.safetensors"]
    faults = differences(whole, broken, arrays)
    if metrics(whole) != metrics(broken):
        faults.append("metrics.jsonl differs")
    results = Path("evaluation/held-out.json")
    if (whole / results).exists() and (whole / results).read_bytes() != (broken / results).read_bytes():
        faults.append(f"{results} differs")
    if names(whole) != names(broken):
        faults.append(f"files differ: {sorted(names(whole) ^ names(broken))}")
    return faults


def names(run: Path) -> set[str]:
    """Files of a run but for its older checkpoints."""
    found = {str(path.relative_to(run)) for path in run.rglob("*")}
    return {name for name in found if not name.startswith("checkpoints/step-")}


def metrics(run: Path) -> list[tuple]:
    """Steps, losses and λ; speeds and times differ by nature."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss_nats_per_token", "valid_loss_nats_per_token", "gradient_norm", "mixing")
    return [tuple(str(row.get(key)) for key in keys) for row in rows]
