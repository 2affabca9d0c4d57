"""Real text to measure on, what the stages make of it, and tables as Markdown."""

import lzma
import os
import random
import sys
from pathlib import Path

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.govern import CHUNK
from mlx_hybrid.governance.inspection import Inspector, Ledger
from mlx_hybrid.records.record import Record

DATA = Path(os.environ.get("MLX_HYBRID_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
VARIANTS = ("arb_Latn", "zho_Hant", "mya_Mymr")  # beyond the 19 languages
SHORTEST = {"zh": 35, "th": 50}


def flores() -> dict[str, list[str]]:
    paths = sorted((DATA / "flores200" / "dev").glob("*.txt"))
    return {path.stem: path.read_text(encoding="utf-8").splitlines() for path in paths}


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` distinct lines over the 19 languages as (language, text), shuffled.

    They have 58 to 400 characters (from 35 in Chinese, 50 in Thai) and no links.
    """
    pools = {}
    for path in sorted((DATA / "text").glob("*.txt.xz")):
        lines = dict.fromkeys(lzma.decompress(path.read_bytes()).decode("utf-8").splitlines())
        least = SHORTEST.get(path.name[:2], 58)
        right = [line for line in lines if least <= len(line) <= 400 and "http" not in line]
        pools[path.name.split(".")[0]] = right
    rng = random.Random(seed)
    for pool in pools.values():
        rng.shuffle(pool)
    chosen: list[tuple[str, str]] = []
    place = 0
    while len(chosen) < count and any(place < len(pool) for pool in pools.values()):
        chosen += [(name, pool[place]) for name, pool in pools.items() if place < len(pool)]
        place += 1
    chosen = chosen[:count]
    rng.shuffle(chosen)
    return chosen


def judged(records: list[Record], config: GovernanceConfig) -> Ledger:
    """What the stages decide on records, in this process and without a file."""
    ledger, inspector = Ledger(config), Inspector(config)
    for start in range(0, len(records), CHUNK):
        ledger.add(inspector.inspect(records[start : start + CHUNK]))
    ledger.decide()
    return ledger


def rejected(records: list[Record], config: GovernanceConfig) -> list[Record]:
    return [record for record, item in zip(records, judged(records, config).items) if item.decision]


def show(title: str, heads: list[str], rows: list[list]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row)} |")
    sys.stdout.flush()
