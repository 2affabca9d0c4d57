"""Near duplicates, beside datasketch."""

import time
from collections import Counter

from governance_tables.planted import alike, near_set
from governance_tables.text import rejected, show
from governance_tables.whole import peak_mb
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.records.record import Record


def score_near(
    removed: set[int], copies: dict[int, tuple[int, str]], templates: set[int], similar: set[int]
) -> list:
    """Recall by kind, and among `similar` pairs: a pair is found when either of its two is removed."""
    reached = sum(bool(removed & {copy, copies[copy][0]}) for copy in similar) / max(1, len(similar))
    found = Counter(kind for copy, (original, kind) in copies.items() if removed & {copy, original})
    total = Counter(kind for _, kind in copies.values())
    pairs = set(copies) | {original for original, _ in copies.values()}
    recall = sum(found.values()) / len(copies)
    by_kind = [f"{found[kind] / total[kind]:.2f}" for kind in sorted(total)]
    lost = f"{len(removed & templates) / len(templates):.2%}"
    return [f"{recall:.3f}", f"{reached:.3f}", *by_kind, lost, len(removed - pairs - templates)]


def near(size: int = 100_000) -> None:
    """Recall on planted copies beside datasketch, on one core."""
    records, copies, templates = near_set(size)
    similar = {copy for copy, (original, _) in copies.items() if alike(records[copy], records[original])}
    rows = []
    methods = {"ours, J 0.8": ours(0.8), "ours, J 0.7": ours(0.7), "datasketch": datasketch}
    for name, method in methods.items():
        before = time.process_time()
        removed = method(records)
        if removed is None:
            rows.append([name, "not installed"])
            continue
        seconds = time.process_time() - before
        rows.append([name, int(len(records) / seconds), *score_near(removed, copies, templates, similar)])
    kinds = sorted({kind for _, kind in copies.values()})
    heads = ["method", "records/s", "recall", "at J ≥ 0.8", *kinds, "templated removed", "others removed"]
    title = f"{len(records)} records, {len(copies)} planted, {len(templates)} templated, {len(similar)} at J ≥ 0.8"
    show(f"Near-duplicates, {title}", heads, rows)
    print(f"\nPeak memory {peak_mb():.0f} MB, records and text included.")


def ours(threshold: float):
    config = GovernanceConfig(only=("exact", "near"), near_threshold=threshold, max_reject_share=1.0)

    def run(texts: list[tuple[str, str]]) -> set[int]:
        records = [Record({"text": t, "language": code}, "bench", i) for i, (code, t) in enumerate(texts)]
        return {record.line for record in rejected(records, config)}

    return run


def datasketch(records: list[tuple[str, str]]) -> set[int] | None:
    """Word 5-grams, 14 bands of 8, Jaccard of the signatures at 0.7, as its users run it."""
    try:
        from datasketch import LeanMinHash, MinHash, MinHashLSH
    except ImportError:
        return None
    index = MinHashLSH(params=(14, 8), num_perm=112)
    removed = set()
    for line, (_, text) in enumerate(records):
        words = text.lower().split()
        sketch = MinHash(num_perm=112)
        sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))])
        if any(sketch.jaccard(kept) >= 0.7 for _, kept in index.query(sketch)):
            removed.add(line)
        else:
            index.insert((line, LeanMinHash(sketch)), sketch, check_duplication=False)
    return removed


def near_small() -> None:
    """The comparison at a fifth of the size."""
    near(20_000)
