"""Which records say what another has said: near-duplicates inside one language, and prompts with two answers."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property, lru_cache
from itertools import pairwise
from operator import ne
from typing import NamedTuple

import numpy as np
import regex

from mlx_hybrid.governance.checks.grams import HASHES, HELD, SHORT_ANSWER, SKETCH, Likeness
from mlx_hybrid.governance.rules import WORDS

BUCKET = 50  # kept records of one that are compared: a template fills a bucket, a duplicate shares many
MARGIN = 0.12  # three standard deviations of the estimate from 120 hashes at 0.8
LOOSE_MARGIN = 0.3  # as far below the threshold the n-grams of texts may be that reach it by characters
MOST_CHECKED = 16  # candidates that are compared exactly, the likeliest first
PAGE = 400  # characters from which a text is told by what it says, not by its date; one date line is let pass in each
DATE_LINE = 12  # words between which what differs is one line
DENSE = 4 / 3, 3  # how many fewer characters say as much where no spaces are, and how many n-grams a word is
TEMPLATE = "what they share is a template"
NUMBERS = lru_cache(HELD)(lambda text: sorted(regex.findall(r"\p{N}+", text)))
UNSPACED = lru_cache(HELD)(lambda text: text.replace(" ", ""))


@dataclass
class Said:
    """What is compared of a record: the turns before the answer and it, normalised, its label, digests of its calls and
    of what it was given (tools, earlier calls), and names."""

    prompt: str
    completion: str
    label: str = ""
    calls: str = ""
    tools: str = ""
    names: str = ""

    @cached_property
    def whole(self) -> str:
        return f"{self.prompt}\n{self.completion}" if self.prompt else self.completion


class Copy(NamedTuple):
    """A record that nothing tells from another, how alike they are, the words before and after where they differ, and
    what each has between them; nothing where that is too little for a slot of a template."""

    other: int
    similarity: str
    frame: tuple[tuple[str, ...], tuple[str, ...]]
    own: frozenset[str]
    theirs: frozenset[str]

    def is_slot_of(self, copy: "Copy") -> bool:
        """Whether two others differ from a record in the same place, all three unlike one another."""
        before, after = (abs(len(mine) - len(theirs)) for mine, theirs in zip(self.frame, copy.frame))
        near = after <= 1 and before <= (1 if self.frame[1] or copy.frame[1] else 3)
        between = self.own & self.theirs & copy.own & copy.theirs  # what two slots of a template enclose
        if len(between) > sum(map(len, self.frame)):
            between = frozenset()
        pairs = (self.own, self.theirs), (copy.own, copy.theirs), (self.theirs, copy.theirs)
        return near and all(are_unlike(one - between, other - between) for one, other in pairs)

    def is_filled_in(self) -> bool:
        """Whether the two begin alike and then say two things, as an instruction and what it is about."""
        said_otherwise = min(len(self.own), len(self.theirs)) >= 3 and not self.own & self.theirs
        return said_otherwise and not self.frame[1] and len(self.frame[0]) >= 2 * len(self.own)


def are_unlike(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two sets of words, neither empty, share less than a third."""
    return bool(one and other) and len(one & other) < len(one | other) / 3


