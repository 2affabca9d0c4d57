"""Batches: pads are never targets, every record comes once an epoch, and a seed fixes the order."""

import itertools
import random

import numpy as np
import pytest

from mlx_hybrid.records.examples import Example
from mlx_hybrid.training.batches import (
    MOST_TARGETS,
    Hold,
    epoch_order,
    epoch_records,
    language_quotas,
    length_bucket,
    make_batch,
    target_bucket,
    training_batches,
    validation_batches,
    weigh_prompts,
)


def example(length: int, trained_from: int = 1, name: str = "") -> Example:
    """Tokens length + 1 … 2·length, the last ones trained."""
    tokens = list(range(length + 1, 2 * length + 1))
    return Example(tokens, [i >= trained_from for i in range(length)], name or f"r:{length}", "", length)


PROMPTS = [example(400, 390), example(300, 280), example(9, 0), example(200, 170)]  # 10, 20, 9 and 30 targets


def test_prompts_count_in_sum_what_they_should_beside_the_answers():
    drawn = weigh_prompts(PROMPTS, Hold(0.5, 0.25), (0, 7))
    weights = [np.array(e.weights or e.trained, float) for e in drawn]
    for before, own in zip(PROMPTS, weights, strict=True):
        assert (own[np.array(before.trained)] == 1).all()
    held = np.concatenate(
        [own[:1] * 0 if e.trained[0] else own[: -e.trained_count] for e, own in zip(PROMPTS, weights)]
    )
    assert abs((held < 0).mean() - 0.25) < 0.06  # four standard deviations of 840 draws
    assert len(set(held[held < 0].tolist())) == 1
    batch = make_batch(drawn)
    beside = sum(sum(e.trained) for e in PROMPTS if not e.trained[0])  # a text has no prompt to hold
    assert -batch.weights[batch.weights < 0].sum() == pytest.approx(0.5 * beside)
    assert batch.answers == sum(sum(e.trained[1:]) for e in PROMPTS)
    assert batch.held.tolist() == [0, 1, 3, 3]  # the text has no prompt; in compiled steps shapes are few
    exact, count = make_batch(drawn, exact=True), (batch.weights < 0).sum()
    assert exact.held.tolist() == [0, 1, 3]
    assert (batch.weights[:count] < 0).all()
    rows, columns = np.divmod(exact.places[:count], exact.tokens.shape[1])
    assert (exact.held[rows] * exact.tokens.shape[1] + columns == exact.positions[:count]).all()
    assert len(exact.places) == target_bucket(int(count)) <= len(batch.places) == 256 <= len(batch.targets)
    assert (
        drawn
        == weigh_prompts(PROMPTS, Hold(0.5, 0.25), (0, 7))
        != weigh_prompts(PROMPTS, Hold(0.5, 0.25), (0, 8))
    )


@pytest.mark.parametrize("share", [0.1, 0.25, 1.0])
@pytest.mark.parametrize(("count", "read"), [(8, 2), (4, 1), (5, 2), (1, 1)])
def test_the_base_reads_a_quarter_of_the_records(count, read, share):
    records = [example(400, 390, f"r:{n}") for n in range(count)]
    drawn = [weigh_prompts(records, Hold(1.0, share, True), (0, n)) for n in range(20)]
    rows = [make_batch(own, exact=True).held for own in drawn]
    assert {len(held) for held in rows} == {read}
    assert len(set(map(tuple, rows))) > 1 or count == read
    held = np.array([np.array(own[held[0]].weights)[:390] < 0 for own, held in zip(drawn, rows, strict=True)])
    assert held.mean() == pytest.approx(min(share * count / read, 1.0), abs=0.05)


def test_as_many_tokens_are_held_as_are_targets_where_there_are():
    """A share of 0.01 would be three tokens beside 150 targets."""
    records = [example(400, 300, f"r:{n}") for n in range(6)]
    row, other = sorted(make_batch(weigh_prompts(records, Hold(1.0, 0.01, True), (0,)), exact=True).held)
    assert row != other
    whole = make_batch(weigh_prompts(records, Hold(1.0, 0.01, True), (0,)))
    assert (whole.weights < 0).sum() == 2 * 299
    assert -whole.weights.min() == pytest.approx(600 / 598)
    few = make_batch(weigh_prompts([example(400, 390, f"r:{n}") for n in range(6)], Hold(1.0, 0.01), (0,)))
    assert abs((few.weights < 0).sum() - 60) < 31  # four standard deviations


