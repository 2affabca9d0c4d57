"""chrF++ of sums and of resampled corpora, against sacrebleu on the texts themselves."""

import random

import mlx.core as mx
import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.translation import (
    corpus_score,
    direction_measures,
    greedy,
    intervals,
    score_directions,
    sentence_statistics,
    statistics_of,
)
from mlx_hybrid.evaluation.sets import evaluation_set, from_fields

LETTERS = "abcde ñ漢字ثस"
EDGES = {
    "equal": (["a b c d"], [["a b c d"]]),
    "nothing in common": (["abc"], [["xyz"]]),
    "empty output": (["", "one two"], [["one", "one two"]]),
    "all empty": (["", ""], [["one", "two"]]),
    "empty reference": (["one", "two"], [["", "two"]]),
    "one letter": (["a"], [["a"]]),
    "spaces": (["   ", "a  b"], [["a", "a b"]]),
    "punctuation": (["(hi)!", "?"], [["(hi) !", "?"]]),
    "two references": (["a b", "c d"], [["a c", "c d"], ["a b", "x"]]),
}


def words(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(count))


def pairs_of_texts(seed: int, count: int, references: int = 1) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)
    columns = [[words(rng, rng.randrange(1, 40)) for _ in range(count)] for _ in range(references)]
    kept = [[c if rng.random() < 0.8 else rng.choice(LETTERS) for c in text] for text in columns[0]]
    return ["".join(own) for own in kept], columns


@pytest.mark.parametrize("name", EDGES)
def test_edges_are_those_of_sacrebleu(name):
    hypotheses, columns = EDGES[name]
    wanted = CHRF(word_order=2).corpus_score(hypotheses, columns).score
    got = corpus_score(sentence_statistics(hypotheses, columns).sum(0))
    assert float(got) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_random_texts_are_those_of_sacrebleu(seed, references):
    hypotheses, columns = pairs_of_texts(seed, 20, references)
    metric = CHRF(word_order=2)
    wanted = metric.corpus_score(hypotheses, columns)
    got = corpus_score(sentence_statistics(hypotheses, columns).sum(0))
    assert float(got) == pytest.approx(wanted.score, abs=1e-9)
    assert 10 < wanted.score < 95


def example(seed: int = 0, count: int = 30, noise: int = 1):
    """Two languages beside the pivot, both ways, each group in all four directions."""
    pairs, groups, hypotheses, references = [], [], [], []
    for number, pair in enumerate((("en", "sw"), ("sw", "en"), ("en", "de"), ("de", "en"))):
        own, columns = pairs_of_texts(seed * 100 + number * noise, count)
        hypotheses += own
        references += columns[0]
        pairs += [pair] * count
        groups += [f"g{n}" for n in range(count)]
    return pairs, groups, hypotheses, references


def test_draws_are_those_of_the_texts_drawn():
    """The same draws made by hand, scored by sacrebleu on the texts."""
    pairs, groups, hypotheses, references = example()
    statistics = sentence_statistics(hypotheses, [references])
    own = score_directions(pairs, groups, statistics, seed=3)
    names = sorted(set(groups))
    weights = np.random.default_rng(3).multinomial(len(names), np.full(len(names), 1 / len(names)), size=1000)
    for sample in (0, 7, 999):
        for column, pair in enumerate(own.names):
            times = [weights[sample, names.index(g)] if p == pair else 0 for p, g in zip(pairs, groups)]
            drawn = [n for n, count in enumerate(times) for _ in range(count)]
            wanted = CHRF(word_order=2).corpus_score(
                [hypotheses[n] for n in drawn], [[references[n] for n in drawn]]
            )
            assert own.scores[1 + sample, column] == pytest.approx(wanted.score, abs=1e-9)


def test_measures_are_those_of_parity_and_balance():
    pairs, groups, hypotheses, references = example()
    own = score_directions(pairs, groups, sentence_statistics(hypotheses, [references]), seed=0)
    values = dict(zip(own.names, own.scores[0]))
    told = {name: float(v[0]) for name, v in direction_measures(own.scores, own.names, "en").items()}
    out = np.array([values["en", "sw"], values["en", "de"]])
    assert told["chrf"] == pytest.approx(np.mean(list(values.values())))
    assert told["chrf_out"] == pytest.approx(out.mean())
    for measure, wanted in (("worst", min(out)), ("range", np.ptp(out)), ("standard_deviation", out.std())):
        assert told[f"chrf_out_{measure}"] == pytest.approx(wanted)
    gaps = np.array([values["en", other] - values[other, "en"] for other in ("sw", "de")])
    assert (told["balance"], told["balance_size"]) == pytest.approx((gaps.mean(), np.abs(gaps).mean()))
    assert told["balance@sw"] == pytest.approx(gaps[0])
    assert not {"chrf_out", "balance"} & direction_measures(own.scores, own.names, "fr").keys()


def test_means_differences_and_their_intervals_are_paired():
    pairs, groups, hypotheses, references = example()
    better = [r if n % 7 == 0 else h for n, (h, r) in enumerate(zip(hypotheses, references))]
    before, after = (
        score_directions(pairs, groups, sentence_statistics(texts, [references]), seed=0)
        for texts in (hypotheses, better)
    )
    own = intervals([before], "en")
    assert own["chrf"].low < own["chrf"].value < own["chrf"].high
    assert own["chrf"].count == 30
    widths = [v.high - v.low for name, v in own.items() if name.startswith("chrf@")]
    assert own["chrf"].high - own["chrf"].low < min(widths)  # the mean of four is surer than each
    apart = intervals([after], "en")["chrf"]
    change = intervals([after], "en", minus=[before])["chrf"]
    assert change.low > 0
    assert change.high - change.low < apart.high - apart.low
    same = intervals([before], "en", minus=[before])["chrf"]
    assert (same.value, same.low, same.high) == (0, 0, 0)
    mean = intervals([before, after], "en")["chrf"].value
    assert mean == pytest.approx((apart.value + own["chrf"].value) / 2)


def test_references_that_are_not_as_many_for_each_are_an_error():
    rows = [{"prompt": "p", "completion": "c", "language": "de"}]
    rows.append(rows[0] | {"references": ["a", "b"]})
    with pytest.raises(DataError, match="same number of references"):
        statistics_of(evaluation_set(from_fields(rows, "t")), ["c", "c"])


def test_greedy_generation_takes_the_likeliest_tokens(model, tokenizer):
    prompts, expected = [[5, 9, 100, 31], [7]], []
    for prompt in prompts:
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 4 and tokens[-1] != tokenizer.eos_token_id:
            tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1]).item()))
        expected.append(tokenizer.decode(tokens[len(prompt) :]).strip())
    assert greedy(tokenizer, 4)(model, prompts) == expected
