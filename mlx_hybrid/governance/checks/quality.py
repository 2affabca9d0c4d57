"""Rules that need no model and no labels: on single texts, a function for each under its name in rules.tsv, and on
translations (records with `source_language`): length ratio, copies and numbers."""

import math
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import regex

from mlx_hybrid.governance.checks import characters
from mlx_hybrid.governance.checks.characters import Batch, batch_of, find_mojibake, measure
from mlx_hybrid.governance.checks.grams import normalise
from mlx_hybrid.governance.checks.material import LETTERS, MATERIAL, Turn
from mlx_hybrid.governance.rules import MAY_BE, WORDS, Finding, patterns
from mlx_hybrid.records.languages import UNSPACED, UnknownLanguage, parse_language
from mlx_hybrid.records.record import Record

COMPRESSED, COMPRESSED_FROM = 0.25, 200
SUSPECT = 0.6  # a text half of whose 10-grams come back compresses to less
NEW, LONGEST_NEW = 0.75, 16  # a text of which more are new words, none of them longer, repeats nothing
LEAST_LINE, LEAST_LINES = 8, 6  # characters of a line beside code that counts, and such lines that tell
BLOCK = 5  # lines on end: in code single ones and pairs come again
FEW = 0.8  # of lines or 10-grams with signs repeat others: more do those only that turn in a circle
SIGNED, BLOCKED = frozenset({"code", "data", "table", "notation"}), regex.compile("```|~~~")
REFRAIN = 6  # times that a line of a song may stand in it
LONGEST_RULER = 200  # characters of a line beside code, which may be drawn with any
LEAST_PAIRS = 200  # fewer do not tell how long translations between two languages are
FAR = 3.5  # robust z: keeps 98.8–99.9 % of good pairs (docs/governance.md)
QUALITY = patterns("quality")


class Look(NamedTuple):
    """A turn and its words; the scripts of their letters, what characters.py tells of them, what is wrong with them."""

    turn: Turn
    words: str
    scripts: set[str]
    letters: int
    letter_share: float
    symbol_share: float
    run: int
    run_share: float
    misread: str | None


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
    batch = batch_of(tuple(turn.made.words for turn in turns))
    looks = map(Look, turns, batch.texts, batch.scripts_seen(), *measure(batch), find_mojibake(batch))
    rules = [(name, rule, limits[name]) for rule in ON_TEXTS if (name := rule.__name__) in limits]
    found = ([(name, rule(look, limit)) for name, rule, limit in rules] for look in looks)
    return [[Finding(name, told) for name, told in own if told] for own in found]


def no_text(look: Look, limit: float) -> str:
    if look.turn.asked is None:
        few = look.letters < limit and look.turn.made.kinds <= {"prose", "list"}
        return f"{look.letters} letters" if few else ""
    text = look.turn.text
    bare = text[:1] if text[:1].isascii() and text[:1].isalnum() else QUALITY.unseen.sub("", text)
    if not QUALITY.nothing.fullmatch(bare) or QUALITY.bracketed.fullmatch(bare):
        return ""
    if bare and look.turn.asks(QUALITY.for_signs):
        return ""
    return f"an answer of {bare[:20]!r}" if bare else "an answer of what cannot be seen"


def placeholder(look: Look, _: float) -> str:
    words = set(look.turn.text.split())
    is_one = look.turn.asked is not None and words and words <= WORDS["placeholders"]
    return " ".join(words) if is_one and not look.turn.asks(QUALITY.for_values) else ""


def control_tokens(look: Look, _: float) -> str:
    text = look.turn.text
    if look.turn.asked is None or not MAY_BE.chat_marks.search(text) or look.turn.asks(QUALITY.chat_marks):
        return ""
    found = QUALITY.marks_alone if look.turn.bare & {"code", "data"} else QUALITY.chat_marks
    text = MATERIAL.fenced.sub(" ", text)
    marks = found.findall(text) + QUALITY.marks_beside.findall(text)
    return f"{len(marks)} marks of a template, the first {marks[0]}" if marks else ""