def test_records_without_a_prompt_are_not_drawn_and_few_tokens_count_for_no_more_than_they_may():
    texts = [example(300, 0, f"t:{n}") for n in range(7)]
    for draw in range(9):
        drawn = weigh_prompts([*texts, example(40, 20)], Hold(1.0, 0.1, True), (0, draw))
        (held,) = {w for w in make_batch(drawn).weights.tolist() if w < 0}
        assert -held == pytest.approx(20 / 19)  # of its own answer, not of the texts
    few = make_batch(weigh_prompts([example(2000, 4)] * 4, Hold(1.0, 0.1, True), (0,)))
    assert few.weights.min() == -MOST_TARGETS


def test_nothing_is_held_where_there_is_nothing_to_hold():
    assert weigh_prompts(PROMPTS, Hold(), (0,)) is PROMPTS
    assert weigh_prompts(PROMPTS[2:3], Hold(1.0, 1.0), (0,)) == PROMPTS[2:3]


def test_prompts_are_drawn_by_seed_and_epoch():
    records = [example(30, 25, f"r:{n}") for n in range(6)]

    def weights(**more):
        batches = training_batches(records, batch_size=6, seed=1, hold=Hold(0.1, 0.5), **more)
        return [
            np.sort(batch.weights).tolist() + batch.targets.tolist() for batch in itertools.islice(batches, 2)
        ]

    first, second = weights()
    assert first != second
    assert weights() == [first, second]
    assert weights(begin=1)[0] == second


def lengths(count: int, seed: int = 0) -> np.ndarray:
    """As real data: many short, a few long."""
    return np.random.default_rng(seed).lognormal(4.3, 0.7, count).astype(int).clip(8, 900)


def test_every_target_is_the_token_after_its_position_and_nothing_else_is_trained():
    examples = [example(5, 2), example(40, 30), example(9, 0)]
    batch = make_batch(examples)
    assert batch.tokens.shape == (3, 40)
    wanted = [
        (row, i - 1, e.tokens[i])
        for row, e in enumerate(examples)
        for i in range(1, len(e.tokens))
        if e.trained[i]
    ]
    width = batch.tokens.shape[1]
    got = [(p // width, p % width, t) for p, t, w in zip(batch.positions, batch.targets, batch.weights) if w]
    assert got == wanted
    for row, column, target in got:
        assert batch.tokens[row, column] == examples[row].tokens[column]
        assert target == examples[row].tokens[column + 1]
    assert len(batch.owners) == len(wanted) == sum(e.trained_count for e in examples)
    assert set(batch.weights) == {0.0, 1.0}
    assert batch.where == ("r:5", "r:40", "r:9")


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 34, 128, 129, 130, 500])
def test_a_batch_is_as_wide_as_its_bucket(length):
    assert make_batch([example(length), example(2)]).tokens.shape == (2, length_bucket(length - 1))


def test_lengths_are_rounded_up_to_few_shapes_that_waste_little():
    widths = [length_bucket(length) for length in range(1, 2049)]
    assert all(length <= width < length + max(16, length / 8 + 1) for length, width in enumerate(widths, 1))
    assert len(set(widths)) < 50
    assert widths == sorted(widths)


