"""Which records say what another has said: near-duplicates inside one language, and prompts with two answers."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import regex

from mlx_hybrid.governance.duplicates.minhash import BANDS, SKETCH, distinct_grams, gram_hashes
from mlx_hybrid.governance.duplicates.similarity import Likeness, Similarity

# Kept records of one bucket that are compared: a template fills a bucket, a duplicate shares many.
BUCKET = 50
MARGIN = 0.12  # three standard deviations of the estimate from 120 hashes at 0.8
LOOSE_MARGIN = 0.3  # as far below the threshold the n-grams of texts may be that reach it by characters
MOST_CHECKED = 16  # candidates that are compared exactly, the likeliest first
SHORT_ANSWER = 20
TEMPLATE_NGRAM, TEMPLATE_COUNT, TEMPLATE_SAMPLE = 20, 20, 50_000
LEAST_CONTENT = 4
NUMBER = regex.compile(r"\p{N}+")


class Said(NamedTuple):
    """What is compared of one record, normalised: the turns before the answer, the answer, its label, and digests of
    its tool calls and of what it was given (the tools, earlier calls)."""

    prompt: str
    completion: str
    label: str = ""
    calls: str = ""
    tools: str = ""

    @property
    def whole(self) -> str:
        return f"{self.prompt}\n{self.completion}" if self.prompt else self.completion


def find_near_duplicates(
    said: Callable[[int], Said], sketches: Sequence[bytes], n: int, threshold: float
) -> Iterator[tuple[int, int, Similarity, str]]:
    """Each record that is near an earlier, kept one, with that one, how alike they are, and why it stays all the same;
    empty where it goes.

    The sketches are in the order of the records. Cost: linear in the records that share a band.
    """
    table = np.frombuffer(b"".join(sketches), SKETCH)
    groups, count = shared_buckets(table["keys"])
    active = np.flatnonzero((groups >= 0).any(axis=1)).tolist()
    template = Template([said(index).whole for index in spread(active, TEMPLATE_SAMPLE)])
    likeness = Likeness(n, threshold)
    buckets: list[list[int]] = [[] for _ in range(count)]
    for index in active:
        own = [group for group in groups[index].tolist() if group >= 0]
        candidates = sorted({other for group in own for other in buckets[group]})
        found = None
        for other, similarity in best_matches(index, candidates, table["small"], said, likeness):
            guard = what_differs(said(index), said(other), likeness, template)
            if found is None or not guard:
                found = index, other, similarity, guard
            if not guard:
                break
        if found:
            yield found
        if not found or found[-1]:
            for group in own:
                if len(buckets[group]) < BUCKET:
                    buckets[group].append(index)


def spread(items: list[int], most: int) -> list[int]:
    """At most `most` of the items, evenly over all."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


class Template:
    """Stretches of 20 characters that stand in 20 or more of the texts: instructions, not content."""

    def __init__(self, texts: Sequence[str]) -> None:
        grams, _ = distinct_grams(texts, TEMPLATE_NGRAM)
        values, counts = np.unique(grams, return_counts=True)
        self.grams = values[counts >= TEMPLATE_COUNT]
        self.strip = lru_cache(16_384)(self.strip_text)

    def strip_text(self, text: str) -> str:
        """The text without its template; the whole of it where hardly anything else is left."""
        if not len(self.grams) or len(text) < TEMPLATE_NGRAM:
            return text
        grams, _ = gram_hashes([text], TEMPLATE_NGRAM)
        known = np.searchsorted(self.grams, grams, "right") > np.searchsorted(self.grams, grams)
        covered = np.zeros(len(text), bool)
        for place in np.flatnonzero(known):
            covered[place : place + TEMPLATE_NGRAM] = True
        rest = "".join(" " if hidden else letter for letter, hidden in zip(text, covered))
        rest = " ".join(rest.split())
        return rest if len(rest) >= LEAST_CONTENT else text


def shared_buckets(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """For each record and band the number of its bucket, −1 where no other record is in it; and how many there are."""
    groups = np.full(keys.shape, -1, np.int32)
    total = 0
    for band in range(BANDS):
        _, inverse, counts = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        shared = counts > 1
        groups[:, band] = np.where(shared, np.cumsum(shared) - 1 + total, -1)[inverse]
        total += int(shared.sum())
    return groups, total


def best_matches(
    index: int, candidates: list[int], small: np.ndarray, said: Callable[[int], Said], likeness: Likeness
) -> list[tuple[int, Similarity]]:
    """Candidates that are near, the most similar first; exact, after estimates and lengths have thinned them."""
    if not candidates:
        return []
    text = said(index).whole
    estimates = (small[candidates] == small[index]).mean(axis=1)
    found = []
    for i in np.argsort(-estimates, kind="stable")[:MOST_CHECKED].tolist():
        other = said(candidates[i]).whole
        margin = LOOSE_MARGIN if likeness.may_share(len(text), len(other)) else MARGIN
        if likeness.threshold - estimates[i] <= margin and (similarity := likeness.near(text, other)):
            found.append((candidates[i], similarity))
    return sorted(found, key=lambda pair: (-pair[1].grams, pair[0]))


def what_differs(one: Said, other: Said, likeness: Likeness, template: Template) -> str:
    """Why two near-duplicates both stay: other labels, calls, numbers, answers, questions, or a template in common;
    empty where nothing speaks for that.

    Answers, and what stands beside a template, must share their n-grams: what training teaches is held more strictly.
    """
    for field, name in (("label", "labels"), ("calls", "tool calls"), ("tools", "tools")):
        if getattr(one, field) != getattr(other, field):
            return f"the {name} differ"
    if sorted(NUMBER.findall(one.whole)) != sorted(NUMBER.findall(other.whole)):
        return "the numbers differ"
    if one.prompt or other.prompt:
        if not alike(one.completion, other.completion, likeness, strict=True):
            return "the answers differ"
        if not alike(one.prompt, other.prompt, likeness):
            return "the prompts differ"
    contents = template.strip(one.whole), template.strip(other.whole)
    if contents != (one.whole, other.whole) and not alike(*contents, likeness, strict=True):
        return "what they share is a template"
    return ""


def alike(one: str, other: str, likeness: Likeness, *, strict: bool = False) -> bool:
    """Equal, or long enough to be compared and near."""
    if one == other:
        return True
    if min(len(one), len(other)) < SHORT_ANSWER:
        return False
    return likeness.strict(one, other) >= likeness.threshold if strict else bool(likeness.near(one, other))


def find_conflicts(turns: Sequence[tuple[bytes, bytes]]) -> dict[int, int]:
    """Records whose prompt stood before with another answer, each with the first record of that prompt."""
    first: dict[bytes, int] = {}
    conflicts: dict[int, int] = {}
    for index, (prompt, answer) in enumerate(turns):
        earlier = first.setdefault(prompt, index) if prompt else index
        if turns[earlier][1] != answer:
            conflicts[index] = earlier
            conflicts.setdefault(earlier, index)
    return conflicts
