"""The bundled sample data: counts, record shape, and no near-duplicates among the clean records."""

import json
import re
import unicodedata
from collections import Counter
from functools import cache
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
    "instructions": ["id", "language", "messages", "source", "licence"],
}
CLEAN = tuple(KEYS)
DIRTY_LANGUAGES = ("en", "es", "sw", "ru", "hi", "zh")
FAULTS = {
    "language": 12,
    "duplicate": 8,
    "near": 10,
    "mojibake": 8,
    "markup": 8,
    "repetition": 6,
    "empty": 3,
    "json": 4,  # and one line of plain text
    "replacement": 2,
    "control": 2,
}


@cache
def read(name):
    """The records of a clean sample file."""
    text = (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def read_dirty():
    """The lines of the dirty file: the id where there is one, and the record or None."""
    lines = (SAMPLES / "dirty.jsonl").read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    for line in lines:
        found = re.match(r'\{"id": "([^"]+)"', line)
        try:
            yield found and found[1], json.loads(line)
        except json.JSONDecodeError:
            yield found and found[1], None


def content(record):
    """What a record is about: the sentence after the instruction."""
    user = record["messages"][0]["content"]
    return user.split(": ", 1)[1] if record["id"].startswith("translation-") else user.split("\n", 1)[-1]


def grams(record):
    """The character n-grams of the case-folded words of a record's content."""
    size = 3 if record["language"] == "zh" else 5
    text = " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", content(record)).casefold()))
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


def jaccard(a, b):
    return len(a & b) / len(a | b)


def closest(records, language):
    """The highest similarity between the contents of two records of a language, with their ids."""
    sets = [(record["id"], grams(record)) for record in records if record["language"] == language]
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
        letters = [unicodedata.name(c, "") for c in text if c.isalpha()]  # of the answer, in its own script
        inside = sum(name.startswith(SCRIPTS.get(record["language"], "LATIN")) for name in letters)
        assert inside >= 0.5 * len(letters), record["id"]


@pytest.mark.parametrize("name", CLEAN)
def test_no_near_duplicates(name):
    for language in LANGUAGES:
        score, first, second = closest(read(name), language)
        assert score < 0.5, (first, second)


def test_topics_are_parallel():
    records, groups = read("topics"), {}
    for record in records:
        number = record["group"].removeprefix("topic-")
        assert record["id"] == f"topic-{record['language']}-{number}"
        groups.setdefault(record["group"], []).append(record)
    assert len(groups) == 72
    for group in groups.values():
        assert [record["language"] for record in group] == list(LANGUAGES)
        assert len({record["label"] for record in group}) == 1
    counts = Counter((record["language"], record["label"]) for record in records)
    assert counts == {(language, topic): 12 for language in LANGUAGES for topic in TOPICS}


@pytest.mark.parametrize("language", LANGUAGES)
def test_topic_instructions_name_the_answers(language):
    records = [record for record in read("topics") if record["language"] == language]
    (instruction,) = {record["messages"][0]["content"].split("\n")[0] for record in records}
    answers = {record["label"]: record["messages"][1]["content"] for record in records}
    assert set(answers) == set(TOPICS)
    assert len(set(answers.values())) == len(TOPICS)
    assert all(answers[record["label"]] == record["messages"][1]["content"] for record in records)
    assert all(answer in instruction for answer in answers.values())
    for record in records:
        sentence = content(record)
        assert "\n" not in sentence
        low, high, size = (12, 50, len(sentence)) if language == "zh" else (8, 25, len(sentence.split()))
        assert low <= size <= high, record["id"]


def test_translation_directions_and_instructions():
    pairs, groups = Counter(), Counter()
    for record in read("translation"):
        _, source, target, number = record["id"].split("-")
        assert record["language"] == target
        assert record["group"] == f"translation-{number}"
        pairs[source, target] += 1
        groups[record["group"]] += 1
    assert pairs == {pair: 15 for other in LANGUAGES[1:] for pair in (("en", other), (other, "en"))}
    assert groups == {f"translation-{n:03d}": 7 for n in range(1, 31)}
    records = read("instructions")
    assert Counter(r["language"] for r in records) == dict.fromkeys(LANGUAGES, 26)
    assert len({r["messages"][0]["content"] for r in records}) == len(records)


def test_dirty_counts():
    items = list(read_dirty())
    ids = [name for name, _ in items if name]
    faults = Counter(name.split("-")[1] for name in ids if name.startswith("dirty-"))
    assert len(items) == 160
    assert len(set(ids)) == len(ids) == 159
    assert faults == FAULTS
    assert sum(record is None for _, record in items) == 5
    assert all(record is None for name, record in items if name is None or name.startswith("dirty-json"))


def test_dirty_clean_part():
    records = [record for name, record in read_dirty() if name and name.startswith("raw-")]
    assert Counter(r["language"] for r in records) == dict.fromkeys(DIRTY_LANGUAGES, 16)
    assert Counter(r["label"] for r in records) == dict.fromkeys(TOPICS, 16)
    topics = read("topics")
    for language in DIRTY_LANGUAGES:
        score, first, second = closest(records + topics, language)
        assert score < 0.5, (first, second)
    answers = {(r["language"], r["label"]): r["messages"][1]["content"] for r in topics}
    assert all(r["messages"][1]["content"] == answers[r["language"], r["label"]] for r in records)


def test_dirty_copies_follow_what_they_copy():
    earlier = []
    for name, record in read_dirty():
        if record is None:
            continue
        same = [r for r in earlier if r["language"] == record["language"]]
        is_copy = any(r["messages"] == record["messages"] for r in same)
        assert is_copy == name.startswith("dirty-duplicate"), name
        if name.startswith("dirty-near"):
            assert max(jaccard(grams(r), grams(record)) for r in same) >= 0.6, name
        if name.startswith("raw-"):
            earlier.append(record)


def test_dirty_faults_are_what_they_say():
    for name, record in read_dirty():
        if record is None or not name.startswith("dirty-"):
            continue
        fault = name.split("-")[1]
        text = "".join(m["content"] for m in record["messages"]).replace("\n", "")
        assert ("\ufffd" in text) == (fault == "replacement"), name
        if fault == "control":
            assert any(unicodedata.category(c) == "Cc" for c in text), name
        if fault == "empty":
            assert not record["messages"][1]["content"].strip(), name
        if fault == "mojibake":
            raw = bytes(ord(c) if ord(c) < 256 else c.encode("cp1252")[0] for c in text)
            mended = raw.decode("utf-8")
            assert mended != text, name
            assert any(ord(c) > 127 for c in mended), name


def test_no_sentence_in_two_files():
    seen = {}
    records = [(name, record) for name in CLEAN for record in read(name)]
    records += [("dirty", record) for _, record in read_dirty() if record]
    for name, record in records:
        sentences = {content(record)}
        if name in ("translation", "instructions"):
            sentences.add(record["messages"][1]["content"])
        for sentence in sentences:
            assert seen.setdefault(sentence.casefold(), name) == name, record["id"]
