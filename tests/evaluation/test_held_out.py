"""Base against adapter on held-out records: intervals resample what was held back together."""

import numpy as np
import pytest

from mlx_hybrid.evaluation.answers import answer
from mlx_hybrid.evaluation.evaluate import evaluate, held_out_sets
from mlx_hybrid.evaluation.figures import loss_rows
from mlx_hybrid.evaluation.results import Results
from mlx_hybrid.evaluation.sets import EvaluationSet, from_fields
from mlx_hybrid.records.examples import make_examples
from mlx_hybrid.records.record import Record

SENTENCES, LANGUAGES = 25, 4
COUNT = SENTENCES * LANGUAGES
CHOICE = {"prompt": "q", "completion": "a", "label": "a", "options": {"a": "a", "b": "b"}}
ROWS = [CHOICE | {"group": n // LANGUAGES, "language": ("eng_Latn", "deu_Latn")[n % 2]} for n in range(COUNT)]


def scores(seed: int) -> tuple[np.ndarray, dict[str, dict]]:
    """Tokens, and likelihoods of base and adapter, whose gain is that of the sentence with little of the language."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 30, COUNT)
    gain = np.repeat(rng.normal(0.1, 0.5, SENTENCES), LANGUAGES) + rng.normal(0, 0.05, COUNT)
    nats = {"base": 3.0 * tokens, "adapted": 3.0 * tokens - gain * tokens}
    rows = {
        name: {"test": [{"nats": float(v), "tokens": int(t)} for v, t in zip(own, tokens, strict=True)]}
        for name, own in nats.items()
    }
    return tokens, rows


def bounds(change: np.ndarray, sizes: np.ndarray, members: list[np.ndarray]) -> np.ndarray:
    """Percentiles of Σ change / Σ sizes, whole groups drawn one by one."""
    rng, drawn = np.random.default_rng(9), []
    for _ in range(4_000):
        rows = np.concatenate([members[n] for n in rng.integers(len(members), size=len(members))])
        drawn.append(change[rows].sum() / sizes[rows].sum())
    return np.quantile(drawn, [0.025, 0.975])


def test_the_loss_resamples_groups():
    tokens, answers = scores(0)
    test = EvaluationSet("conversation", "t", 1, from_fields(ROWS, "t"), [], [])
    results = Results({}, tuple(loss_rows({"test": test}, answers, seed=0)[1]))
    found = results.get("loss", "difference")
    nats = {name: np.array([row["nats"] for row in own["test"]]) for name, own in answers.items()}
    assert results.get("loss", "base").value == pytest.approx(nats["base"].sum() / tokens.sum())
    change, rows = nats["adapted"] - nats["base"], np.arange(COUNT)
    low, high = bounds(change, tokens, list(rows.reshape(SENTENCES, LANGUAGES)))
    assert (found.n, found.groups) == (COUNT, SENTENCES)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))  # Monte Carlo
    low, high = bounds(change, tokens, list(rows[:, None]))
    assert found.high - found.low > 1.5 * (high - low)


def held_out(rows: list[dict]) -> list[Record]:
    return [Record(row, "held.jsonl", number) for number, row in enumerate(rows, 1)]


def test_a_record_over_the_limit_leaves_its_group_to_the_others(tokenizer):
    test = held_out(
        [
            {"prompt": "a" * length, "completion": "b", "premise": n // 2}
            for n, length in enumerate((3, 90, 4, 5))
        ]
    )
    made = make_examples(test, tokenizer, max_tokens=40, too_long="drop")
    examples, dropped = made.examples, len(made.long)
    assert dropped == 1
    measured = {example.where for example in examples}
    whole, beside, why = held_out_sets(test, [], group="premise", max_tokens=40, measured=measured)
    assert (beside, why) == (None, "")
    assert whole.groups == ["premise=0", "premise=1", "premise=1"]
    whole, _, _ = held_out_sets(test, [], group="group", max_tokens=40, measured=measured)
    assert len(set(whole.groups)) == 3


def test_the_loss_is_that_of_the_tokens_that_training_counts(model, tokenizer):
    rows = [{"prompt": "a" * 9, "completion": "bc" * n, "language": "en"} for n in (2, 30)]
    test = held_out(rows)
    whole, _, _ = held_out_sets(test, [], group="group", max_tokens=40, measured={r.where for r in test})
    examples = make_examples(test, tokenizer, max_tokens=40, too_long="truncate").examples
    told = answer(model, tokenizer, whole, generate=None)
    assert [row["tokens"] for row in told] == [example.trained_count for example in examples]
    results = evaluate({"base": model}, tokenizer, whole)
    total = sum(row["nats"] for row in told) / sum(row["tokens"] for row in told)
    assert results.get("loss", "base").value == pytest.approx(total)


def test_labels_without_fixed_answers_leave_the_loss():
    rows = [{"prompt": f"q{n}", "completion": f"free {n}", "label": "x"} for n in range(3)]
    test = held_out(rows)
    whole, beside, why = held_out_sets(
        test, [], group="group", max_tokens=9, measured={r.where for r in test}
    )
    assert (whole.kind, len(whole.records), beside) == ("conversation", 3, None)
    assert why.startswith("Accuracy is not measured: ")
