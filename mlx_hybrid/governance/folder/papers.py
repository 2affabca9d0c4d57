"""What became of the records: as plain values, as a dataset card (README.md) and as a page (report.html)."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlx_hybrid.config import to_tree
from mlx_hybrid.files import render
from mlx_hybrid.governance.folder.samples import PAIRED, samples
from mlx_hybrid.governance.inspection import Inspection
from mlx_hybrid.governance.ledger import Ledger, count
from mlx_hybrid.governance.rules import RULES, Decision
from mlx_hybrid.records.languages import card_code

Row = dict[str, Any]
SHOWN = 3  # of each reason
PLACE = re.compile(r"(.+?:\d+)\b")
COUNTED = ("stage", "language", "reason", "records")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def summarise(ledger: Ledger) -> Row:
    """Counts by stage, language and reason; languages before and after; flags; licences; examples by place."""
    tree = to_tree(ledger.config)
    del tree["workers"]
    return summary_of(ledger.items, tree, ledger.sources, ledger.alarms)


def summary_of(
    items: Sequence[Inspection], tree: Row, sources: Sequence[Row], alarms: Sequence[str] = ()
) -> Row:
    """The same of records on which all is decided, under the settings `tree`, from some files."""
    kept = [item for item in items if item.decision is None]
    before, after = (Counter(item.language for item in part) for part in (items, kept))
    flags = Counter(pair for item in kept for pair in {(item.language, flag.reason) for flag in item.flags})
    return {
        "format": 1,
        "records": len(items),
        "kept": len(kept),
        "rejected": len(items) - len(kept),
        "languages": [{"language": k, "before": n, "kept": after[k]} for k, n in sorted(before.items())],
        "counts": [dict(zip(COUNTED, (*key, n))) for key, n in count(items).items() if key[0] != "kept"],
        "flags": [{"flag": flag, "language": k, "records": n} for (k, flag), n in sorted(flags.items())],
        "licences": dict(sorted(Counter(item.licence or "not stated" for item in kept).items())),
        "examples": examples(items),
        "config": tree,
        "sources": counted(sources, items),
        "alarms": list(alarms),
    }


def counted(sources: Sequence[Row], items: Sequence[Inspection]) -> list[Row]:
    """The files with the number of their records, in all and of each shape."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        found[item.path][item.shape] += 1
    shapes = {path: {name: own[name] for name in sorted(own) if name} for path, own in found.items()}
    each = [(source, source["path"]) for source in sources]
    return [s | {"records": found[path].total(), "shapes": shapes.get(path, {})} for s, path in each]


def examples(items: Sequence[Inspection]) -> list[dict[str, str]]:
    """The first three records of each reason, or flag that names another, by place and numbers, without their text."""
    shown: dict[tuple[str, str], list[dict[str, str]]] = {}
    for item in items:
        pairs = [(flag, PLACE.match(flag.detail)) for flag in item.flags if flag.reason in PAIRED]
        found = [Decision("near", *flag, place[1]) for flag, place in pairs if place]
        for decision in [item.decision] if item.decision else found:
            rows = shown.setdefault(decision[:2], [])
            told = {"where": item.where, **decision._asdict()}
            if len(rows) < SHOWN and not any(row["match"] == item.where for row in rows):
                rows.append(told)
    return [row for key in sorted(shown) for row in shown[key]]


def dataset_card(summary: Row) -> str:
    """A card with the metadata the Hub reads and what a reader must know: sources, rules, losses, limits."""
    languages = {card_code(row["language"]) for row in summary["languages"] if row["kept"]}
    front = {
        "language": sorted(languages - {"und"}),
        "annotations_creators": ["no-annotation"],
        "size_categories": [next((name for most, name in SIZES if summary["kept"] < most), "n>1M")],
        "configs": [{"config_name": "default", "data_files": "kept.jsonl"}],
        "tags": ["mlx-hybrid", "governed"],
    }
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    rows = [tuple(row.values()) for row in summary["languages"]]
    return fill("card.md.jinja", summary, front=text, language_rows=rows)


def report_page(folder: Path, summary: Row) -> str:
    """One page, no script and nothing fetched; the same lines and summary give the same bytes."""
    texts = samples(folder, summary)

    def told(rows: list[Row], key: str) -> list[tuple]:
        """Name, count, rule and texts of each reason or flag, the commonest first."""
        counts = totals((row[key], row["records"]) for row in rows)
        return [(name, n, RULES.get(name), texts.get(name, ())) for name, n in counts.most_common()]

    page = fill(
        "page.html.jinja",
        summary,
        shares=[(*row.values(), row["kept"] / max(row["before"], 1)) for row in summary["languages"]],
        by_language=[tuple(row.values()) for row in summary["counts"]],
        taken=told(summary["counts"], "reason"),
        flagged=told(summary["flags"], "flag"),
        settings=[(key, str(value)) for key, value in summary["config"].items()],
    )
    # Half a surrogate pair may stand in a name or a code.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def fill(template: str, summary: Row, **values: Any) -> str:
    """A template filled with a summary, the tables that both have, and other values."""
    reasons = totals(((row["stage"], row["reason"]), row["records"]) for row in summary["counts"])
    tables = {
        "reasons": [(*key, count) for key, count in sorted(reasons.items())],
        "licence_rows": list(summary["licences"].items()),
        "source_rows": [(s["path"], s["records"], s["sha256"]) for s in summary["sources"]],
    }
    path = Path(__file__).with_name(template)
    return render(path, summary | tables | values, cell=lambda value: str(value).replace("|", "\\|"))


def totals(pairs: Iterable[tuple[Any, int]]) -> Counter:
    found = Counter()
    for key, number in pairs:
        found[key] += number
    return found
