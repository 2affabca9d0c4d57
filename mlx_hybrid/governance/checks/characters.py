"""What characters texts have (class, script), as `regex` knows Unicode, their shares and runs, and whether a text was
read in the wrong encoding: `ftfy` tells of the Western ones, a way back of the others."""

import re
from collections.abc import Sequence, Set
from functools import cached_property, lru_cache
from itertools import permutations

import numpy as np
import regex
from ftfy import badness

from mlx_hybrid.governance.rules import CUES, MAY_BE, patterns

TABLE_SIZE = 0x20000  # planes 0 and 1; beyond them stand Han letters (2, 3) and nothing that is written
OTHER, LETTER, MARK, DIGIT, SPACE, PUNCTUATION, SYMBOL, BROKEN = range(8)
CLASSES = (r"\p{L}", r"\p{M}", r"\p{N}", r"[\p{Z}\t\n\f\r]", r"\p{P}", r"\p{S}")
DAMAGED = r"[[\p{Cc}\p{Co}\p{Cn}\p{Cs}\uFFFD]--[\t\n\f\r]]"
# What `badness` calls bad has one of these, beside what is not ASCII or by itself.
COMMON = ("common", "c1", "lower_accented", "lower_common", "upper_common", "kaomoji")
RARE = "".join(signs for name, signs in badness.MOJIBAKE_CATEGORIES.items() if name not in COMMON)
ODD_SIGN = f"[{RARE}ЂÒ-ÖÙ-ÜŐŌŪŲ°]"
MAY_BE_BAD = re.compile(rf"(?s)[\x80-\x9fŒœ]|[a-z][ÂÃ] |{ODD_SIGN}(?:(?<=[^\x00-\x7f].)|(?=[^\x00-\x7f]))")
# The first is what scripts share and inherit, the second any that is not named here.
SCRIPT_CODES = CUES["scripts"].split()
HAN = SCRIPT_CODES.index("Hani")
CODECS = [pair.split() for pair in CUES["misread"].split(", ")]  # as which script UTF-8 is seen, read so
VALID_SHARE = 0.75  # clean sentences reach 0.6 in gbk and 0.4 elsewhere, misread ones fall to 0.8
ONE_SCRIPT, MANY = 0.8, 6
CHARACTER_SETS = ("gb2312", "big5hkscs", "euc_jp", "johab")  # Simplified, Traditional, Japanese, Korean
CYRILLIC = ("cp1251", "koi8-r", "cp866", "iso8859-5", "mac-cyrillic")
BY_USE = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё"  # the letters of Cyrillic
QUOTE = "鈥"  # what gbk makes of the first bytes of a curly quote or dash; holmium, in Chinese text
ASCII = bytes(range(128))
LEAST_VISIBLE = 16  # shares of fewer characters say nothing: “Oh, no.”
# What lines, tables and long words are drawn with.
RULERS = list(map(ord, " \t\n\r-=_*#~.·•─━═│+|…—–〜～ー。ـ"))
PICTURES = 0x1F000  # the first of the emoji
DRAWN_OUT = re.compile(r"(\w)\1{3,}")
MOJIBAKE = patterns("mojibake")


