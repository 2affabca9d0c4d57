"""The result of a governance pass as plain values: what the report, the cards and the command line show."""

from collections import Counter
from typing import Any

from mlx_hybrid.config import GovernanceConfig, to_tree
from mlx_hybrid.governance.curated import Curated
from mlx_hybrid.governance.ledger import Ledger

EXAMPLES = 3


def summarise(curated: Curated, config: GovernanceConfig) -> dict[str, Any]:
    """Counts by stage, language and reason; languages before and after; flags; licences; examples by place."""
    ledger = curated.ledger
    counts = ledger.counts()
    before = Counter(item.language for item in ledger.items)
    kept = Counter({language: count for (stage, language, _), count in counts.items() if stage == "kept"})
    tree = to_tree(config)
    del tree["workers"]
    return {
        "format": 1,
        "records": len(ledger.items),
        "kept": kept.total(),
        "rejected": len(ledger.items) - kept.total(),
        "languages": [
            {"language": name, "before": total, "kept": kept[name]} for name, total in sorted(before.items())
        ],
        "counts": [
            {"stage": stage, "language": language, "reason": reason, "records": count}
            for (stage, language, reason), count in counts.items()
            if stage != "kept"
        ],
        "flags": [
            {"flag": reason, "language": language, "records": count}
            for (language, reason), count in sorted(ledger.flag_counts().items())
        ],
        "licences": licences(ledger),
        "examples": examples(curated),
        "config": tree,
        "sources": curated.sources,
        "alarms": curated.alarms,
    }


def licences(ledger: Ledger) -> dict[str, int]:
    """Kept records by their licence; those that state none under "not stated"."""
    names = [item.licence or "not stated" for item in ledger.items if item.decision is None]
    return dict(sorted(Counter(names).items()))


def examples(curated: Curated) -> list[dict[str, str]]:
    """The first three records of each reason, by place and numbers, without their text."""
    seen: Counter[tuple[str, str]] = Counter()
    shown = []
    for index, decision in enumerate(curated.ledger.decisions):
        if decision:
            seen[decision[:2]] += 1
        if decision and seen[decision[:2]] <= EXAMPLES:
            shown.append({"where": curated.where(index), **decision._asdict()})
    return sorted(shown, key=lambda item: (item["stage"], item["reason"]))
