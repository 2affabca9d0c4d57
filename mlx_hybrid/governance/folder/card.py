"""The dataset card (README.md), the page (report.html) and the Croissant description of a governed folder.

The first two are made from the templates beside this file.
"""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from mlx_hybrid.files import render, sha256_of
from mlx_hybrid.governance.folder.samples import samples
from mlx_hybrid.governance.rules import RULES
from mlx_hybrid.records.languages import card_code

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
HERE = Path(__file__).parent


def dataset_card(summary: dict[str, Any]) -> str:
    """A card with the metadata the Hub reads and what a reader must know: sources, rules, losses, limits."""
    languages = [row["language"] for row in summary["languages"] if row["kept"]]
    front = {
        "language": sorted({card_code(language) for language in languages} - {"und"}),
        "annotations_creators": ["no-annotation"],
        "size_categories": [next((name for most, name in SIZES if summary["kept"] < most), "n>1M")],
        "configs": [{"config_name": "default", "data_files": "kept.jsonl"}],
        "tags": ["mlx-hybrid", "governed"],
    }
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return fill(
        "card.md.jinja",
        summary,
        front=text,
        language_rows=[tuple(row.values()) for row in summary["languages"]],
    )


def report_page(folder: Path, summary: dict[str, Any]) -> str:
    """One page, no script and nothing fetched; the same lines and summary give the same bytes."""
    texts = samples(folder, summary)

    def told(rows: list[dict[str, Any]], key: str) -> list[tuple]:
        """Name, count, rule and texts of each reason or flag, the commonest first."""
        counts = Counter[str]()
        for row in rows:
            counts[row[key]] += row["records"]
        return [(name, n, RULES.get(name), texts.get(name, ())) for name, n in counts.most_common()]

    # Half a surrogate pair may stand in a name or a code.
    page = fill(
        "page.html.jinja",
        summary,
        shares=[(*row.values(), row["kept"] / max(row["before"], 1)) for row in summary["languages"]],
        by_language=[tuple(row.values()) for row in summary["counts"]],
        taken=told(summary["counts"], "reason"),
        flagged=told(summary["flags"], "flag"),
        settings=[(key, str(value)) for key, value in summary["config"].items()],
    )
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def fill(template: str, summary: dict[str, Any], **values: Any) -> str:
    """A template filled with a summary, the tables that both have, and other values."""
    reasons: Counter[tuple[str, str]] = Counter()
    for row in summary["counts"]:
        reasons[(row["stage"], row["reason"])] += row["records"]
    tables = {
        "reasons": [(*key, count) for key, count in sorted(reasons.items())],
        "licence_rows": list(summary["licences"].items()),
        "source_rows": [(s["path"], s["records"], s["sha256"]) for s in summary["sources"]],
    }
    return render(
        HERE / template, summary | tables | values, cell=lambda value: str(value).replace("|", "\\|")
    )


def croissant(path: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Croissant 1.0 JSON-LD of `kept.jsonl` with one field for each key that its records have in common."""
    tree = json.loads((HERE / "croissant.json").read_text(encoding="utf-8"))
    tree["description"] = (
        f"{summary['kept']} of {summary['records']} records, checked with mlx-hybrid govern."
    )
    tree["license"] = sorted(set(summary["licences"]))
    tree["inLanguage"] = sorted(card_code(row["language"]) for row in summary["languages"] if row["kept"])
    tree["distribution"][0]["sha256"] = sha256_of(path)
    tree["recordSet"][0]["field"] = [
        {
            "@type": "cr:Field",
            "@id": f"records/{key}",
            "name": key,
            "dataType": "sc:Text",
            "source": {"fileObject": {"@id": "kept"}, "extract": {"column": key}},
        }
        for key in common_fields(path)
    ]
    return tree


def common_fields(path: Path) -> list[str]:
    """Plain text keys that every one of the first thousand records has."""
    common: dict[str, None] | None = None
    with path.open(encoding="utf-8") as file:
        for line in islice(file, 1000):
            own = {key: None for key, value in json.loads(line).items() if isinstance(value, str)}
            common = own if common is None else {key: None for key in common if key in own}
    return list(common or ())
