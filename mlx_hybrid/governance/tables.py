"""What the rules go by: lists of words (words.tsv), cues beside a number (cues.tsv) and patterns (patterns.toml)."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import regex

HERE = Path(__file__).parent


def rows(name: str) -> dict[str, str]:
    """A table of two columns."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


WORDS = {name: frozenset(words.split()) for name, words in rows("words.tsv").items()}
"""Lists of words; those under a language's code are codes of its near kin."""
CUES = rows("cues.tsv")
"""The words beside a number that say what it is, in several languages, the forms of keys, and other lists."""


def patterns(room: str) -> SimpleNamespace:
    """The patterns of one room of checks, compiled, by their names."""
    table = tomllib.loads((HERE / "patterns.toml").read_text(encoding="utf-8"))[room]
    for name, words in CUES.items():
        listed = words.replace(", ", "|")
        table = {key: pattern.replace(f"{{{name}}}", listed) for key, pattern in table.items()}
    return SimpleNamespace(**{key: regex.compile(pattern) for key, pattern in table.items()})


def said_before(name: str, then: str = "") -> regex.Pattern:
    """A pattern of the words of a row, at their beginnings where words stand apart, and what follows."""
    words = (
        rf"\b{word}" if regex.match(r"\(|[\p{Latin}\p{Cyrillic}]", word) else word
        for word in CUES[name].split(", ")
    )
    return regex.compile(f"(?:{'|'.join(words)}){then}", regex.IGNORECASE)
