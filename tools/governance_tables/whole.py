"""The whole pass, from file to folder."""

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from governance_tables.planted import near_set
from governance_tables.text import show
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.govern import govern_files


def whole(sizes: tuple[int, ...] = (100_000,)) -> None:
    """Seconds and memory of a whole pass from file to folder, by size and workers."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.jsonl"
            write_records(path, size)
            for workers in (1, 2) if size <= 100_000 else (2,):
                output = Path(folder) / f"out-{workers}"
                config = GovernanceConfig(workers=workers, max_reject_share=1.0)
                started, spent = time.perf_counter(), processor_seconds()
                result = govern_files([path], output, config)
                seconds, spent = time.perf_counter() - started, processor_seconds() - spent
                kept = sum(1 for _ in result.kept())
                digest = json.loads((output / "manifest.json").read_text())["outputs"][2]["sha256"][:12]
                rates = f"{seconds:.1f}", f"{spent:.1f}", int(size / seconds), f"{peak_mb():.0f}"
                rows.append([size, workers, *rates, kept, digest])
    heads = ["records", "workers", "seconds", "processor s", "records/s", "peak MB of the main process"]
    show("Whole pass", [*heads, "kept", "kept.jsonl"], rows)


def write_records(path: Path, size: int) -> None:
    """`size` records made of the near-duplicate set; beyond it, texts are joined anew so that they differ."""
    records, _, _ = near_set(100_000)
    rng = random.Random(7)
    with path.open("w", encoding="utf-8") as file:
        for i in range(size):
            code, text = records[i % len(records)]
            if i >= len(records):
                cut = rng.randrange(len(text))
                other = records[rng.randrange(len(records))][1]
                text = f"{text[cut:]} {other} {text[:cut]}"[: len(text)]
            file.write(json.dumps({"text": text, "language": code}, ensure_ascii=False) + "\n")


def processor_seconds() -> float:
    """Of this process and those it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def million() -> None:
    """The whole pass at a million records."""
    whole((200_000, 1_000_000))


def linear() -> None:
    """Processor time by size."""
    whole((25_000, 200_000))