def find_near_duplicates(
    said: Callable[[int], Said], sketches: Sequence[bytes], n: int, threshold: float
) -> Iterator[tuple[int, int, str, str]]:
    """Each record that is near an earlier, kept one, with that one, how alike they are, and why it stays all the same,
    empty where it goes. Cost: linear in the records that share a band."""
    table = np.frombuffer(b"".join(sketches), SKETCH)
    groups, count = shared_buckets(table["keys"])
    small, likeness = np.ascontiguousarray(table["small"]), Likeness(n, threshold)
    buckets: list[list[int]] = [[] for _ in range(count)]
    doubtful: dict[int, Copy] = {}  # would go, if no third record shows a template
    templates: set[tuple] = set()  # frames
    for index in np.flatnonzero((groups >= 0).any(axis=1)).tolist():
        own = [group for group in groups[index].tolist() if group >= 0]
        candidates = sorted(set().union(*(buckets[group] for group in own)))
        copies, kept = [], None
        for other, by_grams in best_matches(index, candidates, small, said, likeness):
            one, two = said(index), said(other)
            guard = what_differs(one, two, likeness)
            # Of those that it stays beside the likest alone is told.
            similarity = "" if guard and kept else likeness.told(one.whole, two.whole, by_grams)
            if guard and similarity:
                kept = index, other, similarity, guard
            elif similarity:
                copies.append(compare_words(other, similarity, one.whole, two.whole, n))
        certain = next((copy for copy in copies if copy.other not in doubtful), None)
        slot = [one for one in copies if any(one.is_slot_of(two) for two in copies)]
        # In one word, or in the frames of two records, copies may differ by chance.
        enough = len(slot) > (2 if any(len(copy.own) == 1 for copy in slot) else 1)
        known = certain and certain.theirs and certain.frame in templates
        if enough or known or (certain and certain.is_filled_in()):
            for copy in slot or [certain]:
                templates.add(copy.frame)
                if first := doubtful.pop(copy.other, None):
                    yield copy.other, first.other, first.similarity, TEMPLATE
            yield index, copies[0].other, copies[0].similarity, TEMPLATE
        elif certain and not certain.theirs:
            yield index, certain.other, certain.similarity, ""
            continue
        elif certain:
            doubtful[index] = certain
        elif kept:
            yield kept
        for group in own:
            if len(buckets[group]) < BUCKET:
                buckets[group].append(index)
    frames = Counter(copy.frame for copy in doubtful.values() if are_unlike(copy.own, copy.theirs))
    templates |= {frame for frame, count in frames.items() if count > 2}
    for index, copy in doubtful.items():
        yield index, copy.other, copy.similarity, TEMPLATE if copy.frame in templates else ""


