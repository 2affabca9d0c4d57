"""How alike two normalised texts are: by the n-grams they share, and by the characters that stand in those.

One changed word of w letters spoils w + n − 1 n-grams of a text of L, so a Jaccard of n-grams asks more of a short
record than of a long one: 0.8 lets (w + n − 1)/L reach 1/9, which leaves under three letters of 60. The characters
that stand in no shared n-gram are the w alone, at any length; their Jaccard is that of the n-grams as L grows.
"""

from functools import lru_cache
from typing import NamedTuple


class Similarity(NamedTuple):
    """Both measures, each in [0, 1]; `characters` is 0 where `grams` already decided."""

    grams: float
    characters: float = 0.0

    def __str__(self) -> str:
        told = f"jaccard {self.grams:.2f}"
        return f"{told}, {self.characters:.2f} by characters" if self.characters > self.grams else told


class Likeness:
    """Compares texts at one n and threshold, and remembers the n-grams of the last few thousand."""

    def __init__(self, n: int, threshold: float) -> None:
        self.n, self.threshold = n, threshold
        self.grams = lru_cache(4096)(lambda text: grams(text, n))

    def strict(self, one: str, other: str) -> float:
        """The Jaccard of the n-grams."""
        return jaccard(self.grams(one), self.grams(other))

    def near(self, one: str, other: str) -> Similarity | None:
        """How alike the texts are when either measure reaches the threshold, else None."""
        by_grams = self.strict(one, other)
        if by_grams >= self.threshold:
            return Similarity(by_grams)
        if not self.may_share(len(one), len(other)):
            return None
        by_characters = shared_characters(one, other, self.grams(one) & self.grams(other), self.n)
        return Similarity(by_grams, by_characters) if by_characters >= self.threshold else None

    def may_share(self, one: int, other: int) -> bool:
        """Whether texts of these lengths can reach the threshold by characters: at most the shorter is shared."""
        return min(one, other) >= self.threshold * max(one, other)


def grams(text: str, n: int) -> frozenset[str]:
    """The set of character n-grams; a shorter text is one gram."""
    return (
        frozenset(text[i : i + n] for i in range(len(text) - n + 1)) if len(text) >= n else frozenset({text})
    )


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared n-grams over all n-grams of two sets."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def shared_characters(one: str, other: str, shared: frozenset[str], n: int) -> float:
    """c / (|one| + |other| − c): c characters, in the text that has fewer, stand in one of the `shared` n-grams."""
    count = min(covered(one, shared, n), covered(other, shared, n))
    return count / max(1, len(one) + len(other) - count)


def covered(text: str, shared: frozenset[str], n: int) -> int:
    """How many characters of `text` stand in an n-gram of `shared`."""
    count = end = 0
    for start in range(len(text) - n + 1):
        if text[start : start + n] in shared:
            count += start + n - max(start, end)
            end = start + n
    return count
