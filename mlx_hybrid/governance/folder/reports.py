"""What became of the records: as plain values, as a dataset card (README.md) and as a page (report.html)."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mlx_hybrid.config import to_tree
from mlx_hybrid.files import render
from mlx_hybrid.governance.checks.personal import redact, regions_of
from mlx_hybrid.governance.folder.lines import DATA, Line, maps_of, read_folder_lines
from mlx_hybrid.governance.inspection import Inspection, Ledger, count
from mlx_hybrid.governance.rules import RULES, Decision
from mlx_hybrid.records.languages import card_code

Row = dict[str, Any]
SHOWN = 3  # of each reason
LONGEST = 3000  # characters of a text that is compared
PAIRED = ("near_dup", "near_dup_kept", "prompt_conflict")
PLACE = re.compile(r"(.+?:\d+)\b")
WORDS = re.compile(r"(?s)\s+|[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\w+|.")
COUNTED = ("stage", "language", "reason", "records")
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
Parts = list[tuple[str, bool]]  # a text in parts, and which of them differ from the other of its pair


def summarise(ledger: Ledger) -> Row:
    """Counts by stage, language and reason; languages before and after; flags; licences; examples by place."""
    tree = to_tree(ledger.config)
    del tree["workers"]
    return summary_of(ledger.items, tree, ledger.sources, ledger.alarms)


def summary_of(items: Sequence[Inspection], tree: Row, sources: list[Row], alarms: Sequence[str] = ()) -> Row:
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
    each = [(source, found[source["path"]]) for source in sources]
    return [s | {"records": n.total(), "shapes": {k: n[k] for k in sorted(n) if k}} for s, n in each]


def examples(items: Sequence[Inspection]) -> list[dict[str, str]]:
    """The first three records of each reason, or flag that names another, by place and numbers, without their text."""
    shown: dict[tuple[str, str], list[dict[str, str]]] = {}
    for item in items:
        pairs = [(flag, PLACE.match(flag.detail)) for flag in item.flags if flag.reason in PAIRED]
        found = [Decision("near", *flag, place[1]) for flag, place in pairs if place]
        for decision in [item.decision] if item.decision else found:
            rows = shown.setdefault(decision[:2], [])
            if len(rows) < SHOWN and not any(row["match"] == item.where for row in rows):
                rows.append({"where": item.where, **decision._asdict()})
    return [row for key in sorted(shown) for row in shown[key]]


def dataset_card(summary: Row) -> str:
    """A card with the metadata the Hub reads and what a reader must know: sources, rules, losses, limits."""
    codes = {card_code(row["language"]) for row in summary["languages"] if row["kept"]} - {"und"}
    size = next((name for most, name in SIZES if summary["kept"] < most), "n>1M")
    counts = totals(((row["stage"], row["reason"]), row["records"]) for row in summary["counts"])
    reasons = [(*key, n) for key, n in sorted(counts.items())]
    return fill("card.md.jinja", summary, codes=sorted(codes), size=size, reasons=reasons)


def report_page(folder: Path, summary: Row) -> str:
    """One page, no script and nothing fetched; the same lines and summary give the same bytes."""
    texts = samples(folder, summary)

    def told(rows: list[Row], key: str) -> list[tuple]:
        """Name, count, rule and texts of each reason or flag, the commonest first."""
        counts = totals((row[key], row["records"]) for row in rows)
        return [(name, n, RULES.get(name), texts.get(name, ())) for name, n in counts.most_common()]

    shares = [(*row.values(), row["kept"] / max(row["before"], 1)) for row in summary["languages"]]
    settings = [(key, str(value)) for key, value in summary["config"].items()]
    rows = {"taken": told(summary["counts"], "reason"), "flagged": told(summary["flags"], "flag")}
    page = fill("page.html.jinja", summary, shares=shares, settings=settings, **rows)
    # half a surrogate pair may stand in a name
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def fill(template: str, summary: Row, **values: Any) -> str:
    """A template filled with a summary, the tables that both have, and other values."""
    values["source_rows"] = [(s["path"], s["records"], s["sha256"]) for s in summary["sources"]]
    path = Path(__file__).with_name(template)
    return render(path, summary | values, cell=lambda value: str(value).replace("|", "\\|"))


def totals(pairs: Iterable[tuple[Any, int]]) -> Counter:
    found = Counter()
    for key, number in pairs:
        found[key] += number
    return found


def samples(folder: Path, summary: Row) -> dict[str, list[Row]]:
    """Texts of up to three records of each reason, in the order of the summary; of a pair both, and what differs."""
    rows = [(row["reason"], row["where"], row["detail"], row["match"]) for row in summary["examples"]]
    places, maps = {place for row in rows for place in (row[1], row[3])}, maps_of(summary["sources"])
    lines = [line for name in DATA for line in read_folder_lines(folder / name, maps, at=places)]
    texts = {line.note["where"]: shown_text(line) for line in lines}
    found: dict[str, list[Row]] = {}
    for reason, where, detail, other in rows:
        text, beside = texts.get(where, ""), texts.get(other, "")
        sample = {"where": where, "detail": detail, "text": [(shortened(text, 360), False)]}
        if reason in PAIRED and beside:
            left, right = differing(text, beside)
            sample |= {"text": left, "other_where": other, "other": right}
        found.setdefault(reason, []).append(sample)
    return found


def shown_text(line: Line) -> str:
    """What a line says, turn by turn, redacted, with invisible characters told by their codes."""
    text, record = line.source, line.record() if line.source is None else None
    if record:
        turns = [f"{t['role']}: {t.get('content') or t.get('tool_calls') or ''}" for t in record.turns()]
        text = "\n".join(turns) if turns else record.content()
    text = str(line.row) if text is None else text
    return visible(redact(text[:LONGEST], regions_of(line.row.get("language") or line.note["language"])))


def visible(text: str) -> str:
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in text)


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"


def differing(text: str, other: str) -> tuple[Parts, Parts]:
    """Both texts in parts that they share, shortened, and parts that differ."""
    words, beside = WORDS.findall(text), WORDS.findall(other)
    left, right = [], []
    for kind, a, b, c, d in SequenceMatcher(None, words, beside, autojunk=False).get_opcodes():
        same = kind == "equal"
        for parts, piece in ((left, "".join(words[a:b])), (right, "".join(beside[c:d]))):
            if piece:
                parts.append((shortened(piece, 90) if same else piece, not same))
    return left, right
