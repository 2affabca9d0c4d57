"""Rules on single texts that need no model and no labels, with numbers behind every rejection.

A text that is trained on is asked whether it is junk; of an answer it matters too what was asked. Limits stand in
rules.tsv; clean sentences in 22 languages and scripts lose fewer than one in a thousand (docs/governance.md).
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import regex

from mlx_hybrid.governance.checks import characters
from mlx_hybrid.governance.checks.characters import Batch
from mlx_hybrid.governance.checks.material import MATERIAL, Made
from mlx_hybrid.governance.checks.mojibake import find_mojibake
from mlx_hybrid.governance.rules import Finding
from mlx_hybrid.governance.tables import WORDS, patterns
from mlx_hybrid.records.languages import UNSPACED

MAX_CHECKED = 20_000  # characters of a text that the rules look at
LEAST_VISIBLE = 16  # shares of fewer characters say nothing: “Oh, no.”
RUN = 8
COMPRESSED, COMPRESSED_FROM = 0.25, 200
SUSPECT = 0.6  # a text half of whose 10-grams come back compresses to less
REFRAIN = 6  # times that a line of a song may stand in it
RULERS = np.array(
    [ord(c) for c in " \t\n\r-=_*#~.·•─━═│+|…"], np.uint32
)  # what lines and tables are drawn with
PICTURES = 0x1F000  # the first of the emoji
QUALITY = patterns("quality")


class Turn(NamedTuple):
    """What is trained, its materials, and, of an answer, all that stood before it."""

    text: str
    made: Made
    asked: str | None = None

    @property
    def is_code(self) -> bool:
        return bool(self.made.kinds & {"code", "data"})


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


def check_quality(turns: Sequence[Turn], limits: Mapping[str, float]) -> list[list[Finding]]:
    """Every rule in force that each turn breaks."""
    batch = Batch([turn.made.words for turn in turns])
    found = []
    for turn, words, scripts, measures in zip(turns, batch.texts, batch.scripts_seen(), measure(batch)):
        told = [*check_measured(turn, words, measures, limits), *check_words(turn, words, scripts, limits)]
        found.append([finding for finding in told if finding and finding.reason in limits])
    return found


def check_measured(
    turn: Turn, words: str, measures: tuple, limits: Mapping[str, float]
) -> Iterator[Finding | None]:
    letters, letter_share, symbol_share, run, run_share = measures
    if turn.asked is not None:
        yield from check_answer(turn)
        yield bare_numbers(words, turn.asked)
    elif letters < limits.get("no_text", 0) and turn.made.kinds <= {"prose", "list"}:
        yield Finding("no_text", f"{letters} letters")
    elif letter_share < limits.get("low_letter_ratio", 0):
        yield Finding("low_letter_ratio", f"{letter_share:.2f} of the characters are letters")
    if symbol_share > limits.get("symbol_heavy", 1):
        yield Finding("symbol_heavy", f"{symbol_share:.2f} of the characters are symbols")
    drawn_out = run >= RUN and run_share > 0.6 and turn.text.strip()[0] not in WORDS["laughter"]
    if run >= limits.get("char_run", 0) or drawn_out:
        yield Finding("char_run", f"one character {run} times in a row")


def check_answer(turn: Turn) -> Iterator[Finding]:
    """An answer of which nothing can be learnt; a word, a number, a letter and a symbol are answers."""
    bare = QUALITY.unseen.sub("", turn.text)
    if QUALITY.nothing.fullmatch(bare) and not QUALITY.bracketed.fullmatch(bare):
        yield Finding(
            "no_text", f"an answer of {bare[:20]!r}" if bare else "an answer of what cannot be seen"
        )
    if turn.text.strip() in WORDS["placeholders"] and not QUALITY.for_values.search(turn.asked):
        yield Finding("placeholder", turn.text.strip())
    marks = QUALITY.chat_marks.findall(MATERIAL.fenced.sub(" ", turn.text))
    if marks and not QUALITY.chat_marks.search(turn.asked):
        yield Finding("control_tokens", f"{len(marks)} marks of a template, the first {marks[0]}")


def check_words(
    turn: Turn, words: str, scripts: set[str], limits: Mapping[str, float]
) -> Iterator[Finding | None]:
    yield repetition(words, limits.get("repetition", 1))
    if turn.asked is None or not (turn.is_code or QUALITY.for_pages.search(turn.asked)):
        yield markup(turn, limits.get("markup", 0))
    yield menu(turn, limits.get("menu", 0))
    if turn.asked is None or not QUALITY.for_codes.search(turn.asked):
        yield long_token(words if turn.is_code else turn.text, scripts, limits.get("long_token", 0))
    yield spaced_letters(words, limits.get("spaced_letters", 1))
    codec = find_mojibake(words, scripts)
    yield Finding("mojibake", codec) if codec else None


def measure(batch: Batch) -> Iterator[tuple[int, float, float, int, float]]:
    """Of each text its letters; letters and symbols as shares of what is neither space nor picture, a character that is
    drawn out counting once and a Han letter three times; the longest run, and its share of all characters."""
    starts = np.ones(len(batch.points), bool)
    starts[1:] = (batch.points[1:] != batch.points[:-1]) | (batch.owners[1:] != batch.owners[:-1])
    places = np.flatnonzero(starts)
    owners, points, kinds = batch.owners[places], batch.points[places], batch.classes[places]
    runs = np.diff(np.append(places, len(batch.points)))
    longest = np.zeros(len(batch.texts), np.int64)
    np.maximum.at(longest, owners, np.where(np.isin(points, RULERS) | (kinds == characters.DIGIT), 0, runs))
    kinds = np.where((points >= PICTURES) | ((points >= 0x2600) & (points < 0x27C0)), characters.SPACE, kinds)
    counts = np.bincount(owners * 8 + kinds, minlength=len(batch.texts) * 8).reshape(-1, 8).astype(np.float64)
    whole, extra = batch.class_counts(), 2.0 * batch.script_counts()[:, characters.HAN]
    visible = np.maximum(counts.sum(1) - counts[:, characters.SPACE] + extra, 1)
    letters = counts[:, characters.LETTER] + counts[:, characters.MARK] + extra
    symbols = counts[:, characters.PUNCTUATION] + counts[:, characters.SYMBOL]
    told = batch.lengths - whole[:, characters.SPACE] + extra >= LEAST_VISIBLE
    columns = (
        whole[:, characters.LETTER] + whole[:, characters.MARK],
        np.where(told, letters / visible, 1),
        np.where(told, symbols / visible, 0),
        longest,
        longest / np.maximum(batch.lengths, 1),
    )
    return zip(*(column.tolist() for column in columns))


def bare_numbers(words: str, asked: str) -> Finding | None:
    """Five long numbers or more and hardly a word, neither in order nor out of the question."""
    parts = words.split()
    numbers = [part for part in parts if part.isdigit()]
    if len(numbers) < max(5, 0.7 * len(parts)) or sum(map(len, numbers)) < 3 * len(numbers):
        return None
    pairs = list(pairwise(map(int, numbers)))
    ordered = all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)
    if ordered or sum(number in asked for number in numbers) >= len(numbers) / 2:
        return None
    return Finding("low_letter_ratio", f"{len(numbers)} numbers and {len(parts) - len(numbers)} words")


def repetition(text: str, limit: float) -> Finding | None:
    """The same words again and again: it compresses too well, or most of its 10-grams come back.

    Of a song each line counts once, unless it is most of the song.
    """
    text = text.strip()
    turning = QUALITY.turning.fullmatch(text) if len(text) < 2_000 else None
    word = turning[1] if turning else ""
    if len(word) > 1 and regex.search(r"\p{L}", word) and word.strip().lower() not in WORDS["laughter"]:
        return Finding("repetition", f"{word[:30]!r} again and again")
    lines = text.split("\n")
    distinct = list(dict.fromkeys(lines))
    if 4 <= len(lines) <= REFRAIN * len(distinct):
        text = "\n".join(distinct)
    raw = text.encode("utf-8", "replace")
    ratio = len(zlib.compress(raw, 1)) / len(raw) if raw else 1.0
    if ratio < COMPRESSED and len(raw) >= COMPRESSED_FROM:
        return Finding("repetition", f"compresses to {ratio:.2f}")
    if ratio > SUSPECT or len(text) < 60:
        return None
    grams = [text[i : i + 10] for i in range(len(text) - 9)]
    repeated = 1 - len(set(grams)) / len(grams)
    return Finding("repetition", f"{repeated:.2f} of the 10-grams come back") if repeated > limit else None


def markup(turn: Turn, limit: float) -> Finding | None:
    """Left-over HTML, or, in a text, wiki markup."""
    prose = MATERIAL.fenced.sub(" ", turn.text) if turn.asked is None else turn.made.prose
    if not any(sign in prose for sign in ("<", "&", "[[", "{{")):
        return None
    tags = [tag[0] for tag in MATERIAL.tag.finditer(prose) if QUALITY.html.match(tag[0])]
    count = sum(not QUALITY.inline.match(tag) for tag in tags)
    count += len(QUALITY.wiki.findall(prose)) if turn.asked is None else 0
    return Finding("markup", f"{count} tags, entities or wiki marks") if count >= limit > 0 else None


def menu(turn: Turn, limit: float) -> Finding | None:
    """A line of links that once was a page's navigation: three separators or more between short names, and no number.

    In an answer `Account > Orders > Invoice` is the way to something.
    """
    if not limit or "---" in turn.text or "code" in turn.made.kinds:
        return None
    for line in turn.text.split("\n"):
        cells = QUALITY.separator.split(line.strip())
        if len(cells) <= limit or line.lstrip()[0] == "|" or line.rstrip()[-1] in ".!?。":
            continue
        names = sum(len(cell) <= 40 and not regex.search(r"\d", cell) for cell in cells)
        if names >= 0.75 * len(cells) and (turn.asked is None or " | " in line):
            return Finding("menu", f"{len(cells) - 1} separators in a line")
    return None


def long_token(text: str, scripts: set[str], limit: float) -> Finding | None:
    """A word of more than 60 characters that changes between capitals, small letters and digits: encoded data."""
    for token in text.split() if limit and not scripts & UNSPACED else ():
        changes = len(QUALITY.encoded.findall(token)) if len(token) > limit else 0
        if changes > 0.15 * len(token) and not MATERIAL.link.search(token):
            return Finding("long_token", f"a token of {len(token)} characters")
    return None


def spaced_letters(text: str, limit: float) -> Finding | None:
    """`T h e  l i b r a r y`: sixteen letters or more, each alone, in no alphabet's order."""
    parts = text.split()
    alone = [part for part in parts if QUALITY.letter_alone.fullmatch(part)]
    few = len(alone) < 16 or len(alone) <= limit * len(parts)
    if few or len({*alone}) > 0.9 * len(alone) or QUALITY.east_asian.search(text):
        return None
    return Finding("spaced_letters", f"{len(alone)} letters with spaces between")
