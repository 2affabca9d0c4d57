"""How the bundled base's text is cut, spelt and chosen (tools/)."""

import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from corpus import PIECE_BYTES, monotonic, pieces
from select_text import PRIOR, WINDOW, likeness, most_alike

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
