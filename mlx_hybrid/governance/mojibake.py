"""Text that was read in the wrong encoding: `ftfy` for the Western ones, and a round trip for the others."""

from collections.abc import Set

import numpy as np

CODECS = {
    "Cyrl": ("cp1251", "koi8-r"),
    "Hani": ("gbk", "big5"),
    "Hang": ("euc-kr",),
    "Arab": ("cp1256",),
    "Grek": ("cp1253",),
    "Hebr": ("cp1255",),
    "Thai": ("cp874",),
    "Latn": ("mac-roman", "cp1250", "cp1254", "cp437"),
}
LEAST = 3
VALID_SHARE = 0.5  # clean text stays under 0.1 in every codec here (tests/governance/test_quality.py)


def find_mojibake(text: str, scripts: Set[str]) -> str | None:
    """The encoding a text was wrongly read in, or None. `scripts` are those seen in it."""
    from ftfy import badness

    if text.isascii():
        return None
    if badness.is_bad(text):
        return "cp1252"
    for script in sorted(scripts & CODECS.keys()):
        for codec in CODECS[script]:
            if utf8_share(text, codec) >= VALID_SHARE:
                return codec
    return None


def utf8_share(text: str, codec: str) -> float:
    """Share of the bytes above 127 that form whole UTF-8 characters once `text` is written in `codec`.

    Near 1 for UTF-8 that was read in that codec, near 0 for text that is really in it. Characters that the codec
    does not have are left out, for the wrong reading loses some bytes.
    """
    raw = np.frombuffer(text.encode(codec, "ignore"), np.uint8)
    high = int((raw >= 0x80).sum())
    if high < 2 * LEAST:
        return 0.0
    decoded = raw.tobytes().decode("utf-8", "ignore")
    valid = sum(len(character.encode()) for character in decoded if character > "\x7f")
    return valid / high
