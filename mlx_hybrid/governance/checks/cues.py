"""cues.tsv: the words beside a number that say what it is, in several languages, the forms of keys, and other lists."""

from pathlib import Path

import regex

TABLE = Path(__file__).with_suffix(".tsv").read_text(encoding="utf-8")
CUES = dict(line.split("\t") for line in TABLE.splitlines())


def said_before(name: str, then: str = "") -> regex.Pattern:
    """A pattern of the words of a row, at their beginnings where words stand apart, and what follows."""
    words = (
        rf"\b{word}" if regex.match(r"\(|[\p{Latin}\p{Cyrillic}]", word) else word
        for word in CUES[name].split(", ")
    )
    return regex.compile(f"(?:{'|'.join(words)}){then}", regex.IGNORECASE)
