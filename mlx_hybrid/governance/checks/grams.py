"""Texts by their character n-grams: which records may be near-duplicates, and which hold an evaluation text.

For the first MinHash finds candidates, among short records in any script, and an exact comparison decides: n-grams of 5
(3 in scripts without spaces), 120 hash functions in 20 bands of 6. A pair at Jaccard J is found with probability
1 − (1 − J⁶)²⁰, 0.998 at 0.8, 0.92 at 0.7, 0.62 at 0.6. Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900.
For the second the containment of 13-grams, which Jaccard misses in long records.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import regex
from scipy.sparse import csr_array

from mlx_hybrid.governance.checks.characters import DIGIT, LETTER, MARK, OTHER, SYMBOL, Batch
from mlx_hybrid.governance.rules import Decision
from mlx_hybrid.records.languages import UNSPACED
from mlx_hybrid.records.record import Record

BANDS, ROWS = 20, 6
HASHES = BANDS * ROWS
MAX_CHARACTERS = 100_000  # what of a text is compared; the exact hash covers all of it
# What is kept of a signature: a key for each band, and the low byte of each minimum.
SKETCH = np.dtype([("keys", np.uint64, BANDS), ("small", np.uint8, HASHES)])
MOST_NAMES = 50
NOUNS = 0.25  # more words with a capital than this are no names, as in German
SHORT_ANSWER = 20  # characters below which texts are alike only where they are equal
SEED = np.random.default_rng(20_251_217)
FACTORS = SEED.integers(1, 1 << 32, HASHES, np.uint64).astype(np.uint32) | np.uint32(1)
SHIFTS = SEED.integers(0, 1 << 32, HASHES, np.uint64).astype(np.uint32)
WEIGHTS = SEED.integers(0, 1 << 63, ROWS, np.uint64)
HELD = 1 << 13  # texts whose n-grams are remembered, in 16 bytes for each character
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
NGRAM = 13
LEAST_CHARACTERS = 25  # below this an evaluation text must be the whole record
TEMPLATE_SHARE, TEMPLATE_COUNT = 0.1, 20  # grams in more evaluation texts than this are their template
FEW_SHARE, FEW_COUNT = 0.5, 3  # or, of few texts, in more than half; three may share a premise
NAME = regex.compile(r"(?<=[\p{Ll}\p{N},] )\p{Lu}\p{Ll}+")


def normalise(texts: Sequence[str]) -> list[str]:
    """Case folded, one space for every run of what is neither letter, mark, number nor symbol; Turkish i's are one."""
    joined = "\0".join([text[:MAX_CHARACTERS].replace("\0", " ") for text in texts])
    if not joined.isascii():
        whole = Batch([joined])
        # What cannot be seen hides between letters that two texts are one.
        seen = whole.points[whole.classes != OTHER].tobytes().decode("utf-32-le", "surrogatepass")
        joined = "\0".join([unicodedata.normalize("NFKC", text) for text in seen.split("\0")])
    folded = Batch(joined.casefold().replace("i\u0307", "i").replace("ı", "i").split("\0"))
    kinds = folded.classes
    kept = (kinds == LETTER) | (kinds == MARK) | (kinds == DIGIT) | (kinds == SYMBOL)
    return folded.spaced(kept)[: len(texts)]


def names_in(text: str) -> str:
    """The words that a sentence writes with a capital, its first left out; none where nouns are written so."""
    found = dict.fromkeys(NAME.findall(text[:MAX_CHARACTERS])[:MOST_NAMES])
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
    return grams, np.concatenate([[0], np.cumsum(lengths - n + 1)])


def sketches(texts: Sequence[str], n: int) -> list[bytes]:
    """A SKETCH of each normalised text: two keys are equal where all six minima of the band are."""
    grams, starts = gram_hashes(texts, n)
    minima, mixed = np.empty((HASHES, len(texts)), np.uint32), np.empty_like(grams)
    for factor, shift, least in zip(FACTORS, SHIFTS, minima):
        np.add(np.multiply(grams, factor, out=mixed), shift, out=mixed)
        np.minimum.reduceat(mixed, starts[:-1], out=least)
    rows = np.zeros(len(texts), SKETCH)
    rows["keys"] = minima.T.reshape(-1, BANDS, ROWS).astype(np.uint64) @ WEIGHTS
    rows["small"] = minima.T.astype(np.uint8)
    return [row.tobytes() for row in rows]