def test_room_for_targets_is_of_few_sizes_and_less_than_half_empty():
    rooms = [target_bucket(count) for count in range(1, 5000)]
    assert all(room >= count for count, room in enumerate(rooms, 1))
    assert all(room <= max(32, 1.5 * count) for count, room in enumerate(rooms, 1))
    assert sorted(set(rooms))[:10] == [16, 32, 48, 64, 96, 128, 192, 256, 384, 512]


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (7, 8), (8, 8), (100, 8), (1000, 3)])
def test_every_record_comes_once_an_epoch(count, batch_size):
    sizes = lengths(count)
    for epoch in range(3):
        batches = epoch_order(sizes, batch_size, seed=4, epoch=epoch)
        assert sorted(np.concatenate(batches)) == list(range(count))
        assert all(len(batch) <= batch_size for batch in batches)
        assert len(batches) == -(-count // batch_size)


@pytest.mark.parametrize("length", [2, 17, 18, 55, 130, 500])
def test_a_batch_of_its_own_width_is_as_wide_as_its_longest_record(length):
    examples = [example(length), example(2)]
    own, bucketed = make_batch(examples, exact=True), make_batch(examples)
    assert own.tokens.shape == (2, length - 1)
    assert (own.tokens == bucketed.tokens[:, : length - 1]).all()
    assert (own.targets == bucketed.targets).all()
    assert (own.weights == bucketed.weights).all()


@pytest.mark.parametrize("median", [30, 55, 200])
def test_batches_of_their_own_width_hold_under_five_percent_of_padding(median):
    """Which buckets miss on short records, though they are far below the third that a plain shuffle wastes."""
    sizes = np.clip(np.random.default_rng(0).lognormal(np.log(median), 0.6, 4000), 4, 1024).astype(int)
    longest = [(len(batch), int(sizes[batch].max()) - 1) for batch in epoch_order(sizes, 8, seed=0, epoch=0)]
    padded = sum(count * width for count, width in longest)
    bucketed = sum(count * length_bucket(width) for count, width in longest)
    shuffled = sum(8 * (own.max() - 1) for own in np.split(np.random.default_rng(0).permutation(sizes), 500))
    real = (sizes - 1).sum()
    assert 1 - real / padded < 0.05 < 1 - real / bucketed < 0.15 < 0.3 < 1 - real / shuffled


def order(examples, seed: int, begin: int = 0, count: int = 12) -> list[tuple[str, ...]]:
    return [
        b.where
        for b in itertools.islice(training_batches(examples, batch_size=4, seed=seed, begin=begin), count)
    ]


def test_the_order_depends_on_seed_and_epoch_alone():
    examples = [example(int(n), name=f"r:{i}") for i, n in enumerate(lengths(22))]
    first = order(examples, 1)
    random.seed(99)
    np.random.seed(99)
    assert order(examples, 1) == first
    assert order(examples, 2) != first
    assert first[:6] != first[6:]  # another epoch, another order
    assert sorted(sum(first[:6], ())) == sorted(sum(first[6:], ()))


@pytest.mark.parametrize("begin", [1, 5, 6, 7, 20])
def test_a_resumed_run_goes_on_where_it_was(begin):
    examples = [example(int(n), name=f"r:{i}") for i, n in enumerate(lengths(22))]
    assert order(examples, 3, begin=begin, count=6) == order(examples, 3, count=begin + 6)[begin:]


def test_validation_sees_every_example_once():
    examples = [example(int(n), name=f"r:{i}") for i, n in enumerate(lengths(21))]
    placed = list(validation_batches(examples, batch_size=4))
    assert all(b.where == tuple(examples[i].where for i in places) for places, b in placed)
    batches = [batch for _, batch in placed]
    assert sorted(sum((b.where for b in batches), ())) == sorted(e.where for e in examples)
    assert [b.tokens.shape[1] for b in batches] == sorted(b.tokens.shape[1] for b in batches)


COUNTS = {"en": 900, "sw": 90, "yo": 10}
LANGUAGES = [name for name, count in COUNTS.items() for _ in range(count)]


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 5.0, 1e6])
def test_quotas_keep_the_total_and_follow_the_power(temperature):
    quotas = language_quotas(COUNTS, temperature)
    assert sum(quotas.values()) == 1000
    weights = {name: count ** (1 / temperature) for name, count in COUNTS.items()}
    for name, quota in quotas.items():
        assert abs(quota - 1000 * weights[name] / sum(weights.values())) < 1


def test_the_ends_are_natural_and_equal_shares():
    assert language_quotas(COUNTS, 1.0) == COUNTS
    assert set(language_quotas({"a": 70, "b": 20, "c": 9}, 1e9).values()) == {33}


def test_no_language_vanishes():
    assert language_quotas({"en": 10_000, "yo": 1}, 1.0001)["yo"] == 1


def test_without_temperature_every_record_comes_once_an_epoch():
    assert epoch_records(LANGUAGES, 1.0, 3, 7).tolist() == list(range(1000))


def test_records_of_a_language_take_turns():
    seen = np.concatenate([epoch_records(LANGUAGES, 3.0, 0, epoch) for epoch in range(12)])
    times = np.bincount(seen, minlength=1000)
    for begin, end in ((0, 900), (900, 990), (990, 1000)):
        assert times[begin:end].max() - times[begin:end].min() <= 1
    assert times[:900].mean() < times[900:990].mean() < times[990:].mean()


def test_an_epoch_depends_on_seed_and_number_alone():
    first = epoch_records(LANGUAGES, 3.0, 0, 2)
    np.random.seed(99)
    assert (epoch_records(LANGUAGES, 3.0, 0, 2) == first).all()
    assert (epoch_records(LANGUAGES, 3.0, 1, 2) != first).any()
    assert (epoch_records(LANGUAGES, 3.0, 0, 3) != first).any()
