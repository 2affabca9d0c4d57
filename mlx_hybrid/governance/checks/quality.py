"""Rules on single texts that need no model and no labels, with numbers behind every rejection.

Thresholds are those at which clean sentences in 22 languages and scripts lose fewer than one in a thousand
(docs/governance.md).
"""

import zlib
from collections.abc import Iterator

import numpy as np
import regex

from mlx_hybrid.governance.checks import characters
from mlx_hybrid.governance.checks.characters import Batch
from mlx_hybrid.governance.checks.mojibake import find_mojibake
from mlx_hybrid.governance.stages import Finding
from mlx_hybrid.records.languages import UNSPACED

MAX_CHECKED = 20_000  # characters of a text that the rules look at
LEAST_LETTERS = 3
LEAST_VISIBLE = 16  # shares of fewer characters say nothing: “Oh, no.”
LETTER_SHARE = 0.5
SYMBOL_SHARE = 0.35
RUN = 8
COMPRESSED = 0.25
COMPRESSED_FROM = 200
REPEATED = 0.5
SUSPECT = 0.6  # a text half of whose 10-grams come back compresses to less
LONG_TOKEN = 60
TAGS = 3
# Space, and what lines and tables are drawn with.
RULERS = np.array([ord(c) for c in " \t\n\r-=_*#~.·•─━═│+|"], np.uint32)
CODE = regex.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", regex.DOTALL)
TAG = regex.compile(r"</?[a-zA-Z][^<>]{0,200}>|&(?:[a-zA-Z]{2,8}|#x?[0-9a-fA-F]{1,6});")
WIKI = regex.compile(r"\{\{|\[\[|'''")
SEPARATOR = regex.compile(r"[ \t][|»›>][ \t]")
SEPARATORS = 3
INLINE = regex.compile(r"</?(?:su[bp]|[biu]|em|strong)>")
TOKEN = regex.compile(rf"\S{{{LONG_TOKEN + 1},}}")
LINK = regex.compile(r"https?://|www\.|data:[a-z]+/")


def check_unicode(batch: Batch) -> list[Finding | None]:
    """Control, private-use, unassigned, surrogate and replacement characters: a text that was damaged."""
    found: list[Finding | None] = [None] * len(batch.texts)
    places = np.flatnonzero(batch.classes == characters.BROKEN)
    owners, firsts, counts = np.unique(batch.owners[places], return_index=True, return_counts=True)
    for owner, place, count in zip(owners, places[firsts], counts):
        point = int(batch.points[place])
        reason = "bad_unicode" if 0xD800 <= point < 0xE000 or point == 0xFFFD else "control_chars"
        told = f"{count} damaged characters, the first U+{point:04X} at {place - batch.starts[owner]}"
        found[owner] = Finding(reason, told)
    return found


def check_quality(batch: Batch) -> list[list[Finding]]:
    """Every rule that each text breaks."""
    prose = batch
    if any(
        "`" in text for text in batch.texts
    ):  # in code blocks symbols, tags and long tokens are meant to be
        prose = Batch([CODE.sub(" ", text) for text in batch.texts])
    rows = zip(batch.texts, prose.texts, batch.script_counts() > 0, letter_counts(batch), *measure(prose))
    found = []
    for text, plain, scripts, *measured in rows:
        seen = {characters.SCRIPT_CODES[k] for k in np.flatnonzero(scripts) if k > 1}
        rules = (repetition(text), markup(plain), menu(plain), long_token(plain, seen), mojibake(text, seen))
        found.append([*check_measured(*measured), *(finding for finding in rules if finding)])
    return found


def check_measured(
    letters: int, letter_share: float, symbol_share: float, longest_run: int
) -> Iterator[Finding]:
    if letters < LEAST_LETTERS:
        yield Finding("no_text", f"{letters} letters")
    elif letter_share < LETTER_SHARE:
        yield Finding("low_letter_ratio", f"{letter_share:.2f} of the characters are letters")
    if symbol_share > SYMBOL_SHARE:
        yield Finding("symbol_heavy", f"{symbol_share:.2f} of the characters are symbols")
    if longest_run >= RUN:
        yield Finding("char_run", f"one character {longest_run} times in a row")


