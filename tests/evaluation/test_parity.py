import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.metrics.parity import parity

VALUES = {"eng_Latn": 0.9, "swh_Latn": 0.5, "hau_Latn": 0.6, "tha_Thai": 0.7}


def spread(values: dict[str, float], **more) -> dict[str, float]:
    """The measures of one value a language."""
    told = parity(list(values.values()), list(values), list(values), seed=0, samples=20, **more)
    return {name: own.value for name, own in told.items()}


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.booleans())
def test_measures_of_any_values_are_numpys(values, higher):
    names = [f"l{n}" for n in range(len(values))]
    told = spread(dict(zip(names, values)), pivot="l0", higher_is_better=higher)
    assert told["mean"] == pytest.approx(np.mean(values), abs=1e-9)
    assert told["worst"] == pytest.approx((min if higher else max)(values))
    assert told["range"] == pytest.approx(np.ptp(values))
    assert told["standard_deviation"] == pytest.approx(np.std(values), abs=1e-9)
    if len(values) > 1:
        gap = values[0] - np.mean(values[1:])
        assert told["gap_to_pivot"] == pytest.approx(gap if higher else -gap, abs=1e-9)


def test_languages_that_no_draw_holds_together_have_no_width():
    names = [f"l{n}" for n in range(30)]
    told = parity([1.0] * 30, names, names, seed=0, samples=200)
    assert told["mean"].low == told["mean"].value == told["mean"].high == 1


def test_one_language_and_no_pivot():
    result = spread({"swh_Latn": 0.5}, pivot="swh_Latn")
    assert (result["range"], result["standard_deviation"]) == (0, 0)
    assert "gap_to_pivot" not in result
    assert "gap_to_pivot" not in spread(VALUES, pivot="deu_Latn")


@pytest.mark.parametrize("values", [{}, {"swh_Latn": float("nan")}])
def test_no_language_and_no_number_are_errors(values):
    with pytest.raises(DataError):
        spread(values)


def test_intervals_resample_translations_together():
    rng = np.random.default_rng(0)
    shared = rng.integers(2, size=300).astype(float)
    values, languages, groups = np.tile(shared, 2), ["a"] * 300 + ["b"] * 300, np.arange(600)
    together = parity(values, languages, groups % 300, seed=1, pivot="a")
    assert together["range"].high == 0
    apart = parity(values, languages, groups, seed=1, pivot="a")
    assert apart["range"].high > 0.05
    assert together["mean"].value == pytest.approx(shared.mean())
    assert apart["gap_to_pivot"].low < 0 < apart["gap_to_pivot"].high


def test_sizes_weigh_the_values_of_a_language():
    told = parity([6.0, 2.0, 3.0], ["a", "a", "b"], [0, 1, 2], sizes=[1.0, 3.0, 1.0], seed=0)
    assert told["mean"].value == pytest.approx((8 / 4 + 3) / 2)
    assert told["range"].value == pytest.approx(1)
