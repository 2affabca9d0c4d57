"""Base against adapter on held-out records: intervals resample what was held back together."""

from pathlib import Path

import numpy as np
import pytest

from mlx_hybrid.evaluation.held_out import NO_QUESTIONS, Questions, Scores, compare, example_groups
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.template import make_examples

SENTENCES, LANGUAGES = 25, 4


def scores(seed: int) -> tuple[Scores, Scores]:
    """Base and adapter, whose gain is that of the sentence with little of the language in it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 30, SENTENCES * LANGUAGES)
    gain = np.repeat(rng.normal(0.1, 0.5, SENTENCES), LANGUAGES) + rng.normal(0, 0.05, len(tokens))
    nats = 3.0 * tokens
    right = rng.random((2, SENTENCES)) < 0.5
    base, adapted = np.repeat(right, LANGUAGES, 1).astype(float)
    return Scores(nats, tokens, base), Scores(nats - gain * tokens, tokens, adapted)


def bounds(change: np.ndarray, sizes: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """Percentiles of Σ change / Σ sizes, whole groups drawn one by one."""
    rng, drawn = np.random.default_rng(9), []
    for _ in range(4_000):
        rows = np.concatenate([members[n] for n in rng.integers(len(members), size=len(members))])
        drawn.append(change[rows].sum() / sizes[rows].sum())
    return np.quantile(drawn, [0.025, 0.975])


def test_the_loss_resamples_groups():
    base, adapted = scores(0)
    groups = [f"group={n // LANGUAGES}" for n in range(len(base.nats))]
    found = compare(base, adapted, groups, NO_QUESTIONS, 0)["loss_nats_per_token"]["difference"]
    change, rows = adapted.nats - base.nats, np.arange(len(groups))
    low, high = bounds(change, base.tokens, list(rows.reshape(SENTENCES, LANGUAGES)))
    assert found["count"] == SENTENCES
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.05 * (high - low))  # Monte Carlo
    low, high = bounds(change, base.tokens, list(rows[:, None]))
    assert found["high"] - found["low"] > 1.5 * (high - low)


def test_accuracy_of_a_language_resamples_groups():
    base, adapted = scores(1)
    count = len(base.nats)
    groups = [f"group={n // LANGUAGES}" for n in range(count)]
    questions = Questions([None] * count, [0] * count, ["eng_Latn", "deu_Latn"] * (count // 2), groups)
    found = compare(base, adapted, groups, questions, 0)["accuracy_by_language"]["deu_Latn"]
    assert found["questions"] == count // 2
    assert found["gain"]["count"] == SENTENCES
    own = np.arange(1, count, 2)
    change = adapted.correct - base.correct
    low, high = bounds(change, np.ones(count), list(own.reshape(SENTENCES, -1)))
    assert (found["gain"]["low"], found["gain"]["high"]) == pytest.approx(
        (low, high), abs=0.05 * (high - low)
    )


def test_a_record_over_the_limit_leaves_its_group_to_the_others(tokenizer):
    rows = [
        {"prompt": "a" * length, "completion": "b", "premise": n // 2}
        for n, length in enumerate((3, 90, 4, 5))
    ]
    test = [Record(row, str(Path("held.jsonl")), n) for n, row in enumerate(rows, 1)]
    examples, dropped = make_examples(test, tokenizer, max_tokens=40, too_long="drop")
    assert dropped == 1
    assert example_groups(examples, test, "premise") == ["premise=0", "premise=1", "premise=1"]
    assert len(set(example_groups(examples, test, "group"))) == 3
