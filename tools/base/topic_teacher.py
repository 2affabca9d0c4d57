"""Name the topic of every sentence of the pretraining text, taught by the project's word list alone.

Lines in which the list spots a topic, and the words of the list themselves, train one linear classifier a language
(TF-IDF of character n-grams, logistic regression); it then names the topic of all other sentences. Translations are
named by their own classifier and that of their English together. No benchmark sentence is read.
"""

import random
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from corpus import data_root, parallel_pairs, training_lines
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from spotter import LONG, SHORT, UNSPACED, WORD, Spotter, sentences

POOL = 30_000  # sentences of a language that are named
FEATURES = 60_000
ITERATIONS = 40
KEYWORDS = 4  # at the most, of a sentence
SHORTEST = 3  # letters of one


class Teacher:
    """The classifier of one language."""

    def __init__(self, texts: Sequence[str], names: Sequence[str], language: str):
        grams = (1, 3) if language in UNSPACED else (2, 5)
        self.features = TfidfVectorizer(
            analyzer="char_wb", ngram_range=grams, sublinear_tf=True, min_df=2, max_features=FEATURES
        )
        self.model = LogisticRegression(C=3, max_iter=ITERATIONS, class_weight="balanced")
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # near enough for a guess
            self.model.fit(self.features.fit_transform(texts), names)

    def log_probabilities(self, texts: Sequence[str], topics: Sequence[str]) -> np.ndarray:
        """(texts, topics); a topic never seen in this language has −20."""
        known = list(self.model.classes_)
        result = np.full((len(texts), len(topics)), -20.0)
        result[:, [topics.index(t) for t in known]] = self.model.predict_log_proba(
            self.features.transform(texts)
        )
        return result


def spotted(
    lines: Sequence[str], spotter: Spotter, rng: random.Random
) -> tuple[list[tuple[str, str]], list[str]]:
    """(sentence, topic) where the words of its line say it, and the other sentences."""
    named: list[tuple[str, str]] = []
    others: list[str] = []
    for line in lines:
        parts = sentences(line, rng)
        topic = spotter.topic(line) if parts else None
        if topic:
            named += [(part, topic) for part in parts]
        else:
            others += parts
    return named, others


def most_certain(
    texts: Sequence[str], scores: np.ndarray, topics: Sequence[str], per_topic: int
) -> Iterator[tuple[str, str]]:
    """Of each topic the sentences it is surest of, no more than `per_topic`."""
    taken: dict[int, int] = defaultdict(int)
    best = scores.argmax(1)
    for place in np.argsort(-scores.max(1), kind="stable"):
        if taken[best[place]] < per_topic:
            taken[best[place]] += 1
            yield texts[place], topics[best[place]]


def keywords(
    teacher: Teacher, rows: Sequence[tuple[str, str]], topics: Sequence[str], rng: random.Random
) -> Iterator[str]:
    """Of each (sentence, topic) the few words that say its topic most by themselves, in their order."""
    found = [[word for word in WORD.findall(text) if len(word) >= SHORTEST] for text, _ in rows]
    known = sorted({word for words in found for word in words})
    scores = teacher.log_probabilities(known, topics)
    place = {word: number for number, word in enumerate(known)}
    for words, (_, topic) in zip(found, rows, strict=True):
        column = topics.index(topic)
        best = sorted(words, key=lambda word: -scores[place[word], column])[: rng.randint(1, KEYWORDS)]
        yield ", ".join(word for word in words if word in best)


def teach(
    languages: Sequence[str],
    concepts: Sequence[dict[str, str]],
    topics: Sequence[str],
    rng: random.Random,
    per_topic: int,
) -> Iterator[tuple[str, str, str, str]]:
    """(language, sentence, its keywords, topic), up to `per_topic` of each topic; English must come first.

    A language written without spaces has no keywords.
    """
    pairs = defaultdict(list)
    for language, english, other in parallel_pairs(data_root()):
        if SHORT <= len(other) <= LONG:
            pairs[language].append((english, other))
    english_teacher = None
    for language in languages:
        named, others = spotted(
            training_lines(data_root(), language), Spotter(concepts, language, topics), rng
        )
        words = [(c[language], c["topic"]) for c in concepts if c["topic"] in topics]
        teacher = Teacher(*zip(*(named + words), strict=True), language)
        english_teacher = english_teacher or teacher
        others = rng.sample(others, min(POOL, len(others)))
        texts = [text for text, _ in named] + others
        scores = teacher.log_probabilities(texts, topics)
        for row, (_, topic) in enumerate(named):
            scores[row, topics.index(topic)] += 3  # spotted: surer than any guess
        if pairs[language]:
            sources, targets = (list(side) for side in zip(*pairs[language], strict=True))
            both = teacher.log_probabilities(targets, topics)
            both += english_teacher.log_probabilities(sources, topics)
            texts, scores = texts + targets, np.concatenate([scores, both / 2])
        rows = list(most_certain(texts, scores, topics, per_topic))
        short = [""] * len(rows) if language in UNSPACED else keywords(teacher, rows, topics, rng)
        yield from ((language, text, words, topic) for (text, topic), words in zip(rows, short, strict=True))
