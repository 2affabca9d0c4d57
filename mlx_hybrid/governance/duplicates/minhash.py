"""Near-duplicates among short records in any script: MinHash finds candidates, an exact comparison decides.

Character n-grams (5; 3 in scripts without spaces), 120 hash functions in 20 bands of 6: a pair at Jaccard J is found
with probability 1 − (1 − J⁶)²⁰, 0.998 at 0.8, 0.92 at 0.7 and 0.62 at 0.6.
Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import regex

from mlx_hybrid.records.languages import UNSPACED

BANDS, ROWS = 20, 6
HASHES = BANDS * ROWS
MAX_CHARACTERS = 100_000  # what of a text is compared; the exact hash covers all of it
SKETCH = np.dtype([("keys", np.uint64, BANDS), ("small", np.uint8, HASHES)])
"""What is kept of a signature: a key for each band, and the low byte of each minimum."""
MOST_NAMES = 50
NOUNS = 0.25  # more words with a capital than this are no names, as in German
SHORT_ANSWER = 20  # characters below which texts are alike only where they are equal
SEED = np.random.default_rng(20_251_217)
FACTORS = SEED.integers(1, 1 << 32, HASHES, np.uint64).astype(np.uint32) | np.uint32(1)
SHIFTS = SEED.integers(0, 1 << 32, HASHES, np.uint64).astype(np.uint32)
WEIGHTS = SEED.integers(0, 1 << 63, ROWS, np.uint64)
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def normalise(text: str) -> str:
    """Case folded, one space for every run of what is neither letter, mark, number nor symbol; Turkish i's are one."""
    # What cannot be seen hides between letters that two texts are one.
    seen = text[:MAX_CHARACTERS] if text.isascii() else regex.sub(r"\p{Cf}+", "", text[:MAX_CHARACTERS])
    folded = unicodedata.normalize("NFKC", seen).casefold().replace("i\u0307", "i").replace("ı", "i")
    return regex.sub(r"[^\p{L}\p{M}\p{N}\p{S}]+", " ", folded).strip()


def names_in(text: str) -> str:
    """The words that a sentence writes with a capital, its first left out; none where nouns are written so."""
    words = regex.findall(r"(?<=[\p{Ll}\p{N},] )\p{Lu}\p{Ll}+", text[:MAX_CHARACTERS])
    found = dict.fromkeys(words[:MOST_NAMES])
    nouns = len(found) > NOUNS * text.count(" ") > 3
    return "" if nouns else " ".join(found).casefold()


def exact_key(text: str) -> bytes:
    """16 bytes that two texts share when they are the same to the last character, but for space around them."""
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def ngram_of(language: str) -> int:
    """Characters of an n-gram: 3 in scripts without spaces."""
    return 3 if language[-4:] in UNSPACED else 5


def gram_hashes(texts: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all character n-grams of all texts (uint32), and where each text's begin; a shorter text is padded."""
    padded = [text if len(text) >= n else text.ljust(n, "\0") for text in texts]
    lengths = np.array([len(text) for text in padded], np.int64)
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    total = len(points) - n + 1
    hashes = np.zeros(max(total, 0), np.uint64)
    for offset in range(n):
        hashes = (hashes ^ points[offset : offset + total]) * MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    inside = np.ones(len(points), bool)
    for back in range(1, n):
        inside[np.cumsum(lengths) - back] = False
    grams = (hashes >> np.uint64(32)).astype(np.uint32)[inside[:total]]
    starts = np.concatenate([[0], np.cumsum(lengths - n + 1)])
    return grams, starts


def sketches(texts: Sequence[str], n: int) -> list[bytes]:
    """A SKETCH of each normalised text: two keys are equal where all six minima of the band are."""
    minima = signatures(texts, n)
    rows = np.zeros(len(texts), SKETCH)
    rows["keys"] = minima.reshape(-1, BANDS, ROWS).astype(np.uint64) @ WEIGHTS
    rows["small"] = minima.astype(np.uint8)
    return [row.tobytes() for row in rows]


def signatures(texts: Sequence[str], n: int) -> np.ndarray:
    """MinHash signatures (texts, 120) uint32 of normalised texts."""
    grams, starts = gram_hashes(texts, n)
    minima = np.empty((len(texts), HASHES), np.uint32)
    for column in range(HASHES):
        minima[:, column] = np.minimum.reduceat(grams * FACTORS[column] + SHIFTS[column], starts[:-1])
    return minima


class Similarity(NamedTuple):
    """By the n-grams that two texts share, and by the characters that stand in those; 0 where `grams` already decided.

    One changed word of w letters spoils w + n − 1 n-grams of a text of L, so a Jaccard of n-grams asks more of a short
    record than of a long one: 0.8 lets (w + n − 1)/L reach 1/9, which leaves under three letters of 60. The characters
    that stand in no shared n-gram are the w alone, at any length; their Jaccard is that of the n-grams as L grows.
    """

    grams: float
    characters: float = 0.0

    def __str__(self) -> str:
        by_characters = f", {self.characters:.2f} by characters" if self.characters > self.grams else ""
        return f"jaccard {self.grams:.2f}{by_characters}"


class Likeness:
    """Compares texts at one n and threshold, and remembers the n-grams of the last few thousand."""

    def __init__(self, n: int, threshold: float) -> None:
        self.n, self.threshold = n, threshold
        self.grams = lru_cache(4096)(lambda text: grams(text, n))

    def near(self, one: str, other: str) -> Similarity | None:
        """How alike the texts are when either measure reaches the threshold, else None."""
        mine, theirs = self.grams(one), self.grams(other)
        found = Similarity(jaccard(mine, theirs))
        if found.grams < self.threshold and self.may_share(len(one), len(other)):
            found = Similarity(found.grams, shared_characters(one, other, mine & theirs, self.n))
        return found if max(found) >= self.threshold else None

    def alike(self, one: str, other: str, *, strict: bool = False) -> bool:
        """Equal, or long enough to be compared and near; where `strict`, by n-grams."""
        if one == other or min(len(one), len(other)) < SHORT_ANSWER:
            return one == other
        found = self.near(one, other)
        return found is not None and (not strict or found.grams >= self.threshold)

    def may_share(self, one: int, other: int) -> bool:
        """Whether texts of these lengths can reach the threshold by characters: at most the shorter is shared."""
        return min(one, other) >= self.threshold * max(one, other)


def grams(text: str, n: int) -> frozenset[str]:
    """The set of character n-grams; a shorter text is one gram."""
    return frozenset(text[i : i + n] for i in range(max(1, len(text) - n + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared n-grams over all n-grams of two sets."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def shared_characters(one: str, other: str, shared: frozenset[str], n: int) -> float:
    """c / (|one| + |other| − c): c characters, in the text that has fewer, stand in one of the `shared` n-grams."""
    counts = []
    for text in (one, other):
        count = end = 0
        for start in range(len(text) - n + 1):
            if text[start : start + n] in shared:
                count += start + n - max(start, end)
                end = start + n
        counts.append(count)
    return min(counts) / max(1, len(one) + len(other) - min(counts))
