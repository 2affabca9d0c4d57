"""Means over seeds against scipy and what they promise, coverage; differences between methods, paired and adjusted."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mlx_hybrid.evaluation.metrics.intervals import bootstrap_ratio, macro_f1
from mlx_hybrid.evaluation.metrics.translation import chrf, intervals
from mlx_hybrid.evaluation.results import ALL, Results, Row
from mlx_hybrid.study.summary import (
    FEWEST,
    adjust,
    difference,
    differences,
    directions_from,
    errors_of,
    example_error,
    holm,
    mean_over_seeds,
    mean_rows,
    paired_error,
)

GROUPS = [str(n // 2) for n in range(200)]
LANGUAGES = ["eng_Latn", "deu_Latn"] * 100


def result(right: np.ndarray) -> dict:
    """Columns of examples."""
    return {"group": GROUPS, "language": LANGUAGES, "right": right.tolist()}


def key(metric: str) -> tuple[str, str, str]:
    return metric, ALL, ""


def answered(right: np.ndarray) -> Results:
    """Results of one cell."""
    row = Row.of("accuracy", bootstrap_ratio(right, np.ones(200), seed=0, samples=500, groups=GROUPS), 200)
    return Results({"kind": "classification", "examples": result(right)}, (row,))


def fixed(value: float, low: float | None = None, high: float | None = None) -> Row:
    return Row("x", value=value, low=low, high=high)


def draws(*shares: float) -> list[np.ndarray]:
    """Answers of models that are right on the same easy examples."""
    hard = np.random.default_rng(0).random(200)
    return [(hard < share).astype(float) for share in shares]


def test_a_method_against_itself_differs_by_nothing():
    own = [answered(right) for right in draws(0.6, 0.7)]
    change = differences(own, own, "eng_Latn")[key("accuracy")]
    assert (change["value"], change["low"], change["high"], change["p"]) == (0, 0, 0, 1)


def test_one_seed_is_the_paired_bootstrap():
    before, after = draws(0.5, 0.6)
    error = paired_error([result(before)], [result(after)], "right")
    own = bootstrap_ratio(after - before, np.ones(200), seed=0, samples=2_000, groups=GROUPS)
    assert error == pytest.approx(example_error(own.low, own.high), rel=0.1)


def test_pairing_sees_what_separate_intervals_do_not():
    old, new = (map(answered, draws(*shares)) for shares in ((0.50, 0.50, 0.51), (0.56, 0.57, 0.57)))
    paired = differences(list(old), list(new), "eng_Latn")[key("accuracy")]
    apart = difference(*[[fixed(0.1, 0.0, 0.2)] * 3] * 2)
    assert paired["p"] < 0.05
    assert apart["p"] == 1


def null_figure(rng: np.random.Generator, answers: np.ndarray) -> Row:
    """A model that is right on a sentence in most of its eight languages, or in few; none is better than another."""
    right = np.repeat(rng.random(60) < 0.6, 8) ^ (rng.random(480) < 0.05)
    chosen = np.where(right, answers, 1 - answers)
    own = macro_f1(chosen, answers, seed=0, samples=300, groups=np.repeat(np.arange(60), 8))
    return Row.of("macro_f1", own, 480)


def test_without_a_gain_the_macro_f1_of_translations_rejects_near_its_level():
    rng, rejected = np.random.default_rng(0), []
    for _ in range(100):
        answers = np.repeat(rng.integers(2, size=60), 8)
        sides = [[null_figure(rng, answers)] for _ in range(2)]
        rejected.append(difference(*sides)["p"] < 0.05)
    assert (
        np.mean(rejected) < 0.12
    )  # 0.05, a bootstrap of 60 groups being a little narrow; of examples alone 0.47


def test_one_language_is_compared_by_its_own_examples():
    before, after = draws(0.5, 0.5)
    after = after.copy()
    after[1::2] = 1.0
    assert paired_error([result(before)], [result(after)], "right", "eng_Latn") == 0
    assert paired_error([result(before)], [result(after)], "right", "deu_Latn") > 0


def compared(metric: str, method: str, change: dict) -> dict:
    """A row of a summary with its difference."""
    names = {"metric": metric, "language": ALL, "variant": "", "model": method, "governance": "own"}
    return names | {"difference": change}


def test_p_is_adjusted_over_the_methods_of_one_measure():
    families = (("accuracy", "a", 0.02), ("accuracy", "b", 0.03), ("nll", "a", 0.02))
    rows = [compared(metric, method, {"p": p}) for metric, method, p in families]
    adjust(rows, "difference")
    assert [row["difference"]["p_holm"] for row in rows] == pytest.approx([0.04, 0.04, 0.02])


def test_a_row_keeps_every_seeds_value():
    row = mean_rows(("lora", "own"), [Results({}, (fixed(value),)) for value in (1.0, 3.0)])[0]
    assert (row["values"], row["value"], row["model"]) == ([1.0, 3.0], 2.0, "lora")
    same = mean_rows(("lora", "own"), [Results({}, (fixed(2.0),))] * 2)[0]
    assert same["low"] == same["high"] == 2.0
    assert errors_of([fixed(1.0), fixed(1.0, 0.0, 2.0)]) == [pytest.approx(1 / 1.959964)]


def translations(seed: int, share: float) -> Results:
    """Results of one cell: 40 sentences each way, a share of them translated as the reference has it."""
    rng = np.random.default_rng(seed)
    texts = [f"number {n} of the sentences {n * n % 17} here" for n in range(40)]
    examples = {"group": [], "direction": [], "chrf": []}
    for direction in ("eng_Latn>swh_Latn", "swh_Latn>eng_Latn"):
        wrote = [text if rng.random() < share else text[::-1] for text in texts]
        table = chrf()._extract_corpus_statistics(wrote, [texts])
        examples["chrf"] += [" ".join(map(str, row)) for row in table]
        examples["group"] += [str(n) for n in range(40)]
        examples["direction"] += [direction] * 40
    own = intervals([directions_from(examples)], "eng_Latn")
    parts = {name.partition("@")[::2]: interval for name, interval in own.items()}
    rows = [Row.of(metric, interval, 80, of or ALL) for (metric, of), interval in parts.items()]
    return Results({"kind": "translation", "examples": examples}, tuple(rows))


def test_translations_are_compared_on_the_same_draws():
    old, new = ([translations(seed, share) for seed in (1, 2, 3)] for share in (0.3, 0.7))
    change = differences(old, new, "eng_Latn")
    assert change[key("chrf")]["value"] > 10
    assert change[key("chrf")]["p"] < 0.05
    same = differences(old, old, "eng_Latn")
    assert (same[key("chrf")]["value"], same[key("chrf")]["p"]) == (0, 1)
    # Seeds that agree are no proof: the sentences may be lucky ones.
    slight = differences([translations(1, 0.3)] * 2, [translations(9, 0.32)] * 2, "eng_Latn")[key("chrf")]
    assert slight["p"] > 0.05
    assert slight["low"] < slight["value"] < slight["high"]


def test_without_anything_known_over_examples_there_is_no_p():
    sides = [[fixed(value) for value in values] for values in ((0.1, 0.1), (0.2, 0.2))]
    change = difference(*sides)
    assert change["value"] == pytest.approx(0.1)
    assert "p" not in change
    rows = [compared("ece", "a", change)]
    adjust(rows, "difference")
    assert "p_holm" not in rows[0]["difference"]


@pytest.mark.parametrize("groups", [2, 9, 10])
def test_a_handful_of_groups_gives_no_p(groups):
    own = {"low": 0.19, "high": 0.21, "groups": groups}
    change = difference([fixed(0.1)], [replace(fixed(0.2), **own)], error=1e-3)
    assert ("p" in change) == (groups >= FEWEST)
    assert change["low"] < 0.1 < change["high"]


def test_a_metric_that_some_results_lack_is_not_compared():
    old, new = translations(1, 0.3), translations(1, 0.7)
    directions = new.languages("chrf")
    other = [Row("other", name, "", 3.0, 2.0, 4.0) for name in (ALL, *directions)]
    new = replace(new, rows=(*new.rows, *other))
    assert key("other") not in differences([old], [new], "eng_Latn")
    both = differences([new], [new], "eng_Latn")[key("other")]
    assert (both["value"], both["p"]) == (0, 1)
    seeds = [Results({}, (fixed(1.0), Row("y"))), Results({}, (fixed(1.0),))]
    rows = mean_rows(("a", "own"), seeds)
    assert [row["metric"] for row in rows] == ["x"]


def test_a_mean_without_example_errors_is_the_t_interval():
    values = [0.70, 0.74, 0.69]
    mean = mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert mean["value"] == pytest.approx(np.mean(values))
    assert (mean["low"], mean["high"]) == pytest.approx((low, high))
    assert mean["seeds"] == 3


def test_a_difference_without_example_errors_is_the_paired_t_test():
    before, after = [0.70, 0.74, 0.69], [0.75, 0.76, 0.75]
    change = mean_over_seeds(np.subtract(after, before))
    assert change["p"] == pytest.approx(stats.ttest_rel(after, before).pvalue)
    assert change["value"] == pytest.approx(np.mean(after) - np.mean(before))


def test_one_seed_has_the_interval_of_its_examples():
    mean = mean_over_seeds([0.6], [example_error(0.5, 0.7)])
    assert (mean["low"], mean["high"]) == pytest.approx((0.5, 0.7), abs=1e-4)


def test_seeds_that_agree_leave_the_examples():
    reach = 1.959964 * 0.02
    mean = mean_over_seeds([0.6, 0.6], [0.02, 0.02])
    assert (mean["low"], mean["high"]) == pytest.approx((0.6 - reach, 0.6 + reach), rel=1e-4)
    mean = mean_over_seeds([0.6, 0.6])
    assert mean["low"] == mean["high"]


def test_no_difference_is_not_significant_and_a_sure_one_is():
    assert mean_over_seeds([0.0, 0.0])["p"] == 1
    assert mean_over_seeds([0.1, 0.1])["p"] == 0
    assert mean_over_seeds([0.1])["p"] == 1  # nothing is known of chance


def test_the_interval_covers_the_truth():
    """Seeds and examples both vary; at least 95 % of the intervals hold the mean over all seeds and examples."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        examples = rng.normal(0, 1, 100)
        seeds = [0.3 + shift + examples.mean() for shift in rng.normal(0, 0.05, 3)]
        error = examples.std(ddof=1) / 10
        mean = mean_over_seeds(seeds, [error] * 3)
        held += mean["low"] <= 0.3 <= mean["high"]
    assert held >= 0.92 * 200


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []
