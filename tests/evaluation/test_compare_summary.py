"""Differences between methods: paired where examples are, adjusted over what one measure compares."""

import numpy as np
import pytest

from mlx_hybrid.evaluation.compare_metrics import Figure
from mlx_hybrid.evaluation.compare_summary import adjust, difference, errors_of, metric_rows, paired_error
from mlx_hybrid.evaluation.intervals import bootstrap_mean, paired_bootstrap
from mlx_hybrid.evaluation.seeds import example_error

GROUPS = [str(n // 2) for n in range(200)]
LANGUAGES = ["eng_Latn", "deu_Latn"] * 100


def result(right: np.ndarray) -> dict:
    return {"examples": {"group": GROUPS, "language": LANGUAGES, "right": right.tolist()}}


def figures(right: np.ndarray) -> dict:
    own = bootstrap_mean(right, seed=0, samples=500, groups=GROUPS)
    return {"accuracy": Figure(own.value, own.low, own.high), "range": Figure(0.1, 0.0, 0.2)}


def draws(*shares: float) -> list[np.ndarray]:
    """Answers of models that are right on the same easy examples."""
    hard = np.random.default_rng(0).random(200)
    return [(hard < share).astype(float) for share in shares]


def test_a_method_against_itself_differs_by_nothing():
    right = draws(0.6, 0.7)
    sides = [figures(r) for r in right], [result(r) for r in right]
    change = difference("accuracy", sides[0], sides[0], sides[1], sides[1])
    assert (change["value"], change["low"], change["high"], change["p"]) == (0, 0, 0, 1)


def test_one_seed_is_the_paired_bootstrap():
    before, after = draws(0.5, 0.6)
    error = paired_error([result(before)], [result(after)], "right", "")
    own = paired_bootstrap(before, after, seed=0, samples=2_000, groups=GROUPS)
    assert error == pytest.approx(example_error(own.low, own.high), rel=0.1)


def test_pairing_sees_what_separate_intervals_do_not():
    old, new = draws(0.50, 0.50, 0.51), draws(0.56, 0.57, 0.57)
    paired = difference(
        "accuracy", [figures(r) for r in old], [figures(r) for r in new], [result(r) for r in old],
        [result(r) for r in new],
    )  # fmt: skip
    apart = difference(
        "range", [figures(r) for r in old], [figures(r) for r in new], [result(r) for r in old],
        [result(r) for r in new],
    )  # fmt: skip
    assert paired["p"] < 0.05
    assert apart["p"] == 1


def test_one_language_is_compared_by_its_own_examples():
    before, after = draws(0.5, 0.5)
    after = after.copy()
    after[1::2] = 1.0
    assert paired_error([result(before)], [result(after)], "right", "eng_Latn") == 0
    assert paired_error([result(before)], [result(after)], "right", "deu_Latn") > 0


def test_p_is_adjusted_over_the_methods_of_one_measure():
    rows = [
        {"metric": metric, "method": method, "governance": "own", "difference": {"p": p}}
        for metric, method, p in (("accuracy", "a", 0.02), ("accuracy", "b", 0.03), ("nll", "a", 0.02))
    ]
    adjust(rows, "difference")
    assert [row["difference"]["p_holm"] for row in rows] == pytest.approx([0.04, 0.04, 0.02])


def test_a_row_keeps_every_seeds_value():
    rows = metric_rows(("lora", "own"), [{"x": Figure(1.0)}, {"x": Figure(3.0)}], [{"y": Figure(2.0)}] * 2)
    assert rows[0]["values"] == [1.0, 3.0]
    assert rows[0]["value"] == 2.0
    assert rows[1]["low"] == rows[1]["high"] == 2.0
    assert errors_of([Figure(1.0), Figure(1.0, 0.0, 2.0)]) == [pytest.approx(1 / 1.959964)]
