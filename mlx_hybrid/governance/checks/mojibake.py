"""Text that was read in the wrong encoding: `ftfy` for the Western ones, and a way back for the others.

UTF-8 that was read as cp1251 or gbk looks like letters of a real script, so that no rule on characters sees it. But
written back in that encoding it is UTF-8 again, which text that is really Russian or Chinese never is.
"""

from collections.abc import Set

import numpy as np

from mlx_hybrid.governance.checks.characters import LETTER, Batch

CODECS = {
    "Cyrl": ("cp1251", "koi8-r", "cp866"),
    "Hani": ("gbk", "big5"),
    "Hang": ("euc-kr",),
    "Arab": ("cp1256",),
    "Grek": ("cp1253",),
    "Hebr": ("cp1255",),
    "Latn": ("cp1250", "cp1254", "cp437"),
}
VALID_SHARE = 0.75  # clean sentences reach 0.6 in gbk and 0.4 elsewhere, misread ones fall to 0.8
ONE_SCRIPT = 0.8
MANY = 6
CHARACTER_SETS = ("gb2312", "big5hkscs", "euc_jp", "johab")  # Simplified, Traditional, Japanese, Korean
STRANGE_SHARE = 0.1
QUOTE = "鈥"  # what gbk makes of the first bytes of a curly quote or dash; holmium, in Chinese text


def find_mojibake(text: str, scripts: Set[str]) -> str | None:
    """The encoding a text was wrongly read in, or None. `scripts` are those seen in it."""
    from ftfy import badness

    if text.isascii():
        return None
    if badness.is_bad(text):
        return "cp1252"
    codecs = (codec for script in sorted(scripts & CODECS.keys()) for codec in CODECS[script])
    found = next((codec for codec in codecs if is_misread(text, codec)), None)
    return found or ("gbk" if "Hani" in scripts and is_nowhere_written(text) else None)


def is_misread(text: str, codec: str) -> bool:
    """Whether `text`, written in `codec`, is UTF-8 of one script.

    Chance makes valid sequences of any script; a real text has nearly all its letters in one. A few letters are
    enough only where they are Latin ones, as in the middle of a Western word.
    """
    raw = np.frombuffer(text.encode(codec, "ignore"), np.uint8)
    high = int((raw >= 0x80).sum())
    if high < 2:
        return False
    found = "".join(c for c in raw.tobytes().decode("utf-8", "ignore") if c > "\x7f")
    if len(found.encode()) < VALID_SHARE * high:
        return False
    batch = Batch([found])
    letters = batch.scripts[batch.classes == LETTER]
    shares = np.bincount(letters, minlength=3) / max(len(letters), 1)
    if len(found) >= MANY and len(letters):
        return shares.max() >= ONE_SCRIPT
    return high < len(raw) / 2 and shares[2] == len(letters) / max(len(letters), 1)


def is_nowhere_written(text: str) -> bool:
    """Whether a tenth of the Han letters are missing from every national character set.

    A real text fits one of the four; what comes of misreading in gbk is drawn from all that Unicode has.
    """
    letters = "".join(c for c in text if "\u3400" <= c <= "\u9fff")
    if QUOTE in letters and len(letters) < len(text) / 4:
        return True
    missing = min(len(letters) - len(letters.encode(name, "ignore").decode(name)) for name in CHARACTER_SETS)
    return missing >= 2 and missing > STRANGE_SHARE * len(letters)
