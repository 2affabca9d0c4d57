"""The dataset card (Hugging Face README) and the Croissant description of a governed folder."""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from mlx_hybrid.records.languages import TWO_LETTERS

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
TERMS = (
    "citeAs", "column", "extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes",
    "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated",
    "replace", "separator", "source", "subField", "transform",
)  # fmt: skip
CROISSANT = "http://mlcommons.org/croissant/1.0"


def dataset_card(summary: dict[str, Any]) -> str:
    """A card with the metadata the Hub reads and what a reader must know: sources, rules, losses, limits."""
    languages = [row for row in summary["languages"] if row["kept"]]
    tags = sorted({card_code(row["language"]) for row in languages} - {"und"})
    front = {
        "language": tags,
        "annotations_creators": ["no-annotation"],
        "size_categories": [size_category(summary["kept"])],
        "configs": [{"config_name": "default", "data_files": "kept.jsonl"}],
        "tags": ["mlx-hybrid", "governed"],
    }
    reasons: Counter[tuple[str, str]] = Counter()
    for row in summary["counts"]:
        reasons[(row["stage"], row["reason"])] += row["records"]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
            "---",
            "",
            "# Governed records",
            "",
            f"{summary['kept']} of {summary['records']} records, checked with `mlx-hybrid govern`. Every record that "
            "was set aside stands in `rejected.jsonl` with its reason; `manifest.json` holds the hash of every file.",
            "",
            "## Sources",
            "",
            *table(
                ("file", "records", "sha256"),
                [(s["path"], s["records"], s["sha256"]) for s in summary["sources"]],
            ),
            "",
            "## Languages",
            "",
            *table(("language", "before", "kept"), [tuple(row.values()) for row in summary["languages"]]),
            "",
            "## Set aside",
            "",
            *table(("stage", "reason", "records"), [(*key, count) for key, count in sorted(reasons.items())]),
            "",
            "## Licences",
            "",
            *table(("licence", "records"), list(summary["licences"].items())),
            "",
            "## Limits",
            "",
            "No label, no person and no judgement of truth went into this. Toxicity and bias were not checked. "
            "Personal data was looked for by shape only: names and addresses are not found.",
            "",
        ]
    )


def table(heads: tuple[str, ...], rows: list[tuple]) -> list[str]:
    """A Markdown table; `none` where it has no rows."""
    if not rows:
        return ["none"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return lines + [
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows
    ]


def card_code(language: str) -> str:
    """`sw` for `swh_Latn`: the Hub wants ISO 639-1 where there is one."""
    code = language.split("_")[0]
    return next((two for two, three in TWO_LETTERS.items() if three == code), code)


def size_category(records: int) -> str:
    return next((name for bound, name in SIZES if records < bound), "n>1M")


def croissant(path: Path, sha256: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Croissant 1.0 JSON-LD of `kept.jsonl` with one field for each key that its records have in common."""
    fields = common_fields(path)
    return {
        "@context": context(),
        "@type": "sc:Dataset",
        "conformsTo": CROISSANT,
        "name": "governed-records",
        "description": f"{summary['kept']} of {summary['records']} records, checked with mlx-hybrid govern.",
        "version": "1.0.0",
        "license": sorted(set(summary["licences"])),
        "inLanguage": sorted(card_code(row["language"]) for row in summary["languages"] if row["kept"]),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "kept",
                "name": "kept.jsonl",
                "contentUrl": "kept.jsonl",
                "encodingFormat": "application/jsonlines",
                "sha256": sha256,
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "records",
                "name": "records",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"records/{key}",
                        "name": key,
                        "dataType": "sc:Text",
                        "source": {"fileObject": {"@id": "kept"}, "extract": {"column": key}},
                    }
                    for key in fields
                ],
            }
        ],
    }


def common_fields(path: Path) -> list[str]:
    """Plain text keys that every one of the first thousand records has."""
    import json
    from itertools import islice

    common: dict[str, None] | None = None
    with path.open(encoding="utf-8") as file:
        for line in islice(file, 1000):
            own = {key: None for key, value in json.loads(line).items() if isinstance(value, str)}
            common = own if common is None else {key: None for key in common if key in own}
    return list(common or ())


def context() -> dict[str, Any]:
    """The JSON-LD context that the Croissant 1.0 specification prescribes."""
    terms: dict[str, Any] = {name: f"cr:{name}" for name in TERMS}
    terms["conformsTo"] = "dct:conformsTo"
    terms["data"] = {"@id": "cr:data", "@type": "@json"}
    terms["dataType"] = {"@id": "cr:dataType", "@type": "@vocab"}
    terms["examples"] = {"@id": "cr:examples", "@type": "@json"}
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "cr": "http://mlcommons.org/croissant/",
        "dct": "http://purl.org/dc/terms/",
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
        **terms,
    }
