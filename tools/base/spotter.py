"""Find the topic of a line by the words of the project's list (tools/base/lexicon/) that stand in it."""

import csv
import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "lexicon"
UNSPACED = ("zh", "th")
STEM = 2  # letters an inflected ending may change
ENDING = {"tr": 7, "id": 3}  # letters it may add; 4 elsewhere
ARTICLES = re.compile(r"^(?:[وفبكل]?ال|لل|[وفبل])")  # and, so, in, as, to, the: written on the word in Arabic
SHORT, LONG = 25, 260  # characters of a sentence that is asked about
SENTENCE = re.compile(r"(?<=[.!?।۔])\s+|(?<=[。！？])")
WORD = re.compile(r"[\w\u0300-\u036f\u0900-\u097f\u0600-\u06ff]+")  # combining marks belong to the word


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def read_concepts() -> list[dict[str, str]]:
    return [row for path in sorted(FOLDER.glob("part*.tsv")) for row in read_table(path)]


class Spotter:
    """Finds the concepts of one language in a line."""

    def __init__(self, concepts: list[dict], language: str, topics: Collection[str]):
        self.unspaced, self.arabic = language in UNSPACED, language == "ar"
        self.ending = ENDING.get(language, 2 * STEM)
        self.exact: dict[str, set[str]] = defaultdict(set)
        self.stems: dict[str, set[str]] = defaultdict(set)
        for concept in concepts:
            word = self.bare(concept[language].lower())
            if concept["topic"] not in topics or " " in word:
                continue
            if self.unspaced or len(word) < 6:
                self.exact[word].add(concept["topic"])
            else:
                self.stems[word[:-STEM]].add(concept["topic"])

    def bare(self, word: str) -> str:
        return ARTICLES.sub("", word) if self.arabic and len(word) > 4 else word

    def topic(self, line: str) -> str | None:
        found: dict[str, set[str]] = defaultdict(set)
        for form, topics in self.hits(line.lower()):
            if len(topics) == 1:
                found[next(iter(topics))].add(form)
        counts = sorted(((len(forms), topic) for topic, forms in found.items()), reverse=True)
        least = 2 if len(line) <= LONG else 3
        if not counts or counts[0][0] < least or (len(counts) > 1 and counts[0][0] < 2 * counts[1][0]):
            return None
        return counts[0][1]

    def hits(self, line: str) -> Iterator[tuple[str, set[str]]]:
        if self.unspaced:
            yield from ((w, t) for w, t in self.exact.items() if len(w) > 1 and w in line)
            return
        for word in map(self.bare, re.findall(WORD, line)):
            if word in self.exact:
                yield word, self.exact[word]
            for length in range(4, min(len(word), 14) + 1):
                if len(word) - length <= self.ending and word[:length] in self.stems:
                    yield word[:length], self.stems[word[:length]]


def sentences(line: str, rng: random.Random, most: int = 4) -> list[str]:
    """A short line itself, or up to `most` sentences of a paragraph."""
    if len(line) <= LONG:
        return [line] if len(line) >= SHORT else []
    found = [part.strip() for part in SENTENCE.split(line)]
    found = [part for part in found if 2 * SHORT <= len(part) <= LONG]
    return rng.sample(found, min(most, len(found)))
