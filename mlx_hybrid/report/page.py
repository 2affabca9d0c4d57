"""One HTML page that needs nothing else: no script, no font, nothing fetched."""

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1e;--paper:#fff;--line:#e3e3e6;--soft:#6b6b70}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:var(--ink);
background:var(--paper)}
h1{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{margin:1.8rem 0 .4rem}
table{border-collapse:collapse;font-size:.9rem}.wide{overflow-x:auto}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;
font-variant-numeric:tabular-nums}
th:first-child,.words td{text-align:left}.words td{white-space:normal}
thead th{color:var(--soft);font-weight:600}tbody th{font-weight:400}
.note{color:var(--soft);font-size:.9rem;margin:.2rem 0 .6rem}figure{margin:1.2rem 0}
figure img{max-width:100%;height:auto;background:#fff;border-radius:4px}figcaption{color:var(--soft);font-size:.9rem}
@media(max-width:46rem){figure img{max-width:none}}
code,pre{font-size:.85rem}pre{overflow-x:auto;background:rgba(127,127,127,.1);padding:.8rem;border-radius:4px}
@media(prefers-color-scheme:dark){:root{--ink:#eee;--paper:#1c1c1e;--line:#3a3a3c;--soft:#a0a0a6}}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page; the same parts give the same bytes."""
    head = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
    )
    return "\n".join([head, f"<h1>{escape(title)}</h1>", *parts, "</body></html>\n"])


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def picture(svg: bytes, caption: str) -> str:
    """A figure inside the page, with its caption also for those who cannot see it. Where the page is narrower it
    keeps its size, to be read, and scrolls in its box."""
    data = base64.b64encode(svg).decode()
    text = escape(caption)
    image = f'<div class="wide"><img alt="{text}" src="data:image/svg+xml;base64,{data}"></div>'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
