"""Rules on translations, records with `source_language`: length ratio, copies and numbers."""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlx_hybrid.governance.checks.quality import QUALITY
from mlx_hybrid.governance.rules import Finding
from mlx_hybrid.records.languages import UnknownLanguage, parse_language
from mlx_hybrid.records.record import Record

LEAST_PAIRS = 200  # fewer do not tell how long translations between two languages are
FAR = 3.5  # robust z: keeps 98.8–99.9 % of good pairs (docs/governance.md)


class Pair(NamedTuple):
    """One translation: the two languages, the logarithm of target over source length, and what is wrong already."""

    languages: str
    log_ratio: float
    copy: bool
    flags: tuple[Finding, ...] = ()


def source_of(record: Record) -> str:
    """The `source_text` of a translation record; empty where it is the prompt."""
    own = record.fields.get("source_text")
    return own if isinstance(own, str) else ""


def read_pair(record: Record, *, copy: bool) -> Pair | None:
    """The pair of a translation record, of which `copy` says that both are one text; None for any other record."""
    source_language = record.fields.get("source_language")
    if not isinstance(source_language, str) or record.kind == "text":
        return None
    try:
        names = f"{parse_language(source_language)}→{parse_language(record.language or 'und')}"
    except UnknownLanguage:
        return None
    source, target = source_of(record) or record.prompt(), record.completion()
    ratio = math.log((len(target) + 1) / (len(source) + 1))
    differs = numbers_differ(source, target)
    flags = (Finding("number_mismatch", differs),) if differs else ()
    return Pair(names, ratio, copy, flags)


def numbers_differ(source: str, target: str) -> str:
    """Says so when the source holds numbers of two digits or more and the target none of them, in any digits."""

    def values(text: str) -> set[str]:
        runs = QUALITY.long_numbers.findall(text)
        return {"".join(str(unicodedata.digit(c, c)) for c in run).lstrip("0") for run in runs}

    wanted = values(source)
    return f"none of {len(wanted)} numbers" if wanted and not wanted & values(target) else ""


def check_pairs(pairs: Sequence[Pair]) -> list[Finding | None]:
    """Why each pair goes. z = 0.6745 (x − median) / MAD of the log ratio, by language pair."""
    ratios = defaultdict(list)
    for pair in pairs:
        ratios[pair.languages].append(pair.log_ratio)
    usual = {}
    for names, values in ratios.items():
        middle = float(np.median(values))
        usual[names] = len(values), middle, max(float(np.median(np.abs(np.array(values) - middle))), 0.05)
    found: list[Finding | None] = []
    for pair in pairs:
        count, middle, spread = usual[pair.languages]
        z = 0.6745 * (pair.log_ratio - middle) / spread
        far = count >= LEAST_PAIRS and abs(z) > FAR
        told = f"{math.exp(pair.log_ratio):.2f}, usual {math.exp(middle):.2f} for {pair.languages}, z {z:.1f}"
        copy = Finding("copy_source", "the target is the source") if pair.copy else None
        found.append(copy or (Finding("length_ratio", told) if far else None))
    return found
