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
from mlx_hybrid.governance.checks.material import FENCED, LINK, PAGE, TAG, Made
from mlx_hybrid.governance.checks.mojibake import find_mojibake
from mlx_hybrid.governance.stages import Finding
from mlx_hybrid.governance.words import WORDS
from mlx_hybrid.records.languages import UNSPACED

MAX_CHECKED = 20_000  # characters of a text that the rules look at
LEAST_VISIBLE = 16  # shares of fewer characters say nothing: “Oh, no.”
RUN = 8
COMPRESSED = 0.25
COMPRESSED_FROM = 200
SUSPECT = 0.6  # a text half of whose 10-grams come back compresses to less
REFRAIN = 6  # times that a line of a song may stand in it
RULERS = np.array(
    [ord(c) for c in " \t\n\r-=_*#~.·•─━═│+|…"], np.uint32
)  # what lines and tables are drawn with
PICTURES = 0x1F000  # the first of the emoji
WIKI = regex.compile(r"\{\{|\[\[|'''")
SEPARATOR = regex.compile(r"[ \t][|»›>·•][ \t]")
INLINE = regex.compile(r"</?(?:su[bp]|[biu]|em|strong|br)\s*/?>", regex.IGNORECASE)
UNSEEN = regex.compile(r"[\p{C}\p{Z}\p{M}\s]+")
NOTHING = regex.compile(r"[\p{P}]*")
ASKS_FOR_VALUES = regex.compile(
    r"return|output|print|value|code|python|java|sql|variable|pandas|function|none|null|nan\b|n/a|_{2}",
    regex.IGNORECASE,
)
CHAT_MARKS = regex.compile(
    r"<\|[\w ]{1,40}\|>|<｜[^｜]{1,40}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk|(?:start|end)_of_turn)>"
)
TURNING = regex.compile(r"([\p{L}\p{N}].{0,59}?)(?:[\s,.!;]*+\1){5,}+.{0,3}")
ENCODED = regex.compile(r"[a-z][A-Z0-9]|[A-Z][a-z0-9]|\d[A-Za-z]")
ASKS_FOR_CODES = regex.compile(
    r"base ?64|encod|decod|hash|hex|sha|md5|token|key|cipher|encrypt|uuid|binary", regex.IGNORECASE
)
LETTER_ALONE = regex.compile(r"[^\W\d_]\p{M}*")


class Turn(NamedTuple):
    """What is trained, its materials, and, of an answer, all that stood before it."""

    text: str
    made: Made
    asked: str | None = None


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
    rows = zip(turns, batch.texts, batch.script_counts() > 0, letter_counts(batch), *measure(batch))
    found = []
    for turn, words, scripts, *measured in rows:
        seen = {characters.SCRIPT_CODES[k] for k in np.flatnonzero(scripts) if k > 1}
        told = [*check_measured(turn, words, *measured, limits), *check_words(turn, words, seen, limits)]
        found.append([finding for finding in told if finding and finding.reason in limits])
    return found


def check_measured(
    turn: Turn,
    words: str,
    letters: int,
    letter_share: float,
    symbol_share: float,
    run: tuple[int, float],
    limits: Mapping[str, float],
) -> Iterator[Finding | None]:
    longest, share = run
    if turn.asked is not None:
        yield from check_answer(turn, letters, limits)
        yield bare_numbers(words, turn.asked)
    elif letters < limits.get("no_text", 0) and turn.made.kinds <= {"prose", "list"}:
        yield Finding("no_text", f"{letters} letters")
    elif letter_share < limits.get("low_letter_ratio", 0):
        yield Finding("low_letter_ratio", f"{letter_share:.2f} of the characters are letters")
    if symbol_share > limits.get("symbol_heavy", 1):
        yield Finding("symbol_heavy", f"{symbol_share:.2f} of the characters are symbols")
    if longest >= limits.get("char_run", 0) or (
        longest >= RUN and share > 0.6 and turn.text.strip()[0] not in WORDS["laughter"]
    ):
        yield Finding("char_run", f"one character {longest} times in a row")


