"""How the bundled base's text is cut, spelt and chosen (tools/base/)."""

import math
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "base"))

from corpus import PIECE_BYTES, monotonic, pieces
from pretrain_data import answers_weighed, encode
from select_text import PRIOR, WINDOW, likeness, most_alike
from spotter import FOLDER, read_concepts, read_table
from topic_teacher import Teacher, keywords
from transformers import PreTrainedTokenizerFast

from mlx_hybrid.models.base import BUNDLED_FOLDER

ROUNDING = 1e-12  # float64 sums of a few hundred terms


@pytest.mark.parametrize(
    "line",
    [
        "One sentence is here. " * 40,
        "第一句话在这里。第二句话也在这里！" * 40,
        "ยาว " * 300,
        "Μία πρόταση; Άλλη μία πρόταση. " * 30,
        "short",
    ],
)
def test_pieces_hold_the_whole_line_and_fit_a_window(line):
    line = line.strip()
    found = pieces(line)
    assert "".join("".join(found).split()) == "".join(line.split())
    assert all(len(piece.encode()) <= 2 * PIECE_BYTES for piece in found)
    assert (len(found) > 1) == (len(line.encode()) > PIECE_BYTES)


def test_a_piece_ends_with_a_sentence_where_there_are_sentences():
    assert all(piece.endswith(".") for piece in pieces("It was a cold morning. " * 50))


def test_greek_is_spelt_as_today():
    assert monotonic("Καὶ νὰ δῇς ποὺ τὰ βοτάνια") == "Και να δης που τα βοτάνια"
    assert monotonic("ἡ ἀρχὴ τοῦ κόσμου") == "η αρχή του κόσμου"


def test_likeness_is_the_difference_of_unigram_log_likelihoods():
    rng = np.random.default_rng(0)
    vocabulary, newline = 20, 3
    tokens, reference = rng.integers(0, vocabulary, 400), rng.integers(0, 9, 60)
    starts = np.array([0, 50, 130, 390])
    text, told = Counter(tokens.tolist()), Counter(reference.tolist())
    total = len(tokens) + 0.1 * vocabulary

    def gain(token: int) -> float:
        plain = (text[token] + 0.1) / total
        mixed = (told[token] + PRIOR * plain) / (len(reference) + PRIOR)
        return 0.0 if token == newline else math.log(mixed) - math.log(plain)

    expected = [np.mean([gain(t) for t in tokens[s : s + WINDOW].tolist()]) for s in starts]
    found = likeness(tokens, starts, reference, vocabulary, newline)
    np.testing.assert_allclose(found, expected, atol=ROUNDING)
    assert np.ptp(found) > 1000 * ROUNDING


def test_the_lines_most_alike_hold_no_more_than_their_share():
    scores, lengths = np.array([0.1, 0.9, 0.5, 0.7]), np.array([10, 20, 30, 40])
    assert most_alike(scores, lengths, 0.6).tolist() == [1, 3]
    assert most_alike(scores, lengths, 1.0).tolist() == [0, 1, 2, 3]


def test_an_answer_outweighs_its_question():
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BUNDLED_FOLDER)
    texts = ["<|user|>Topic: water, bread<|end|><|assistant|>food<|end|><s>", "Brot = bread</s><s>"]
    stream = answers_weighed(encode(tokenizer, texts), tokenizer, least=20, question=0.25)
    answer = tokenizer("food<|end|>", add_special_tokens=False)["input_ids"]
    opened = tokenizer.convert_tokens_to_ids("<|assistant|>")
    start = int(np.flatnonzero(stream.tokens == opened)[0]) + 1
    assert stream.tokens[start : start + len(answer)].tolist() == answer
    within = np.zeros(len(stream.tokens), bool)
    within[start : start + len(answer)] = True
    assert stream.weights[within].sum() == pytest.approx(20)
    assert set(stream.weights[~within]) == {0.25}


def test_keywords_are_the_words_that_say_the_topic():
    food = ["the bread is in the oven", "we eat bread and soup", "soup with bread", "a soup for lunch"]
    travel = ["the train is in the town", "we ride a train and a bus", "bus with train", "a bus for home"]
    teacher = Teacher(food + travel, ["food"] * 4 + ["travel"] * 4, "en")
    rows = [("we have soup, and then the bread", "food"), ("and then the train for a bus", "travel")]
    found = [
        set(words.split(", "))
        for seed in range(20)
        for words in keywords(teacher, rows, ["food", "travel"], random.Random(seed))
    ]
    assert all(words & {"soup", "bread"} for words in found[::2])
    assert all(words & {"train", "bus"} for words in found[1::2])
    assert {"soup", "bread"} in found
    assert {"train", "bus"} in found


def test_the_word_list_has_every_concept_once_in_every_language():
    concepts, topics = read_concepts(), [row["topic"] for row in read_table(FOLDER / "topics.tsv")]
    assert len(concepts) > 2000
    english = Counter((concept["en"], concept["topic"]) for concept in concepts)
    assert [word for word, count in english.items() if count > 1] == []
    columns = set(read_table(FOLDER / "topics.tsv")[0])
    for concept in concepts:
        assert set(concept) == columns
        assert all(word and word == word.strip() for word in concept.values()), concept
    assert set(topics) - {concept["topic"] for concept in concepts} == {"ASK"}
