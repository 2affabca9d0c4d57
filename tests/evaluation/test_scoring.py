import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import ARCHITECTURES, tiny
from mlx_lm.models.cache import KVCache, make_prompt_cache
from toys import VOCABULARY, log_likelihoods

from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.errors import DataError, MlxHybridError
from mlx_hybrid.evaluation import scoring
from mlx_hybrid.evaluation.forward import Forward, batches_by_length, pad_right, tops_and_sums
from mlx_hybrid.evaluation.scoring import OptionItem, can_share, rooted, score_options, sequence, sequence_nll

TOLERANCE = 1e-5  # the bound that a score may move by


def draw_items(seed: int, count: int = 12, vocabulary: int = 320) -> list[OptionItem]:
    """Prompts of 1 to 23 tokens, with 1 to 5 options of 1 to 4 tokens."""
    rng = np.random.default_rng(seed)
    draw = lambda most: rng.integers(vocabulary, size=rng.integers(1, most + 1)).tolist()  # noqa: E731
    return [OptionItem(draw(23), [draw(4) for _ in range(rng.integers(1, 6))]) for _ in range(count)]


def draw_task(seed: int, count: int = 14, vocabulary: int = 320) -> list[OptionItem]:
    """Prompts that begin with one of two instructions or with none, options that begin alike or begin one another."""
    rng = np.random.default_rng(seed)
    shared = [rng.integers(vocabulary, size=size).tolist() for size in (17, 40)]
    items = draw_items(seed + 1, count, vocabulary)
    for place, item in enumerate(items):
        start = (*shared, [])[place % 3]
        longer = [[*item.options[0], 5], [*item.options[0], 7, 8]] if place % 2 else []
        stem = [3, 1] if place % 4 > 1 else []
        options = [stem + option for option in item.options + longer]
        items[place] = OptionItem(start + item.prompt, options)
    return items


def loop_scores(model, item: OptionItem) -> np.ndarray:
    """One forward pass an option."""
    start = len(item.prompt) - 1
    sums = [log_likelihoods(model, item.prompt + option)[start:].sum() for option in item.options]
    return np.array(sums)


def check(model, items: list[OptionItem], scores: list[np.ndarray]) -> None:
    """The scores are those of a plain loop."""
    for item, own in zip(items, scores, strict=True):
        np.testing.assert_allclose(own, loop_scores(model, item), atol=TOLERANCE)


def test_scores_of_capped_logits_are_those_of_a_plain_loop(capped_model):
    items = draw_items(1)
    assert not can_share(Forward(capped_model))  # it takes no masks per row
    check(capped_model, items, score_options(capped_model, items))