def check_answer(turn: Turn, letters: int, limits: Mapping[str, float]) -> Iterator[Finding | None]:
    """An answer of which nothing can be learnt; a word, a number, a letter and a symbol are answers."""
    bare = UNSEEN.sub("", turn.text)
    if NOTHING.fullmatch(bare) and not regex.fullmatch(r"[(\[{<].*[>)\]}]", bare):
        yield Finding(
            "no_text", f"an answer of {bare[:20]!r}" if bare else "an answer of what cannot be seen"
        )
    if turn.text.strip() in WORDS["placeholders"] and not ASKS_FOR_VALUES.search(turn.asked):
        yield Finding("placeholder", turn.text.strip())
    marks = CHAT_MARKS.findall(FENCED.sub(" ", turn.text)) if "<" in turn.text or "[" in turn.text else []
    if marks and not CHAT_MARKS.search(turn.asked):
        yield Finding("control_tokens", f"{len(marks)} marks of a template, the first {marks[0]}")


def check_words(
    turn: Turn, words: str, scripts: set[str], limits: Mapping[str, float]
) -> Iterator[Finding | None]:
    yield repetition(words, limits.get("repetition", 1))
    if turn.asked is None or not (turn.made.kinds & {"code", "data"} or PAGE.search(turn.asked)):
        yield markup(turn, limits.get("markup", 0))
    yield menu(turn, limits.get("menu", 0))
    if turn.asked is None or not ASKS_FOR_CODES.search(turn.asked):
        written = words if turn.made.kinds & {"code", "data"} else turn.text
        yield long_token(written, scripts, limits.get("long_token", 0))
    yield spaced_letters(words, limits.get("spaced_letters", 1))
    codec = find_mojibake(words, scripts)
    yield Finding("mojibake", codec) if codec else None


def letter_counts(batch: Batch) -> np.ndarray:
    classes = batch.class_counts()
    return classes[:, characters.LETTER] + classes[:, characters.MARK]


def measure(batch: Batch) -> tuple[np.ndarray, np.ndarray, list[tuple[int, float]]]:
    """Of each text the letters and the symbols as shares of what is neither space nor picture, a character that is
    drawn out counting once and a Han letter three times; and the longest run, with its share of all characters."""
    starts = np.ones(len(batch.points), bool)
    starts[1:] = (batch.points[1:] != batch.points[:-1]) | (batch.owners[1:] != batch.owners[:-1])
    places = np.flatnonzero(starts)
    owners, points, kinds = batch.owners[places], batch.points[places], batch.classes[places]
    runs = np.diff(np.append(places, len(batch.points)))
    longest = np.zeros(len(batch.texts), np.int64)
    ruled = np.isin(points, RULERS) | (kinds == characters.DIGIT)
    np.maximum.at(longest, owners, np.where(ruled, 0, runs))
    kinds = np.where((points >= PICTURES) | ((points >= 0x2600) & (points < 0x27C0)), characters.SPACE, kinds)
    counts = np.bincount(owners * 8 + kinds, minlength=len(batch.texts) * 8).reshape(-1, 8).astype(np.float64)
    extra = 2.0 * batch.script_counts()[:, characters.HAN]
    visible = np.maximum(counts.sum(1) - counts[:, characters.SPACE] + extra, 1)
    letters = counts[:, characters.LETTER] + counts[:, characters.MARK] + extra
    symbols = counts[:, characters.PUNCTUATION] + counts[:, characters.SYMBOL]
    told = batch.lengths - batch.class_counts()[:, characters.SPACE] + extra >= LEAST_VISIBLE
    shares = longest / np.maximum(batch.lengths, 1)
    return (
        np.where(told, letters / visible, 1),
        np.where(told, symbols / visible, 0),
        list(zip(longest.tolist(), shares.tolist())),
    )


