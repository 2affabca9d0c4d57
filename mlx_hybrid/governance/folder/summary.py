"""The result of a governance pass as plain values: what the report, the cards and the command line show."""

from collections import Counter
from typing import Any

from mlx_hybrid.config import to_tree
from mlx_hybrid.governance.ledger import Ledger

EXAMPLES = 3


def summarise(ledger: Ledger) -> dict[str, Any]:
    """Counts by stage, language and reason; languages before and after; flags; licences; examples by place."""
    kept = list(ledger.kept())
    before, after = (Counter(item.language for item in items) for items in (ledger.items, kept))
    flags = Counter(pair for item in kept for pair in {(item.language, flag.reason) for flag in item.flags})
    tree = to_tree(ledger.config)
    del tree["workers"]
    return {
        "format": 1,
        "records": len(ledger.items),
        "kept": len(kept),
        "rejected": len(ledger.items) - len(kept),
        "languages": [
            {"language": name, "before": total, "kept": after[name]} for name, total in sorted(before.items())
        ],
        "counts": [
            {"stage": stage, "language": language, "reason": reason, "records": count}
            for (stage, language, reason), count in ledger.counts.items()
            if stage != "kept"
        ],
        "flags": [
            {"flag": reason, "language": language, "records": count}
            for (language, reason), count in sorted(flags.items())
        ],
        "licences": dict(sorted(Counter(item.licence or "not stated" for item in kept).items())),
        "examples": examples(ledger),
        "config": tree,
        "sources": ledger.sources,
        "alarms": ledger.alarms,
    }


def examples(ledger: Ledger) -> list[dict[str, str]]:
    """The first three records of each reason, by place and numbers, without their text."""
    shown: dict[tuple[str, str], list[dict[str, str]]] = {}
    for item in ledger.items:
        if item.decision:
            rows = shown.setdefault(item.decision[:2], [])
            rows += [{"where": item.where, **item.decision._asdict()}] if len(rows) < EXAMPLES else []
    return [row for key in sorted(shown) for row in shown[key]]
