"""Instruction records for the bundled base, made from the project's own word list and chats and from pretraining text.

    python tools/base/make_instructions.py -o ~/base-instructions.jsonl

Three kinds: the topic of a few words, of a sentence or of its keywords, the word in another language, and the bundled
chats. A line of text has a topic where at least two concepts of one topic occur in it, twice as many as of any other;
from such lines a classifier learns to name the rest (topic_teacher.py). The word list (tools/base/lexicon/) was written
for this project; no benchmark sentence is read.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from spotter import FOLDER, read_concepts, read_table
from topic_teacher import teach

NAMES = {
    "en": "English", "es": "Spanish", "fr": "French", "de": "German", "ru": "Russian", "ar": "Arabic", "hi": "Hindi",
    "zh": "Chinese", "sw": "Swahili", "tr": "Turkish", "vi": "Vietnamese", "th": "Thai", "bg": "Bulgarian",
    "el": "Greek", "ur": "Urdu", "id": "Indonesian",
}  # fmt: skip
LANGUAGES = list(NAMES)


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

    def brief(self, topic: str, text: str, language: str, kind: str) -> dict:
        """The topic without a choice, in few tokens."""
        return chat(f"Topic: {text}", self.names[topic][language], kind, language)

    def either(self, topic: str, text: str, language: str, kind: str) -> dict:
        form = self.brief if self.rng.random() < 0.5 else self.question
        return form(topic, text, language, kind)


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
            yield topics.either(topic, ", ".join(spoken), language, "word-topic")


def translations(concepts: list[dict], rng: random.Random, per_concept: int) -> Iterator[dict]:
    for concept in concepts:
        for _ in range(per_concept):
            source, target = rng.sample(LANGUAGES, 2)
            yield chat(f"Translate into {NAMES[target]}: {concept[source]}", concept[target], "word", target)
        chosen = rng.sample(LANGUAGES, 6)
        yield {"task": "row", "language": "", "text": " = ".join(concept[language] for language in chosen)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--chats", type=Path, default=Path("mlx_hybrid/base/samples/instructions.jsonl"))
    parser.add_argument("--chat-copies", type=int, default=8)
    parser.add_argument("--per-topic", type=int, default=400, help="sentences of a topic in each language")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    concepts, topics = read_concepts(), Topics(rng)
    records = list(word_topics(concepts, topics, rng, 1600))
    records += translations(concepts, rng, 16)
    for language, text, words, topic in teach(
        LANGUAGES, concepts, list(topics.names), rng, arguments.per_topic
    ):
        records.append(topics.either(topic, text, language, "line-topic"))
        if words:
            records.append(topics.brief(topic, words, language, "keyword-topic"))
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
