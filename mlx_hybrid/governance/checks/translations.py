"""Records that are translations: length ratio, copies, target language and numbers.

A record is a translation when it says so with `source_language`; `language` is then that of the completion. The
source is `source_text` when it is there, else the prompt.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import regex

from mlx_hybrid.governance.checks.language import Finding
from mlx_hybrid.governance.duplicates.minhash import normalise
from mlx_hybrid.records.languages import UnknownLanguage, parse_language
from mlx_hybrid.records.record import Record

LEAST_PAIRS = 200  # fewer do not tell how long translations between two languages are
FAR = 3.5  # robust z: keeps 98.8–99.9 % of good pairs (docs/governance.md)
NUMBER = regex.compile(r"\p{Nd}+")


class Pair(NamedTuple):
    """One translation: the two languages, the logarithm of target over source length, and what is wrong already."""

    languages: str
    log_ratio: float
    copy: bool
    numbers: str


def read_pair(record: Record) -> Pair | None:
    """The pair of a translation record, or None for any other record."""
    source_language = record.fields.get("source_language")
    if not isinstance(source_language, str) or record.kind == "text":
        return None
    try:
        names = f"{parse_language(source_language)}→{parse_language(record.language or 'und')}"
    except UnknownLanguage:
        return None
    own = record.fields.get("source_text")
    source, target = own if isinstance(own, str) else record.prompt(), record.completion()
    ratio = math.log((len(target) + 1) / (len(source) + 1))
    copied = normalise(source) == normalise(target)
    return Pair(names, ratio, copied, numbers_differ(source, target))


def numbers_differ(source: str, target: str) -> str:
    """Says so when the source holds numbers of two digits or more and the target none of them, in any digits."""
    import unicodedata

    def values(text: str) -> set[str]:
        runs = NUMBER.findall(text)
        return {"".join(str(unicodedata.digit(c)) for c in run).lstrip("0") for run in runs if len(run) > 1}

    wanted = values(source)
    return f"none of {len(wanted)} numbers" if wanted and not wanted & values(target) else ""


def check_pairs(pairs: Sequence[Pair | None]) -> list[tuple[Finding | None, Finding | None]]:
    """Rejection and flag of each pair. z = 0.6745 (x − median) / MAD of the log ratio, by language pair."""
    by_languages: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        if pair:
            by_languages.setdefault(pair.languages, []).append(i)
    result: list[tuple[Finding | None, Finding | None]] = [(None, None)] * len(pairs)
    for names, rows in by_languages.items():
        ratios = np.array([pairs[i].log_ratio for i in rows])
        middle = float(np.median(ratios))
        spread = max(float(np.median(np.abs(ratios - middle))), 0.05)
        for i, ratio in zip(rows, ratios):
            z = 0.6745 * (ratio - middle) / spread
            reject = Finding("copy_source", "the target is the source") if pairs[i].copy else None
            if reject is None and len(rows) >= LEAST_PAIRS and abs(z) > FAR:
                reject = Finding(
                    "length_ratio",
                    f"{math.exp(ratio):.2f}, usual {math.exp(middle):.2f} for {names}, z {z:.1f}",
                )
            flag = Finding("number_mismatch", pairs[i].numbers) if pairs[i].numbers else None
            result[i] = (reject, flag)
    return result
