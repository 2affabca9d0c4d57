"""The arithmetic of the bridge to lm-evaluation-harness; tests/cli/test_lm_eval.py runs the harness itself."""

import sys
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from toys import byte_tokenizer, wrapped

from mlx_hybrid.errors import ConfigError, DataError, MlxHybridError
from mlx_hybrid.evaluation.harness import continuations, find_tasks, harness_model, task_results
from mlx_hybrid.evaluation.results import Results, by_model
from mlx_hybrid.report.result_tables import result_tables

REQUESTS = [([5, 9, 3], [7]), ([5], [9, 3, 7, 2]), ([1, 2, 3, 4, 5, 6], [8, 8]), ([2, 2], [2, 2, 2])]


def alone(model, before: list[int], after: list[int]) -> tuple[float, bool]:
    logits = np.array(model(mx.array([before + after]))[0], np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    places = range(len(before) - 1, len(before) + len(after) - 1)
    total = sum(log_p[p, t] for p, t in zip(places, after))
    return total, all(logits[p].argmax() == t for p, t in zip(places, after))


def test_continuations_are_those_of_one_at_a_time(model):
    got = continuations(model, REQUESTS)
    for (total, greedy), (before, after) in zip(got, REQUESTS):
        wanted = alone(model, before, after)
        assert total == pytest.approx(wanted[0], abs=1e-4)
        assert greedy is bool(wanted[1])
    assert continuations(model, []) == []


def test_the_greedy_continuation_is_known_as_one(model):
    tokens = [5, 9, 3]
    for _ in range(3):
        tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1]).item()))
    assert continuations(model, [(tokens[:3], tokens[3:])])[0][1]


def test_a_context_too_long_loses_its_beginning(model):
    before, after = list(range(1, 30)), [4, 5]
    assert continuations(model, [(before, after)], 8)[0][0] == pytest.approx(
        alone(model, before[-6:], after)[0], abs=1e-4
    )


def test_weights_that_are_no_numbers_are_refused(other_model):
    head = other_model.lm_head.weight
    try:
        other_model.lm_head.weight = head * float("nan")
        with pytest.raises(MlxHybridError, match="not finite"):
            continuations(other_model, REQUESTS[:1])
    finally:
        other_model.lm_head.weight = head


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (([5], list(range(9))), "10 tokens is longer than the model's context, 8"),
        (([5, 9], []), "no token of its own"),
    ],
)
def test_continuations_that_cannot_be_scored_are_refused(request_, words, model):
    with pytest.raises(MlxHybridError, match=words):
        continuations(model, [request_], 8)


@pytest.mark.parametrize("begins", [True, False])
def test_rolling_likelihoods_follow_one_token_as_in_the_harness_s_own_model(begins, model):
    pytest.importorskip("lm_eval")
    tokenizer = wrapped(byte_tokenizer(None, begins=begins))
    bare = tokenizer.encode("up there", add_special_tokens=False)
    got = harness_model(model, tokenizer).loglikelihood_rolling([SimpleNamespace(args=("up there",))])
    assert got == [pytest.approx(alone(model, [tokenizer.bos_token_id], bare)[0], abs=1e-4)]


def test_tokens_beyond_the_embedding_are_refused():
    pytest.importorskip("lm_eval")
    tokenizer = wrapped(byte_tokenizer(None))
    tokenizer.vocabulary = 257
    with pytest.raises(DataError, match="embedding has 257 rows"):
        harness_model(None, tokenizer).tok_encode("<s>up")


def test_results_become_rows():
    whole = {"results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1}}, "versions": {"t": 3}}
    whole["n-samples"] = {"t": {"original": 30, "effective": 20}}
    rows = [row for model in ("base", "adapted") for row in by_model(task_results(whole), model)]
    assert [(row.metric, row.n) for row in rows] == [("t acc", 20)] * 2
    (table,) = result_tables(Results({"harness": "lm-eval"}, tuple(rows)))
    assert table.columns == ("task and metric", "base", "adapted")
    assert table.rows == [("t acc", "0.500 [0.304, 0.696]", "0.500 [0.304, 0.696]")]


def test_without_the_harness_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'mlx-hybrid\[lm-eval\]'"):
        find_tasks(["arc_easy"])
