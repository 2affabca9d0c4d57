"""Instruction records for the bundled base, made from the project's own word list and chats and from pretraining text.

    python tools/make_instructions.py -o ~/base-instructions.jsonl

Three kinds: the topic of a few words or of a sentence, the word in another language, and the bundled chats. A line of
text has a topic where at least two concepts of one topic occur in it, twice as many as of any other; the sentences of
a paragraph share its topic, named there or not. The word list (tools/lexicon/) was written for this project; no
benchmark sentence is read.
"""

import argparse
import csv
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from corpus import data_root, parallel_pairs, text_lines

FOLDER = Path(__file__).parent / "lexicon"
NAMES = {
    "en": "English", "es": "Spanish", "fr": "French", "de": "German", "ru": "Russian", "ar": "Arabic", "hi": "Hindi",
    "zh": "Chinese", "sw": "Swahili", "tr": "Turkish", "vi": "Vietnamese", "th": "Thai", "bg": "Bulgarian",
    "el": "Greek", "ur": "Urdu", "id": "Indonesian",
}  # fmt: skip
LANGUAGES = list(NAMES)
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


def chat(question: str, answer: str, kind: str, language: str) -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"task": kind, "language": language, "messages": turns}


class Topics:
    """Topic names and the question, in every language."""

    def __init__(self, rng: random.Random):
        table = read_table(FOLDER / "topics.tsv")
        self.ask = table[0]
        self.names = {row["topic"]: row for row in table[1:]}
        self.rng = rng

    def question(self, topic: str, text: str, language: str, kind: str) -> dict:
        """A choice between the topic and three to six others."""
        others = self.rng.sample([t for t in self.names if t != topic], self.rng.randint(3, 6))
        options = [*others, topic]
        self.rng.shuffle(options)
        listed = ", ".join(self.names[t][language] for t in options)
        ask = self.ask[language].replace("{options}", listed)
        return chat(f"{ask}\n{text}", self.names[topic][language], kind, language)


def word_topics(
    concepts: list[dict], topics: Topics, rng: random.Random, per_language: int
) -> Iterator[dict]:
    by_topic = defaultdict(list)
    for concept in concepts:
        if concept["topic"] in topics.names:
            by_topic[concept["topic"]].append(concept)
    for language in LANGUAGES:
        for _ in range(per_language):
            topic = rng.choice(sorted(by_topic))
            words = rng.sample(by_topic[topic], rng.randint(1, 4))
            spoken = [word[language if rng.random() < 0.7 else rng.choice(LANGUAGES)] for word in words]
            yield topics.question(topic, ", ".join(spoken), language, "word-topic")


def translations(concepts: list[dict], rng: random.Random, per_concept: int) -> Iterator[dict]:
    for concept in concepts:
        for _ in range(per_concept):
            source, target = rng.sample(LANGUAGES, 2)
            yield chat(f"Translate into {NAMES[target]}: {concept[source]}", concept[target], "word", target)
        chosen = rng.sample(LANGUAGES, 6)
        yield {"task": "row", "language": "", "text": " = ".join(concept[language] for language in chosen)}


class Spotter:
    """Finds the concepts of one language in a line."""

    def __init__(self, concepts: list[dict], language: str, topics: Topics):
        self.unspaced, self.arabic = language in UNSPACED, language == "ar"
        self.ending = ENDING.get(language, 2 * STEM)
        self.exact: dict[str, set[str]] = defaultdict(set)
        self.stems: dict[str, set[str]] = defaultdict(set)
        for concept in concepts:
            word = self.bare(concept[language].lower())
            if concept["topic"] not in topics.names or " " in word:
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


def line_topics(concepts: list[dict], topics: Topics, rng: random.Random, most: int) -> Iterator[dict]:
    root = data_root()
    for language in LANGUAGES:
        spotter = Spotter(concepts, language, topics)
        lines = text_lines(root, language)
        lines.sort(
            key=lambda line: (len(line) <= LONG, rng.random())
        )  # paragraphs first: their topic is surer
        found: dict[str, int] = defaultdict(int)
        for line in lines:
            parts = sentences(line, rng)
            topic = spotter.topic(line) if parts else None
            if topic and found[topic] < most // 10:  # no topic takes over
                for part in parts:
                    found[topic] += 1
                    yield topics.question(topic, part, language, "line-topic")
            if sum(found.values()) >= most:
                break


def pair_topics(concepts: list[dict], topics: Topics, rng: random.Random, most: int) -> Iterator[dict]:
    """A translation has the topic of its English."""
    spotter = Spotter(concepts, "en", topics)
    found: dict[tuple[str, str], int] = defaultdict(int)
    for language, english, other in parallel_pairs(data_root()):
        if SHORT <= len(other) <= LONG and language in LANGUAGES:
            topic = spotter.topic(english)
            if topic and found[language, topic] < most // 10:
                found[language, topic] += 1
                yield topics.question(topic, other, language, "line-topic")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--chats", type=Path, default=Path("mlx_hybrid/base/samples/instructions.jsonl"))
    parser.add_argument("--chat-copies", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    concepts, topics = read_concepts(), Topics(rng)
    records = list(word_topics(concepts, topics, rng, 800))
    records += translations(concepts, rng, 16)
    records += line_topics(concepts, topics, rng, 4000)
    records += pair_topics(concepts, topics, rng, 1000)
    chats = [json.loads(line) for line in arguments.chats.read_text(encoding="utf-8").splitlines()]
    records += [chat | {"task": "chat"} for chat in chats] * arguments.chat_copies
    rng.shuffle(records)
    with arguments.output.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    kinds: dict[str, int] = defaultdict(int)
    for record in records:
        kinds[record["task"]] += 1
    print(dict(kinds))


if __name__ == "__main__":
    main()