@lru_cache(1)
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Class and script of each code point below TABLE_SIZE, as two uint8 arrays."""
    # A private-use character stands in for each surrogate: `regex` cannot scan half a pair.
    text = "".join(chr(0xE000 if 0xD800 <= point < 0xE000 else point) for point in range(TABLE_SIZE))
    unnamed = r"[^\p{Script=Zyyy}\p{Script=Zinh}\p{Cn}\p{Co}]"
    scripts = unnamed, *(rf"\p{{Script={code}}}" for code in SCRIPT_CODES[2:])
    found = np.zeros((2, TABLE_SIZE), np.uint8)
    for table, kinds in zip(found, ((*CLASSES, DAMAGED), scripts)):
        for number, pattern in enumerate(kinds, start=1):
            for match in regex.finditer(f"{pattern}+", text, regex.V1):
                table[match.start() : match.end()] = number
    return found[0], found[1]


@lru_cache(1)
def ranks() -> np.ndarray:
    """Of each code point below TABLE_SIZE how seldom it is in Cyrillic; −1 of what is no letter."""
    found = np.where(tables()[0] == LETTER, len(BY_USE), -1)
    for letters in (BY_USE, BY_USE.upper()):
        found[list(map(ord, letters))] = range(len(BY_USE))
    return found


class Batch:
    """Texts as `points` (n,) uint32 with their `classes` and `scripts` (n,) uint8; `starts`, `lengths` (texts,)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.lengths = np.array([len(text) for text in texts], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        self.points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
        self.owners = np.repeat(np.arange(len(texts)), self.lengths)
        low = np.minimum(self.points, TABLE_SIZE - 1)
        self.classes, self.scripts = (table[low] for table in tables())
        beyond = self.points >= TABLE_SIZE
        if beyond.any():
            han = beyond & (self.points < 0x32400)
            self.classes[beyond], self.scripts[beyond] = BROKEN, 0
            self.classes[han], self.scripts[han] = LETTER, HAN
            self.classes[(self.points >= 0xE0000) & (self.points < 0xE0200)] = OTHER  # tags
            self.classes[(self.points >= 0xE0100) & (self.points < 0xE01F0)] = MARK  # variants

    def count(self, values: np.ndarray, kinds: int) -> np.ndarray:
        """How often each of `kinds` values occurs in each text, (texts, kinds)."""
        flat = np.bincount(self.owners * kinds + values, minlength=len(self.texts) * kinds)
        return flat.reshape(len(self.texts), kinds)

    @cached_property
    def script_counts(self) -> np.ndarray:
        """Letters of each script in each text; marks and what all scripts share do not count."""
        return self.count(np.where(self.classes == LETTER, self.scripts, 0), len(SCRIPT_CODES))

    def spaced(self, kept: np.ndarray) -> list[str]:
        """Each text with every run of characters that are not `kept` (n,) made one space, and none around it."""
        left = kept.copy()
        left[1:] |= kept[:-1]
        points = np.where(kept, self.points, 32)[left]
        text = points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        ends = np.concatenate([[0], np.cumsum(left)])
        bounds = zip(ends[self.starts].tolist(), ends[self.starts + self.lengths].tolist())
        return [text[start:end].strip(" ") for start, end in bounds]

    def scripts_seen(self) -> list[set[str]]:
        """The named scripts of each text's letters."""
        seen: list[set[str]] = [set() for _ in self.texts]
        for place, number in np.argwhere(self.script_counts[:, 2:]).tolist():
            seen[place].add(SCRIPT_CODES[2 + number])
        return seen


batch_of = lru_cache(2)(Batch)  # of a tuple: of plain prose all stages ask for the same


def letters_only(batch: Batch) -> list[str]:
    """Lower-cased, with every run of what is neither letter nor mark made one space: what engines are shown."""
    joiners = (batch.points == 0x200C) | (batch.points == 0x200D)
    kept = (batch.classes == LETTER) | (batch.classes == MARK) | joiners
    texts = [text.lower() for text in batch.spaced(kept)]
    again = (batch.points[3:] == batch.points[:-3]) & (batch.points[2:-1] == batch.points[1:-2]) & kept[3:]
    for owner in {*batch.owners[3:][again & (batch.points[3:] == batch.points[2:-1])].tolist()}:
        texts[owner] = DRAWN_OUT.sub(r"\1\1", texts[owner])
    return texts


def measure(batch: Batch) -> list[list]:
    """Of all texts the number of letters; letters and symbols as shares of what is neither space nor picture, a
    character that is drawn out counting once and a Han letter three times; the longest run, and its share."""
    starts = np.ones(len(batch.points), bool)
    starts[1:] = (batch.points[1:] != batch.points[:-1]) | (batch.owners[1:] != batch.owners[:-1])
    places = np.flatnonzero(starts)
    owners, points, kinds = batch.owners[places], batch.points[places], batch.classes[places]
    runs = np.diff(np.append(places, len(batch.points)))
    longest = np.zeros(len(batch.texts), np.int64)
    pictures = (points >= PICTURES) | ((points >= 0x2600) & (points < 0x27C0))
    np.maximum.at(longest, owners, np.where(np.isin(points, RULERS) | (kinds == DIGIT) | pictures, 0, runs))
    kinds = np.where(pictures, SPACE, kinds)
    once = np.bincount(owners * 8 + kinds, minlength=len(batch.texts) * 8).reshape(-1, 8).T.astype(np.float64)
    whole, extra = batch.count(batch.classes, 8).T, 2.0 * batch.script_counts[:, HAN]
    visible = np.maximum(once.sum(0) - once[SPACE] + extra, 1)
    letters = once[LETTER] + once[MARK] + extra
    symbols = once[PUNCTUATION] + once[SYMBOL]
    told = batch.lengths - whole[SPACE] + extra >= LEAST_VISIBLE
    shares = np.where(told, letters / visible, 1), np.where(told, symbols / visible, 0)
    count, share = whole[LETTER] + whole[MARK], longest / np.maximum(batch.lengths, 1)
    return [values.tolist() for values in (count, *shares, longest, share)]


def find_mojibake(batch: Batch) -> list[str | None]:
    """What is wrong with the encoding of each text, or None."""
    return list(map(name_mojibake, batch.texts, batch.scripts_seen()))


def name_mojibake(text: str, scripts: Set[str]) -> str | None:
    if MAY_BE.lost.search(text) and len(MOJIBAKE.lost.findall(text)) >= 2:
        return "letters were lost to question marks"
    if text.isascii():
        return None
    if MAY_BE_BAD.search(text) and badness.is_bad(text):
        return "UTF-8 that was read as cp1252"
    if "Cyrl" in scripts and (pair := swapped_cyrillic(text)):
        return "{} that was read as {}".format(*pair)
    if "Mymr" in scripts and len(MOJIBAKE.zawgyi.findall(text)) > 0.02 * len(text):
        return "Burmese in Zawgyi, which is not Unicode"
    if "Latn" in scripts and is_single_byte(text):
        return "another alphabet that was read as latin-1"
    # What UTF-8 has several bytes for is seen as several signs, but in codecs that have pairs of bytes.
    may_be = scripts & {"Hani", "Hang"} or MAY_BE.paired.search(text)
    codecs = (codec for script, codec in CODECS if may_be and script in scripts)
    found = next((codec for codec in codecs if is_misread(text, codec)), None)
    found = found or ("gbk" if "Hani" in scripts and is_nowhere_written(text) else None)
    return found and f"UTF-8 that was read as {found}"


def swapped_cyrillic(text: str) -> tuple[str, str] | None:
    """The encoding that a Cyrillic text was written in and the one it was read in, where they differ."""
    own = mean_rank(text)
    for written, read in permutations(CYRILLIC, 2) if own >= 9.5 else ():
        back = text.encode(read, "ignore").decode(written, "ignore")
        if len(back) > 0.9 * len(text) and 0 < mean_rank(back) < min(10, own - 2.8):
            return written, read
    return None


def mean_rank(text: str) -> float:
    """How seldom the letters of a Cyrillic text are, on average; 0 for fewer than 16 letters."""
    found = ranks().take(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), mode="clip")
    letters = found[found >= 0]
    return float(letters.mean()) if len(letters) >= 16 else 0.0