def bare_numbers(words: str, asked: str) -> Finding | None:
    """Five long numbers or more and hardly a word, neither in order nor out of the question."""
    parts = words.split()
    numbers = [part for part in parts if part.isdigit()]
    if len(numbers) < max(5, 0.7 * len(parts)) or sum(map(len, numbers)) < 3 * len(numbers):
        return None
    values = list(map(int, numbers))
    ordered = all(a <= b for a, b in pairwise(values)) or all(a >= b for a, b in pairwise(values))
    if ordered or sum(number in asked for number in numbers) >= len(numbers) / 2:
        return None
    return Finding("low_letter_ratio", f"{len(numbers)} numbers and {len(parts) - len(numbers)} words")


def repetition(text: str, limit: float) -> Finding | None:
    """The same words again and again: it compresses too well, or most of its 10-grams come back.

    Of a song each line counts once, unless it is most of the song.
    """
    text = text.strip()
    turning = TURNING.fullmatch(text) if len(text) < 2_000 else None
    if (
        turning
        and turning[1].strip().lower() not in WORDS["laughter"]
        and regex.search(r"\p{L}", turning[1])
        and len(turning[1]) > 1
    ):
        return Finding("repetition", f"{turning[1][:30]!r} again and again")
    lines = text.split("\n")
    if len(lines) >= 4 and (distinct := list(dict.fromkeys(lines))) and len(lines) <= REFRAIN * len(distinct):
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
    prose = FENCED.sub(" ", turn.text) if turn.asked is None else turn.made.prose
    if not any(sign in prose for sign in ("<", "&", "[[", "{{")):
        return None
    count = sum(not INLINE.match(tag[0]) for tag in TAG.finditer(prose) if is_html(tag[0]))
    count += len(WIKI.findall(prose)) if turn.asked is None else 0
    return Finding("markup", f"{count} tags, entities or wiki marks") if count >= limit > 0 else None


def is_html(tag: str) -> bool:
    return bool(HTML.match(tag))


HTML = regex.compile(
    r"&|<!--|</?(?:html|head|body|div|span|p|a|img|ul|ol|li|dl|dt|dd|table|tr|td|th|tbody|thead|h[1-6]|br|hr|font|center|"
    r"script|style|link|meta|iframe|form|input|button|nav|footer|header|section|article|blockquote|pre|code|small|ref)\b",
    regex.IGNORECASE,
)


def menu(turn: Turn, limit: float) -> Finding | None:
    """A line of links that once was a page's navigation: three separators or more between short names, and no number.

    In an answer `Account > Orders > Invoice` is the way to something.
    """
    if not limit or "---" in turn.text or "code" in turn.made.kinds:
        return None
    for line in turn.text.split("\n"):
        cells = SEPARATOR.split(line.strip())
        if len(cells) <= limit or line.lstrip()[0] == "|" or line.rstrip()[-1] in ".!?。":
            continue
        names = sum(len(cell) <= 40 and not regex.search(r"\d", cell) for cell in cells)
        if names >= 0.75 * len(cells) and (turn.asked is None or " | " in line):
            return Finding("menu", f"{len(cells) - 1} separators in a line")
    return None


def long_token(text: str, scripts: set[str], limit: float) -> Finding | None:
    """A word of more than 60 characters that changes between capitals, small letters and digits: encoded data."""
    if scripts & UNSPACED or not limit:
        return None
    for token in text.split():
        if len(token) > limit and not LINK.search(token) and len(ENCODED.findall(token)) > 0.15 * len(token):
            return Finding("long_token", f"a token of {len(token)} characters")
    return None


def spaced_letters(text: str, limit: float) -> Finding | None:
    """`T h e  l i b r a r y`: sixteen letters or more, each alone, in no alphabet's order."""
    parts = text.split()
    alone = [part for part in parts if LETTER_ALONE.fullmatch(part)]
    if (
        len(alone) < 16
        or len(alone) <= limit * len(parts)
        or len({*alone}) > 0.9 * len(alone)
        or regex.search(r"[\p{Han}\p{Hangul}\p{Kana}\p{Hira}]", text)
    ):
        return None
    return Finding("spaced_letters", f"{len(alone)} letters with spaces between")
