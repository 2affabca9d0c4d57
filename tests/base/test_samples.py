"""The bundled sample data: counts, record shape, and no near-duplicates among the clean records."""

import json
import re
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import mlx_hybrid

SAMPLES = Path(mlx_hybrid.__file__).parent / "base" / "samples"
LANGUAGES = ("en", "es", "de", "sw", "ru", "ar", "hi", "zh")
TOPICS = ("food", "weather", "travel", "sport", "health", "money")
SCRIPTS = {"ru": "CYRILLIC", "ar": "ARABIC", "hi": "DEVANAGARI", "zh": "CJK"}
KEYS = {
    "topics": ["id", "group", "language", "label", "messages", "source", "licence"],
    "translation": ["id", "group", "language", "messages", "source", "licence"],
}
CLEAN = tuple(KEYS)


def read(name):
    """The records of a clean sample file."""
    text = (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def content(record):
    """What a record is about: the sentence after the instruction."""
    user = record["messages"][0]["content"]
    if record["id"].startswith("translation-"):
        return user.split(": ", 1)[1]
    return user.split("\n", 1)[-1]


def grams(text, size):
    """The character n-grams of the case-folded words of a text."""
    text = " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold()))
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


def jaccard(a, b):
    """Shared n-grams over all n-grams."""
    both = len(a & b)
    return both / (len(a) + len(b) - both)


def closest(records, language):
    """The highest similarity between the contents of two records of a language, with their ids."""
    size = 3 if language == "zh" else 5
    sets = [(r["id"], grams(content(r), size)) for r in records if r["language"] == language]
    return max((jaccard(a, b), i, j) for (i, a), (j, b) in combinations(sets, 2))


@pytest.mark.parametrize("name", CLEAN)
def test_records_are_whole(name):
    records = read(name)
    assert len({r["id"] for r in records}) == len(records)
    for record in records:
        assert list(record) == KEYS[name]
        assert record["language"] in LANGUAGES
        assert [m["role"] for m in record["messages"]] == ["user", "assistant"]
        assert record["source"] == "written for mlx-hybrid"
        assert record["licence"] == "CC-BY-SA-4.0"
        for message in record["messages"]:
            text = message["content"]
            assert text == text.strip() == unicodedata.normalize("NFC", text)
            assert text
            assert "\ufffd" not in text
            assert not any(unicodedata.category(c) == "Cc" for c in text.replace("\n", ""))


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_near_duplicates(name, language):
    score, first, second = closest(read(name), language)
    assert score < 0.5, (first, second)


def test_topic_counts():
    records = read("topics")
    counts = Counter((r["language"], r["label"]) for r in records)
    assert counts == {(language, topic): 12 for language in LANGUAGES for topic in TOPICS}


def test_topics_are_parallel():
    groups = {}
    for record in read("topics"):
        number = record["group"].removeprefix("topic-")
        assert record["id"] == f"topic-{record['language']}-{number}"
        groups.setdefault(record["group"], []).append(record)
    assert len(groups) == 72
    for group in groups.values():
        assert [r["language"] for r in group] == list(LANGUAGES)
        assert len({r["label"] for r in group}) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_topic_instructions_name_the_answers(language):
    records = [r for r in read("topics") if r["language"] == language]
    instructions = {r["messages"][0]["content"].split("\n")[0] for r in records}
    answers = {r["label"]: r["messages"][1]["content"] for r in records}
    assert len(instructions) == 1
    assert set(answers) == set(TOPICS)
    assert len(set(answers.values())) == len(TOPICS)
    assert all(r["messages"][1]["content"] == answers[r["label"]] for r in records)
    assert all(answer in next(iter(instructions)) for answer in answers.values())


def test_topic_sentence_lengths():
    for record in read("topics"):
        sentence = content(record)
        assert "\n" not in sentence
        if record["language"] == "zh":
            assert 12 <= len(sentence) <= 50, record["id"]
        else:
            assert 8 <= len(sentence.split()) <= 25, record["id"]


def test_translation_directions():
    pairs = Counter()
    groups = Counter()
    for record in read("translation"):
        _, source, target, number = record["id"].split("-")
        assert record["language"] == target
        assert record["group"] == f"translation-{number}"
        assert "en" in (source, target)
        pairs[source, target] += 1
        groups[record["group"]] += 1
    others = LANGUAGES[1:]
    expected = {("en", other): 15 for other in others} | {(other, "en"): 15 for other in others}
    assert pairs == expected
    assert groups == {f"translation-{n:03d}": 7 for n in range(1, 31)}


@pytest.mark.parametrize("name", CLEAN)
def test_scripts(name):
    for record in read(name):
        answer = record["messages"][1]["content"]
        script = SCRIPTS.get(record["language"], "LATIN")
        letters = [unicodedata.name(c, "") for c in answer if c.isalpha()]
        inside = sum(letter.startswith(script) for letter in letters)
        assert inside >= 0.5 * len(letters), record["id"]


def test_no_sentence_in_two_files():
    seen = {}
    for name in CLEAN:
        for record in read(name):
            sentences = {content(record)}
            if name == "translation":
                sentences.add(record["messages"][1]["content"])
            for sentence in sentences:
                assert seen.setdefault(sentence.casefold(), name) == name, record["id"]
