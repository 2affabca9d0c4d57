"""Shares of languages: quotas that add up, and every record in its turn."""

import numpy as np
import pytest

from mlx_hybrid.training.batches import epoch_records, language_quotas

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