class Likeness:
    """Compares texts at one n and threshold, and remembers the n-grams of the last few thousand, as 64-bit sums.

    One changed word of w letters spoils w + n − 1 n-grams of a text of L, so a Jaccard of n-grams asks more of a short
    record than of a long one: 0.8 lets (w + n − 1)/L reach 1/9, which leaves under three letters of 60. The characters
    that stand in no shared n-gram are the w alone, at any length; their Jaccard is that of the n-grams as L grows."""

    def __init__(self, n: int, threshold: float) -> None:
        self.n, self.threshold = n, threshold
        self.unshared = re.compile(rb"\0{%d,}" % n)
        self.pieces = lru_cache(HELD)(lambda text: pieces(text, n))
        self.grams = lru_cache(HELD)(lambda text: np.unique(self.pieces(text)))

    def told(self, one: str, other: str, by_grams: float) -> str:
        """How alike they are, in words; nothing where neither measure reaches the threshold."""
        by_characters = 0.0
        if by_grams < self.threshold and self.may_share(len(one), len(other)):
            by_characters = self.shared_characters(one, other)
        told = f", {by_characters:.2f} by characters" if by_characters > by_grams else ""
        return f"jaccard {by_grams:.2f}{told}" if max(by_grams, by_characters) >= self.threshold else ""

    def alike(self, one: str, other: str, *, strict: bool = False) -> bool:
        """Equal, or long enough to be compared and near; where `strict`, by n-grams."""
        if one == other or min(len(one), len(other)) < SHORT_ANSWER:
            return one == other
        by_grams = self.jaccards(one, [other])[0]
        return by_grams >= self.threshold if strict else bool(self.told(one, other, by_grams))

    def may_share(self, one: int, other: int) -> bool:
        """Whether texts of these lengths can reach the threshold by characters: at most the shorter is shared."""
        return min(one, other) >= self.threshold * max(one, other)

    def jaccards(self, one: str, others: Sequence[str]) -> list[float]:
        """Shared n-grams over all n-grams, of a text and each of some others."""
        own, theirs = self.grams(one), [self.grams(other) for other in others]
        starts = [0, *accumulate(map(len, theirs))][:-1]
        shared = np.add.reduceat(stand_in(np.concatenate(theirs), own), starts, dtype=np.int64).tolist()
        return [both / (len(own) + len(grams) - both) for both, grams in zip(shared, theirs)]

    def shared_characters(self, one: str, other: str) -> float:
        """c / (|one| + |other| − c) of two texts: c characters, in the text that has fewer, stand in an n-gram that the
        other has. Where one text alone has too few to reach the threshold the other is not looked at."""
        share, edge, both = 1.0, bytes(self.n - 1), max(len(one), self.n) + max(len(other), self.n)
        for text, against in ((one, other), (other, one)):
            marks = stand_in(self.pieces(text), self.grams(against)).tobytes()
            # A letter is lost where all n-grams that it stands in are not shared, or lie beyond the text.
            runs = self.unshared.findall(edge + marks + edge)
            count = len(marks) + len(edge) * (1 + len(runs)) - sum(map(len, runs))
            share = min(share, count / max(1, both - count))
            if share < self.threshold:
                break
        return share


def pieces(text: str, n: int) -> np.ndarray:
    """The character n-grams of a text in order, as sums that two of a text share by a chance of some 2⁻⁴⁴ at most; a
    shorter text is padded to be one."""
    points = np.frombuffer(text.ljust(n, "\0").encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.correlate(points.astype(np.uint64), WEIGHTS[:n], "valid")


def stand_in(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which values are among the known ones, which are in order."""
    return known.take(known.searchsorted(values), mode="clip") == values


class EvaluationIndex:
    """Which evaluation texts hold each 13-gram: `owners` (grams, texts), sparse; `sizes` are the grams of each text.
    containment = |grams(evaluation text) ∩ grams(record)| / |grams(evaluation text)|, on normalised text."""

    def __init__(self, records: Iterable[Record], threshold: float) -> None:
        self.threshold = threshold
        parts = [(text, record.where) for record in records for text in parts_of(record)]
        texts, self.names = [text for text, _ in parts], [name for _, name in parts]
        self.whole = dict(reversed(parts))
        grams, owners = long_grams(texts)
        self.grams, places, counts = np.unique(grams, return_inverse=True, return_counts=True)
        few = max(FEW_COUNT, FEW_SHARE * len(texts))
        kept = (counts <= max(min(TEMPLATE_COUNT, few), TEMPLATE_SHARE * len(texts)))[places]
        self.sizes = np.bincount(owners[kept], minlength=len(texts))
        self.owners = incidence(places[kept], owners[kept], (len(self.grams), len(texts)))

    def find(self, texts: Sequence[str]) -> list[Decision | None]:
        """For each text the evaluation text it holds, or None."""
        grams, rows = long_grams(plain := normalise(texts))
        places = np.searchsorted(self.grams, grams)
        known = np.searchsorted(self.grams, grams, "right") > places
        shared = (incidence(rows[known], places[known], (len(texts), len(self.grams))) @ self.owners).tocoo()
        shares = shared.data / self.sizes[shared.col]
        best: dict[int, tuple[float, str]] = {}
        for i in np.lexsort((shared.col, -shares)).tolist():
            best.setdefault(int(shared.row[i]), (float(shares[i]), self.names[shared.col[i]]))
        best |= {row: (1.0, self.whole[text]) for row, text in enumerate(plain) if text in self.whole}
        rows = (best.get(row, (-1.0, "")) for row in range(len(texts)))
        told = ((share >= self.threshold, f"holds {share:.2f} of {name}", name) for share, name in rows)
        return [Decision("overlap", "eval_leak", *what) if leaks else None for leaks, *what in told]


def incidence(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """A sparse matrix with a one at each (row, column)."""
    return csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape)


def parts_of(record: Record) -> list[str]:
    """What of an evaluation record must not be trained on: its question and its answer, each on its own."""
    *parts, whole = normalise((record.prompt(), record.completion(), record.content()))
    return [part for part in parts if len(part) >= LEAST_CHARACTERS] or [whole]


def long_grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct 13-grams of each text as (hash, row) pairs; texts under 25 characters give none."""
    grams, starts = gram_hashes(texts, NGRAM)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(starts))
    # Asked for counts, `np.unique` sorts, which takes a twentieth of the time of the hashing that it does otherwise.
    keys, _ = np.unique((owners << np.uint64(32)) | grams, return_counts=True)
    rows = (keys >> np.uint64(32)).astype(np.int64)
    long = np.array([len(text) >= LEAST_CHARACTERS for text in texts], bool)[rows]
    return keys.astype(np.uint32)[long], rows[long]