@pytest.mark.parametrize("mode", ["", "4-bit"], ids=["dense", "4-bit"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_architecture_scores_shared_beginnings_as_a_plain_loop_does(name, mode):
    model, items = tiny(name, mode), draw_task(11, 8, VOCABULARY)
    plain = score_options(model, items, share=False)
    for i, scores in enumerate(score_options(model, items)):
        np.testing.assert_allclose(scores, plain[i], atol=TOLERANCE)
        if not mode:
            np.testing.assert_allclose(scores, loop_scores(model, items[i]), atol=TOLERANCE)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", ["model", "windowed_model"])
def test_scores_are_exact_whatever_the_batch_or_order(name, share, request, monkeypatch):
    model, items = request.getfixturevalue(name), draw_task(12) + draw_items(2)
    wanted = [loop_scores(model, item) for item in items]
    assert can_share(Forward(model))
    for seed, batch_tokens in enumerate((1, 40, 90, 700, 100_000)):
        order = np.random.default_rng(seed).permutation(len(items))
        monkeypatch.setattr(scoring, "BATCH_TOKENS", batch_tokens)
        scores = score_options(model, [items[i] for i in order], share=share)
        for own, i in zip(scores, order, strict=True):
            np.testing.assert_allclose(own, wanted[i], atol=TOLERANCE)


def test_each_position_meets_the_head_once_and_each_beginning_the_body(model, monkeypatch):
    items = [OptionItem([*range(30), n], [[7, 1], [7, 2, 3], [7, 2], [9]]) for n in range(40, 45)]
    monkeypatch.setattr("mlx_hybrid.evaluation.scoring.can_share", lambda forward: True)
    rows, tokens = [], []
    product = Forward.log_likelihoods
    counted = lambda self, hidden, *rest: rows.append(len(hidden)) or product(self, hidden, *rest)  # noqa: E731
    monkeypatch.setattr(Forward, "log_likelihoods", counted)
    padded = lambda own: tokens.append(sum(map(len, own))) or pad_right(own)  # noqa: E731
    monkeypatch.setattr("mlx_hybrid.evaluation.scoring.pad_right", padded)
    score_options(model, items)
    assert sum(rows) == 5 * 3  # after the prompt, after 7, after 7 2
    assert sum(tokens) == 30 + 5 * 1 + 5 * 2


def test_a_head_comes_in_parts_and_a_sum_over_them_is_that_over_all(monkeypatch):
    for name, mode in (("llama", ""), ("mistral", ""), ("gemma3_text", "4-bit"), ("mistral", "4-bit")):
        model, items = tiny(name, mode), draw_task(13, 6, VOCABULARY)
        whole = score_options(model, items)
        monkeypatch.setattr("mlx_hybrid.evaluation.forward.ENTRIES_AT_ONCE", 700)
        assert Forward(model).part is not None
        for scores, expected in zip(score_options(model, items), whole):
            np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
        monkeypatch.undo()


def test_sums_of_exponentials_are_exact_over_many_entries():
    logits = 5 * np.random.default_rng(0).standard_normal((3, 1 << 18)).astype(np.float32)
    exact = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    tops, sums = tops_and_sums(mx.array(logits))
    np.testing.assert_allclose(sums, exact, atol=1e-6)
    np.testing.assert_array_equal(tops, logits.max(1))


def test_beginnings_are_shared_at_every_branching():
    """All but the token after which the first is predicted."""
    first, second = list(range(20)), list(range(50))
    sequences = [[*first, 90], [*second, 91, 92], [*second, 91, 93], [1, 2], [*first, 94]]
    shared, alone = rooted([sequence(own, [len(own) - 1], 0) for own in sequences])
    assert (alone.tokens, alone.children, shared.tokens) == ([1], [], first[:19])
    one, deeper, other = shared.children
    assert [(node.tokens, node.asked) for node in (one, other)] == [([19], [(0, n, 0)]) for n in (90, 94)]
    assert deeper.tokens == second[19:]
    assert [(node.tokens, node.asked) for node in deeper.children] == [([91], [(0, n, 0)]) for n in (92, 93)]


def test_batches_of_like_length_hold_little_padding():
    lengths = [10, 100, 95, 11, 50, 98]
    batches = batches_by_length(lengths, 1000, 100)
    assert [sorted(batch.tolist()) for batch in batches] == [[1, 2, 5], [3, 4], [0]]
    assert sorted(np.concatenate(batches_by_length(lengths, 100)).tolist()) == list(range(6))


def test_scores_of_a_quantised_model_do_not_move_either(monkeypatch):
    model = use_fast_products(tiny("llama", "4-bit"))
    assert can_share(Forward(model))
    items = draw_items(9, vocabulary=VOCABULARY)
    reference = score_options(model, items)
    for batch_tokens, share in ((1, True), (60, False), (1000, False)):
        monkeypatch.setattr(scoring, "BATCH_TOKENS", batch_tokens)
        for moved, scores in zip(score_options(model, items, share=share), reference):
            np.testing.assert_allclose(moved, scores, atol=TOLERANCE)


class Whole(nn.Module):
    """A make of model that does not come apart into a body and a head."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.layers = net, net.layers

    def __call__(self, tokens, cache=None):
        return self.net(tokens, cache)


def test_only_a_model_that_does_not_come_apart_computes_all_logits(model, capped_model):
    assert Forward(model).most_tokens == Forward(capped_model).most_tokens == math.inf
    whole, items = Whole(model), draw_items(6, 3)
    assert Forward(whole).most_tokens < math.inf
    check(model, items, score_options(whole, items, share=False))


def test_a_model_that_caches_more_than_keys_is_scored_plainly(model, monkeypatch):
    class Other(KVCache):
        pass

    monkeypatch.setattr(type(model), "make_cache", lambda self: [Other() for _ in self.layers])
    assert type(make_prompt_cache(model)[0]) is Other
    items = draw_items(4, 3)
    assert not can_share(Forward(model))
    check(model, items, score_options(model, items))


def test_scoring_leaves_the_model_in_its_mode(model):
    model.train()
    score_options(model, draw_items(5, 2))
    assert model.training
    model.eval()
    score_options(model, draw_items(5, 2))
    assert not model.training


def test_no_items_and_faulty_items(model):
    assert score_options(model, []) == []
    for item in (OptionItem([], [[1]]), OptionItem([1], []), OptionItem([1], [[2], []])):
        with pytest.raises(DataError, match="Item 0"):
            score_options(model, [item])


def test_weights_with_nan_are_named(model):
    from mlx.utils import tree_flatten

    name, weight = tree_flatten(model.parameters())[0]
    try:
        model.load_weights([(name, weight * math.nan)], strict=False)
        with pytest.raises(MlxHybridError, match="item 0 is not finite"):
            score_options(model, draw_items(6, 1))
    finally:
        model.load_weights([(name, weight)], strict=False)


def test_sequence_nll_equals_a_plain_loop(model, monkeypatch):
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 31)
    rng = np.random.default_rng(8)
    sequences = [rng.integers(320, size=n).tolist() for n in (5, 1, 30, 2, 17)]
    masks = [rng.integers(2, size=len(s)).tolist() for s in sequences]
    sums, counts, _ = sequence_nll(model, sequences, masks)
    for i, (tokens, mask) in enumerate(zip(sequences, masks)):
        terms = -log_likelihoods(model, tokens)[np.array(mask[1:], bool)]
        np.testing.assert_allclose(sums[i], terms.sum(), atol=TOLERANCE)
        assert counts[i] == len(terms)


@pytest.mark.parametrize("name", ["model", "windowed_model", "capped_model"])
def test_sequence_nll_is_the_same_where_sequences_share_a_beginning(name, request):
    model, rng = request.getfixturevalue(name), np.random.default_rng(9)
    start = rng.integers(320, size=25).tolist()
    sequences = [start + rng.integers(320, size=n).tolist() for n in (4, 9, 0, 2)] + [start[:7]]
    masks = [[0] * min(len(s), 26) + [1] * (len(s) - 26) for s in sequences]
    sums, counts, _ = sequence_nll(model, sequences, masks)
    for i, (tokens, mask) in enumerate(zip(sequences, masks)):
        alone = sequence_nll(model, [tokens], [mask])
        np.testing.assert_allclose((sums[i], counts[i]), (alone[0][0], alone[1][0]), atol=TOLERANCE)
    assert counts.tolist() == [3, 8, 0, 1, 0]


def test_sequence_nll_without_masks_counts_all_but_the_first(model):
    assert sequence_nll(model, [[1, 2, 3], [4]])[1].tolist() == [2, 0]
    assert sequence_nll(model, [])[0].shape == (0,)