def low_letter_ratio(look: Look, limit: float) -> str:
    """Of an answer five long numbers or more and hardly a word, neither in order nor out of the question, where that
    asks for no numbers."""
    if look.turn.asked is None:
        return f"{look.letter_share:.2f} of the characters are letters" if look.letter_share < limit else ""
    parts = look.words.split()
    numbers = [part for part in parts if QUALITY.number.fullmatch(part)]
    few = len(numbers) < max(5, 0.7 * len(parts)) or sum(map(len, numbers)) < 3 * len(numbers)
    if few or look.turn.asks(QUALITY.for_numbers):
        return ""
    values = [float(number.replace(",", ".")) for number in numbers]
    ordered = sorted(values) in (values, values[::-1])
    asked = sum(number in look.turn.asked for number in numbers) >= len(numbers) / 2
    return "" if ordered or asked else f"{len(numbers)} numbers and {len(parts) - len(numbers)} words"


def symbol_heavy(look: Look, limit: float) -> str:
    if look.turn.asked is not None and QUALITY.figures.fullmatch(look.words):
        return ""
    if look.turn.asks(QUALITY.for_signs):
        return ""
    return f"{look.symbol_share:.2f} of the characters are symbols" if look.symbol_share > limit else ""


def char_run(look: Look, limit: float) -> str:
    text = look.turn.text.strip()
    drawn_out = look.run >= 8 and look.run_share > 0.6 and not QUALITY.drawn_word.fullmatch(text)
    found = look.run >= limit or (drawn_out and text[0] not in WORDS["laughter"])
    if found and look.run <= LONGEST_RULER and look.turn.bare & {"code", "data"}:
        found = QUALITY.drawn_out.search(look.words)
    return f"one character {look.run} times in a row" if found else ""


def repetition(look: Look, limit: float) -> str:
    """It compresses too well, or its 10-grams come back; of a song each line counts once, unless it is most of it.
    Beside code, whose comments are alike as its lines are, whole lines must, several in their order or nearly all."""
    signed = look.turn.made.kinds & SIGNED  # what stands in backticks tells one sentence from the next
    text = (look.turn.text if signed else look.words).strip()
    turns = len(text) < 2_000 and text.count(text[:2]) > 5
    turning = QUALITY.turning.fullmatch(text) if turns else None
    word = turning[1] if turning else ""
    if len(word) > 1 and LETTERS.search(word) and word.strip().lower() not in WORDS["laughter"]:
        return f"{word[:30]!r} again and again"
    if signed and (BLOCKED.search(look.turn.text) or look.turn.bare & SIGNED):
        lines = [line.strip() for line in look.turn.text.split("\n") if LETTERS.search(line)]
        blocks = list(zip(*(lines[start:] for start in range(BLOCK))))
        repeated, again = (1 - len(set(rows)) / max(1, len(rows)) for rows in (blocks, lines))
        told = sum(len(line) >= LEAST_LINE for line in lines) >= LEAST_LINES
        found = told and (repeated > limit or again > FEW)
        return f"{max(repeated, again):.2f} of the lines come back" if found else ""
    lines = text.split("\n")
    distinct = list(dict.fromkeys(lines))
    if 4 <= len(lines) <= REFRAIN * len(distinct):
        text = "\n".join(distinct)
    words = text.split()
    new = len("".join({*words})) + len(words)  # of words that were not there before, and the spaces
    is_new = new > max(NEW, 1 - limit) * len(text) and max(map(len, words)) <= LONGEST_NEW
    if is_new and not signed:
        return ""
    text = QUALITY.one_again.sub(r"\1\1", text)  # that one character is drawn out is told by char_run
    raw = text.encode("utf-8", "replace")
    # A window that just holds it (in 262 bytes of one zlib finds nothing): the usual one takes longer to set up.
    window = min(15, max(9, (len(raw) + 262).bit_length()))
    ratio = len(zlib.compress(raw, 1, window)) / len(raw) if len(raw) >= 60 else 1.0
    if ratio < COMPRESSED and len(raw) >= COMPRESSED_FROM:
        return f"compresses to {ratio:.2f}"
    if ratio > SUSPECT or len(text) < 60:
        return ""
    grams = [text[i : i + 10] for i in range(len(text) - 9)]
    repeated = 1 - len(set(grams)) / len(grams)
    return f"{repeated:.2f} of the 10-grams come back" if repeated > (FEW if signed else limit) else ""