def shared_buckets(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """For each record and band the number of its bucket, −1 where no other record is in it; and how many there are."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    shared = counts > 1
    return np.where(shared, np.cumsum(shared) - 1, -1)[inverse].reshape(keys.shape), int(shared.sum())


def best_matches(
    index: int, candidates: list[int], small: np.ndarray, said: Callable[[int], Said], likeness: Likeness
) -> list[tuple[int, float]]:
    """Candidates that may be near and the Jaccard of their n-grams, the most similar first; estimates and lengths have
    thinned them."""
    text, found = said(index).whole, []
    estimates = (small.take(candidates, axis=0) == small[index]).sum(axis=1, dtype=np.uint8) / HASHES
    for i in np.argsort(-estimates, kind="stable")[:MOST_CHECKED].tolist():
        other = said(candidates[i]).whole
        margin = LOOSE_MARGIN if likeness.may_share(len(text), len(other)) else MARGIN
        if likeness.threshold - estimates[i] <= margin:
            found.append((candidates[i], other))
    shares = likeness.jaccards(text, [other for _, other in found]) if found else ()
    rows = sorted((-share, other) for share, (other, _) in zip(shares, found))
    return [(other, -by_grams) for by_grams, other in rows]


def what_differs(one: Said, other: Said, likeness: Likeness) -> str:
    """Why two near-duplicates both stay, or nothing. Answers must share their n-grams: what training teaches is held
    more strictly. A page under another date is a copy."""
    for field, name in (("label", "labels"), ("calls", "tool calls"), ("tools", "tools")):
        if getattr(one, field) != getattr(other, field):
            return f"the {name} differ"
    if UNSPACED(one.whole) == UNSPACED(other.whole):
        return ""
    same = one.completion == other.completion
    page = (same or not one.prompt) and are_one_page(one.whole, other.whole, likeness.n)
    if not same and one.prompt == other.prompt != "":
        return "the answers differ"
    if not page and NUMBERS(one.whole) != NUMBERS(other.whole):
        return "the numbers differ"
    asked = one.prompt or other.prompt
    if asked and not same and not likeness.alike(one.completion, other.completion, strict=True):
        return "the answers differ"
    prompts, short = (one.prompt, other.prompt), len(one.completion) < SHORT_ANSWER
    if not (is_respelt(*prompts, likeness.n) if short else likeness.alike(*prompts)):
        return "the prompts differ"
    if page:
        return ""
    mine, theirs = news(one.whole, other.whole, likeness.n)
    negates = is_negated(mine, theirs), is_negated(theirs, mine)
    if negates[0] != negates[1] or (any(negates) and len(mine) != len(theirs)):
        return "one of them negates"
    return "the names differ" if are_names(mine, one.names, theirs, other.names) else ""


def are_one_page(one: str, other: str, n: int) -> bool:
    """Whether long texts differ in a line or two alone, as in the date under which they were printed."""
    length, (fewer, more) = min(len(one), len(other)), DENSE if n == 3 else (1, 1)
    most, line = int(fewer * length / PAGE), more * DATE_LINE
    if not most or abs(len(one) - len(other)) > DATE_LINE * 8:
        return False
    parts = [list(zip(*(text[i:] for i in range(n)))) if n == 3 else text.split() for text in (one, other)]
    for own, theirs in zip(parts, map(set, reversed(parts))):
        strange = [place for place, part in enumerate(own) if part not in theirs]
        lines = sum(b - a > line for a, b in pairwise(strange)) + 1
        if lines > most or len(strange) > line * lines:
            return False
    return True


def words_of(text: str, n: int) -> list[str]:
    """Words, or, in a script without spaces, characters."""
    return list(text) if n == 3 else text.split()


def news(one: str, other: str, n: int) -> tuple[list[str], list[str]]:
    """The words that each text has more often than the other, in order."""
    mine, theirs = Counter(words_of(one, n)), Counter(words_of(other, n))
    return list((mine - theirs).elements()), list((theirs - mine).elements())


def is_negated(mine: list[str], theirs: list[str]) -> bool:
    """Whether one of my words negates, by itself, but for a slip in one letter, or as another's with a syllable before
    it: able, unable."""
    pairs = list(zip(mine, theirs if len(mine) == len(theirs) else [""] * len(mine)))
    before = {own[: -len(other)] for own, other in pairs if len(other) > 2 and own.endswith(other)}
    slips = {own for own, other in pairs if len(own) == len(other) > 1 and sum(map(ne, own, other)) == 1}
    return bool(WORDS["negations"] & {*mine} - slips or WORDS["negating"] & before)


def are_names(mine: list[str], names: str, theirs: list[str], their_names: str) -> bool:
    """Whether the words that two texts have to themselves are names in both, but for those under another spelling."""
    if not (mine and theirs and names and their_names):
        return False
    own, others = {*names.split()}, {*their_names.split()}
    if len(mine) != len(theirs):
        return own.issuperset(mine) and others.issuperset(theirs)
    pairs = {*zip(mine, theirs)}
    named = {pair for pair in pairs if pair[0] in own and pair[1] in others}
    return all(is_like(*pair) for pair in pairs - named) and not all(is_like(*pair) for pair in named)


def is_like(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other).ratio() >= 0.6


def is_respelt(one: str, other: str, n: int) -> bool:
    """Whether two questions have the same words, but for how some are spelt."""
    mine, theirs = words_of(one, n), words_of(other, n)
    pairs = [pair for pair in zip(mine, theirs) if pair[0] != pair[1]]
    return len(mine) == len(theirs) and len(pairs) <= 8 and all(is_like(*pair) for pair in pairs)


def compare_words(other: int, similarity: str, text: str, theirs: str, n: int) -> Copy:
    mine, words = words_of(text, n), words_of(theirs, n)
    most = min(len(mine), len(words))
    before = next((i for i in range(most) if mine[i] != words[i]), most)
    after = next((i for i in range(most - before) if mine[-1 - i] != words[-1 - i]), most - before)
    page = are_one_page(text, theirs, n)
    slots = (frozenset(() if page else part[before : len(part) - after]) for part in (mine, words))
    return Copy(other, similarity, (tuple(mine[:before]), tuple(mine[len(mine) - after :])), *slots)