def is_single_byte(text: str) -> bool:
    """Whether most letters are of the upper half of latin-1: in no language that is written with it are they."""
    high = len(MOJIBAKE.high.findall(text))
    letters = sum(map(str.isalpha, text)) if high >= 5 else 0
    return letters >= 8 and high > 0.6 * letters


def is_misread(text: str, codec: str) -> bool:
    """Whether `text`, written in `codec`, is UTF-8 of one script, which by chance it is not."""
    raw = text.encode(codec, "ignore")
    high = len(raw.translate(None, ASCII))
    read = raw.decode("utf-8", "ignore") if high > 1 else ""
    if high < 2 or len(read.encode()) - (len(raw) - high) < VALID_SHARE * high:
        return False
    found = "".join(c for c in read if c > "\x7f")
    batch = Batch([found])
    letters = batch.scripts[batch.classes == LETTER]
    counts = np.bincount(letters, minlength=3)
    if len(found) >= MANY and len(letters):
        return counts.max() >= ONE_SCRIPT * len(letters)
    # A few letters are enough only where they are Latin ones, as in the middle of a Western word.
    return high < len(raw) / 2 and counts[2] == len(letters)


def is_nowhere_written(text: str) -> bool:
    """Whether a tenth of the Han letters are missing from every national character set; a real text fits one."""
    letters = "".join(c for c in text if "\u4e00" <= c <= "\u9fa5")
    if QUOTE in letters and len(letters) < len(text) / 4:
        return True
    missing = (len(letters) - len(letters.encode(name, "ignore").decode(name)) for name in CHARACTER_SETS)
    return all(count >= 2 and count > 0.1 * len(letters) for count in missing)