def markup(look: Look, limit: float) -> str:
    turn = look.turn
    if not MAY_BE.markup.search(turn.text):
        return ""
    if turn.asked is not None and (turn.is_code or turn.asks(QUALITY.for_pages)):
        return ""
    prose = MATERIAL.fenced.sub(" ", turn.text) if turn.asked is None else turn.made.prose
    if not MAY_BE.markup.search(prose):
        return ""
    tags = (tag[0] for tag in MATERIAL.tag.finditer(prose))
    count = sum(bool(QUALITY.html.match(tag) and not QUALITY.inline.match(tag)) for tag in tags)
    count += len(QUALITY.wiki.findall(prose)) if turn.asked is None else 0
    return f"{count} tags, entities or wiki marks" if count >= limit else ""


def menu(look: Look, limit: float) -> str:
    """Short names without a number between separators; in an answer `Account > Orders > Invoice` is a way."""
    text = look.turn.text
    is_page = MAY_BE.separator.search(text) and "---" not in text and "code" not in look.turn.made.kinds
    for line in text.split("\n") if is_page else ():
        cells = QUALITY.separator.split(line.strip())
        if len(cells) <= limit or line.lstrip()[0] == "|" or line.rstrip()[-1] in ".!?。":
            continue
        names = sum(len(cell) <= 40 and not regex.search(r"\d", cell) for cell in cells)
        is_way = look.turn.asked is not None or (" > " in line and cells[0].count(" ") > 1)
        if names >= 0.75 * len(cells) and (" | " in line or not is_way):
            return f"{len(cells) - 1} separators in a line"
    return ""


def long_token(look: Look, limit: float) -> str:
    """A long word that changes between capitals, small letters and digits."""
    parts = (look.words if look.turn.is_code else look.turn.text).split()
    tokens = [part for part in parts if len(part) > limit]
    if not tokens or look.scripts & UNSPACED or look.turn.asks(QUALITY.for_codes):
        return ""
    for token in tokens:
        if len(QUALITY.encoded.findall(token)) > 0.15 * len(token) and not MATERIAL.link.search(token):
            return f"a token of {len(token)} characters"
    return ""


def spaced_letters(look: Look, limit: float) -> str:
    """`T h e  l i b r a r y`: sixteen letters or more, each alone, in no alphabet's order."""
    parts = look.words.split()
    alone = [part for part in parts if not part[1:2].isalpha() and QUALITY.letter_alone.fullmatch(part)]
    few = len(alone) < 16 or len(alone) <= limit * len(parts)
    if few or len({*alone}) > 0.9 * len(alone) or QUALITY.east_asian.search(look.words):
        return ""
    return f"{len(alone)} letters with spaces between"


def mojibake(look: Look, _: float) -> str:
    return look.misread or ""


ON_TEXTS = (no_text, placeholder, control_tokens, low_letter_ratio, symbol_heavy, char_run, repetition)
ON_TEXTS += (markup, menu, long_token, spaced_letters, mojibake)


class Pair(NamedTuple):
    """One translation: the two languages, the logarithm of target over source length, and what is wrong already."""

    languages: str
    log_ratio: float
    copy: bool
    flags: tuple[Finding, ...] = ()


def read_pair(record: Record) -> Pair | None:
    """The pair of a translation record, its source `source_text`, else the prompt; None for any other record."""
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
    differs = numbers_differ(source, target)
    flags = (Finding("number_mismatch", differs),) if differs else ()
    return Pair(names, ratio, len({*normalise([source, target])}) == 1, flags)


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
