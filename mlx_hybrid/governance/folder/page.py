"""`report.html`: one page, no script and nothing fetched, of what a governance pass decided."""

from collections import Counter
from html import escape
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e;background:#fff}
table{border-collapse:collapse;width:100%;margin:.5rem 0 2rem}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #e3e3e6;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{background:#e3e3e6;height:.7rem;min-width:8rem}.bar i{display:block;height:100%;background:#2a7de1}
code{font-size:.85em;overflow-wrap:anywhere}.alarm{border-left:4px solid #c0392b;padding-left:.8rem}
@media(prefers-color-scheme:dark){body{color:#eee;background:#1c1c1e}th,td{border-color:#3a3a3c}.bar{background:#3a3a3c}}
"""


def report_page(summary: dict[str, Any]) -> str:
    """The page of a summary; the same summary gives the same bytes."""
    reasons: Counter[tuple[str, str]] = Counter()
    for row in summary["counts"]:
        reasons[(row["stage"], row["reason"])] += row["records"]
    flags: Counter[str] = Counter()
    for row in summary["flags"]:
        flags[row["flag"]] += row["records"]
    share = f"{summary['kept'] / summary['records']:.1%}" if summary["records"] else "none"
    parts = [
        f"<h1>Governance report</h1><p>{summary['kept']} of {summary['records']} records kept ({share}).</p>",
        *(f'<p class="alarm">{escape(alarm)}</p>' for alarm in summary["alarms"]),
        "<h2>Languages</h2>",
        table(["language", "#before", "#kept", ""], [language_row(row) for row in summary["languages"]]),
        "<h2>Set aside</h2>",
        table(["stage", "reason", "#records"], [(*key, count) for key, count in sorted(reasons.items())]),
        "<h2>By language</h2>",
        table(
            ["stage", "language", "reason", "#records"], [tuple(row.values()) for row in summary["counts"]]
        ),
        "<h2>Flags on kept records</h2>",
        table(["flag", "#records"], sorted(flags.items())),
        "<h2>Examples</h2>",
        table(
            ["where", "reason", "detail"],
            [(e["where"], e["reason"], e["detail"]) for e in summary["examples"]],
        ),
        "<h2>Licences</h2>",
        table(["licence", "#records"], list(summary["licences"].items())),
        "<h2>Sources</h2>",
        table(
            ["file", "#records", "sha256"],
            [(s["path"], s["records"], s["sha256"]) for s in summary["sources"]],
        ),
        "<h2>Settings</h2>",
        table(["setting", "value"], [(key, str(value)) for key, value in summary["config"].items()]),
    ]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Governance</title><style>{STYLE}</style>'
    return clean(head + "\n".join(parts) + "</html>\n")


def language_row(row: dict[str, Any]) -> tuple:
    share = row["kept"] / row["before"] if row["before"] else 0
    return row["language"], row["before"], row["kept"], Bar(share)


class Bar(float):
    """A share that is drawn, not written."""


def table(heads: list[str], rows: list[tuple]) -> str:
    """An HTML table; a head that begins with # is a column of numbers."""
    if not rows:
        return "<p>none</p>"
    top = "".join(
        f'<th class="n">{head[1:]}</th>' if head[:1] == "#" else f"<th>{head}</th>" for head in heads
    )
    body = "".join(f"<tr>{''.join(cell(value) for value in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def cell(value: Any) -> str:
    if isinstance(value, Bar):
        return f'<td><div class="bar"><i style="width:{value:.1%}"></i></div></td>'
    if isinstance(value, int):
        return f'<td class="n">{value}</td>'
    return f"<td><code>{escape(value)}</code></td>"


def clean(text: str) -> str:
    """Half pairs of surrogates, from file names or codes, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
