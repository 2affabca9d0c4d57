"""The result of a governance pass as plain values: what the report, the cards and the command line show."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mlx_hybrid.config import to_tree
from mlx_hybrid.governance.inspection import Inspection
from mlx_hybrid.governance.ledger import Ledger, key_of, order_of

EXAMPLES = 3


def summarise(ledger: Ledger) -> dict[str, Any]:
    """Counts by stage, language and reason; languages before and after; flags; licences; examples by place."""
    tree = to_tree(ledger.config)
    del tree["workers"]
    return summary_of(ledger.items, tree, ledger.sources, ledger.alarms)


def summary_of(
    items: Sequence[Inspection],
    tree: dict[str, Any],
    sources: Sequence[dict[str, Any]],
    alarms: Sequence[str] = (),
) -> dict[str, Any]:
    """The same of records on which all is decided, under the settings `tree`, from some files."""
    kept = [item for item in items if item.decision is None]
    before, after = (Counter(item.language for item in part) for part in (items, kept))
    flags = Counter(pair for item in kept for pair in {(item.language, flag.reason) for flag in item.flags})
    counts = sorted(Counter(map(key_of, items)).items(), key=lambda pair: order_of(*pair[0]))
    return {
        "format": 1,
        "records": len(items),
        "kept": len(kept),
        "rejected": len(items) - len(kept),
        "languages": [
            {"language": name, "before": total, "kept": after[name]} for name, total in sorted(before.items())
        ],
        "counts": [
            {"stage": stage, "language": language, "reason": reason, "records": count}
            for (stage, language, reason), count in counts
            if stage != "kept"
        ],
        "flags": [
            {"flag": reason, "language": language, "records": count}
            for (language, reason), count in sorted(flags.items())
        ],
        "licences": dict(sorted(Counter(item.licence or "not stated" for item in kept).items())),
        "examples": examples(items),
        "config": tree,
        "sources": counted(sources, items),
        "alarms": list(alarms),
    }


def counted(sources: Sequence[dict[str, Any]], items: Sequence[Inspection]) -> list[dict[str, Any]]:
    """The files with the number of their records, in all and of each shape."""
    records = Counter(item.path for item in items)
    shapes: dict[str, dict[str, int]] = {}
    for (path, shape), n in sorted(Counter((item.path, item.shape) for item in items if item.shape).items()):
        shapes.setdefault(path, {})[shape] = n
    return [
        {**source, "records": records[source["path"]], "shapes": shapes.get(source["path"], {})}
        for source in sources
    ]


def examples(items: Sequence[Inspection]) -> list[dict[str, str]]:
    """The first three records of each reason, by place and numbers, without their text."""
    shown: dict[tuple[str, str], list[dict[str, str]]] = {}
    for item in items:
        if item.decision:
            rows = shown.setdefault(item.decision[:2], [])
            rows += [{"where": item.where, **item.decision._asdict()}] if len(rows) < EXAMPLES else []
    return [row for key in sorted(shown) for row in shown[key]]
