"""What every character is (class, script), as `regex` knows Unicode, and counts of them for a batch of texts."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import regex

from mlx_hybrid.governance.tables import CUES

TABLE_SIZE = 0x20000  # planes 0 and 1; beyond them stand Han letters (2, 3) and nothing that is written
OTHER, LETTER, MARK, DIGIT, SPACE, PUNCTUATION, SYMBOL, BROKEN = range(8)
CLASSES = (r"\p{L}", r"\p{M}", r"\p{N}", r"[\p{Z}\t\n\r]", r"\p{P}", r"\p{S}")
DAMAGED = r"[[\p{Cc}\p{Co}\p{Cn}\p{Cs}\uFFFD]--[\t\n\r]]"
SCRIPT_CODES = CUES["scripts"].split()
"""The first is what scripts share and inherit, the second a script that is not named here."""
HAN = SCRIPT_CODES.index("Hani")


@lru_cache(1)
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Class and script of each code point below TABLE_SIZE, as two uint8 arrays."""
    # A private-use character stands in for each surrogate: `regex` cannot scan half a pair.
    text = "".join(chr(0xE000 if 0xD800 <= point < 0xE000 else point) for point in range(TABLE_SIZE))
    unnamed = r"[^\p{Script=Zyyy}\p{Script=Zinh}\p{Cn}\p{Co}]"
    scripts = unnamed, *(rf"\p{{Script={code}}}" for code in SCRIPT_CODES[2:])
    found = np.zeros((2, TABLE_SIZE), np.uint8)
    for table, patterns in zip(found, ((*CLASSES, DAMAGED), scripts)):
        for number, pattern in enumerate(patterns, start=1):
            for match in regex.finditer(f"{pattern}+", text, regex.V1):
                table[match.start() : match.end()] = number
    return found[0], found[1]


class Batch:
    """Texts as `points` (n,) uint32 with their `classes` and `scripts` (n,) uint8; `starts`, `lengths` (texts,)."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-32-le", "surrogatepass") for text in texts]
        self.texts = texts
        self.lengths = np.array([len(item) // 4 for item in encoded], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        self.points = np.frombuffer(b"".join(encoded), np.uint32)
        self.owners = np.repeat(np.arange(len(texts)), self.lengths)
        low = np.minimum(self.points, TABLE_SIZE - 1)
        self.classes, self.scripts = (table[low] for table in tables())
        beyond = self.points >= TABLE_SIZE
        if beyond.any():
            han = beyond & (self.points < 0x32400)
            self.classes[beyond], self.scripts[beyond] = BROKEN, 0
            self.classes[han], self.scripts[han] = LETTER, HAN
            tags = beyond & (self.points >= 0xE0000) & (self.points < 0xE0200)  # and variants
            self.classes[tags] = OTHER

    def count(self, values: np.ndarray, kinds: int) -> np.ndarray:
        """How often each of `kinds` values occurs in each text, (texts, kinds)."""
        flat = np.bincount(self.owners * kinds + values, minlength=len(self.texts) * kinds)
        return flat.reshape(len(self.texts), kinds)

    def script_counts(self) -> np.ndarray:
        """Letters of each script in each text; marks and what all scripts share do not count."""
        return self.count(np.where(self.classes == LETTER, self.scripts, 0), len(SCRIPT_CODES))

    def scripts_seen(self) -> Iterator[set[str]]:
        """The named scripts of each text's letters."""
        for row in self.script_counts():
            yield {SCRIPT_CODES[number] for number in np.flatnonzero(row) if number > 1}


def letters_only(text: str) -> str:
    """Lower-cased, with every run of what is neither letter nor mark made one space: what engines are shown."""
    return regex.sub(r"[^\p{L}\p{M}\u200c\u200d]+", " ", text).strip().lower()
