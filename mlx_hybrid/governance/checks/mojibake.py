"""Text that was read in the wrong encoding: `ftfy` for the Western ones, and a way back for the others."""

from collections.abc import Set
from itertools import permutations

import numpy as np

from mlx_hybrid.governance.checks.characters import LETTER, Batch
from mlx_hybrid.governance.tables import CUES, patterns

CODECS = [pair.split() for pair in CUES["misread"].split(", ")]
"""Scripts as which UTF-8 is seen that was read in a codec."""
VALID_SHARE = 0.75  # clean sentences reach 0.6 in gbk and 0.4 elsewhere, misread ones fall to 0.8
ONE_SCRIPT, MANY = 0.8, 6
CHARACTER_SETS = ("gb2312", "big5hkscs", "euc_jp", "johab")  # Simplified, Traditional, Japanese, Korean
STRANGE_SHARE = 0.1
CYRILLIC = ("cp1251", "koi8-r", "cp866", "iso8859-5", "mac-cyrillic")
COMMON = "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё"  # Cyrillic letters, the commonest first
QUOTE = "鈥"  # what gbk makes of the first bytes of a curly quote or dash; holmium, in Chinese text
MOJIBAKE = patterns("mojibake")


def find_mojibake(text: str, scripts: Set[str] | None = None) -> str | None:
    """What is wrong with the encoding of a text, or None. `scripts` are those seen in it, where that is known."""
    from ftfy import badness

    if "?" in text and len(MOJIBAKE.lost.findall(text)) >= 2:
        return "letters were lost to question marks"
    if text.isascii():
        return None
    scripts = next(Batch([text]).scripts_seen()) if scripts is None else scripts
    if badness.is_bad(text):
        return "UTF-8 that was read as cp1252"
    if "Cyrl" in scripts and (pair := swapped_cyrillic(text)):
        return "{} that was read as {}".format(*pair)
    if "Mymr" in scripts and len(MOJIBAKE.zawgyi.findall(text)) > 0.02 * len(text):
        return "Burmese in Zawgyi, which is not Unicode"
    if "Latn" in scripts and is_single_byte(text):
        return "another alphabet that was read as latin-1"
    codecs = (codec for script, codec in CODECS if script in scripts)
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
    ranks = [COMMON.index(c) if c in COMMON else len(COMMON) for c in text.lower() if c.isalpha()]
    return sum(ranks) / len(ranks) if len(ranks) >= 16 else 0.0


def is_single_byte(text: str) -> bool:
    """Whether most letters are of the upper half of latin-1: in no language that is written with it are they."""
    letters = [c for c in text if c.isalpha()]
    return len(letters) >= 8 and sum("\xc0" <= c <= "\xff" for c in letters) > 0.6 * len(letters)


def is_misread(text: str, codec: str) -> bool:
    """Whether `text`, written in `codec`, is UTF-8 of one script, which by chance it is not."""
    raw = np.frombuffer(text.encode(codec, "ignore"), np.uint8)
    high = int((raw >= 0x80).sum())
    found = "".join(c for c in raw.tobytes().decode("utf-8", "ignore") if c > "\x7f") if high > 1 else ""
    if high < 2 or len(found.encode()) < VALID_SHARE * high:
        return False
    batch = Batch([found])
    letters = batch.scripts[batch.classes == LETTER]
    shares = np.bincount(letters, minlength=3) / max(len(letters), 1)
    if len(found) >= MANY and len(letters):
        return shares.max() >= ONE_SCRIPT
    # A few letters are enough only where they are Latin ones, as in the middle of a Western word.
    return high < len(raw) / 2 and shares[2] == len(letters) / max(len(letters), 1)


def is_nowhere_written(text: str) -> bool:
    """Whether a tenth of the Han letters are missing from every national character set; a real text fits one."""
    letters = "".join(c for c in text if "\u4e00" <= c <= "\u9fa5")
    if QUOTE in letters and len(letters) < len(text) / 4:
        return True
    missing = min(len(letters) - len(letters.encode(name, "ignore").decode(name)) for name in CHARACTER_SETS)
    return missing >= 2 and missing > STRANGE_SHARE * len(letters)