def letter_counts(batch: Batch) -> np.ndarray:
    classes = batch.class_counts()
    return classes[:, characters.LETTER] + classes[:, characters.MARK]


def measure(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each text the letters and the symbols as shares of what is neither space nor a drawn line, a Han letter
    counting three, and the longest run of one character that draws no line."""
    starts = np.ones(len(batch.points), bool)
    starts[1:] = (batch.points[1:] != batch.points[:-1]) | (batch.owners[1:] != batch.owners[:-1])
    places = np.flatnonzero(starts)
    owners, points = batch.owners[places], batch.points[places]
    runs = np.diff(np.append(places, len(batch.points)))
    drawn = np.isin(points, RULERS[4:]) & ((runs >= 3) | (points == ord("|")))
    lines = np.bincount(owners[drawn], weights=runs[drawn], minlength=len(batch.texts))
    longest = np.zeros(len(batch.texts), np.int64)
    np.maximum.at(longest, owners, np.where(np.isin(points, RULERS), 0, runs))
    classes = batch.class_counts().astype(np.float64)
    extra = 2.0 * batch.script_counts()[:, characters.HAN]
    visible = np.maximum(batch.lengths - classes[:, characters.SPACE] - lines + extra, 1)
    symbols = classes[:, characters.PUNCTUATION] + classes[:, characters.SYMBOL] - lines
    told = visible >= LEAST_VISIBLE
    letters = np.where(told, letter_counts(batch) + extra, visible)
    return letters / visible, np.where(told, symbols / visible, 0), longest


def repetition(text: str) -> Finding | None:
    """The same words again and again: it compresses too well, or most of its 10-grams come back."""
    raw = text.encode("utf-8", "replace")
    ratio = len(zlib.compress(raw, 1)) / len(raw) if raw else 1.0
    if ratio < COMPRESSED and len(raw) >= COMPRESSED_FROM:
        return Finding("repetition", f"compresses to {ratio:.2f}")
    if ratio > SUSPECT or len(text) < 60:
        return None
    grams = [text[i : i + 10] for i in range(len(text) - 9)]
    repeated = 1 - len(set(grams)) / len(grams)
    if repeated > REPEATED:
        return Finding("repetition", f"{repeated:.2f} of the 10-grams come back")
    return None


def markup(text: str) -> Finding | None:
    """Left-over HTML or wiki markup; what stands in code blocks is meant to be there."""
    if not any(sign in text for sign in ("<", "&", "[[", "{{")):
        return None
    tags = [tag for tag in TAG.findall(text) if not INLINE.match(tag)]
    count = len(tags) + len(WIKI.findall(text))
    return Finding("markup", f"{count} tags, entities or wiki marks") if count >= TAGS else None


def menu(text: str) -> Finding | None:
    """A line of links that once was a page's navigation: three or more separators, and no table."""
    if "---" in text:
        return None
    lines = [line for line in text.split("\n") if not line.lstrip().startswith("|")]
    most = max((len(SEPARATOR.findall(line)) for line in lines), default=0)
    return Finding("menu", f"{most} separators in a line") if most >= SEPARATORS else None


def long_token(text: str, scripts: set[str]) -> Finding | None:
    """A word of more than 60 characters, in a script that puts spaces between words: encoded data."""
    if scripts & UNSPACED:
        return None
    token = next((token for token in TOKEN.findall(text) if not LINK.search(token)), None)
    return Finding("long_token", f"a token of {len(token)} characters") if token else None


def mojibake(text: str, scripts: set[str]) -> Finding | None:
    codec = find_mojibake(text, scripts)
    return Finding("mojibake", f"UTF-8 that was read as {codec}") if codec else None
