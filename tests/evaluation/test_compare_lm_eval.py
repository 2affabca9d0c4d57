"""The bridge to lm-evaluation-harness: its arithmetic always, the harness itself where it is installed."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.evaluation.lm_eval_bridge import continuations, evaluate_tasks, score_table, short_results

REQUESTS = [([5, 9, 3], [7]), ([5], [9, 3, 7, 2]), ([1, 2, 3, 4, 5, 6], [8, 8]), ([2, 2], [2, 2, 2])]
TASK = """
task: made_up_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: ["north", "south"]
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3}}
"""


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


def test_results_become_rows():
    whole = {"results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1}}, "versions": {"t": 3}}
    columns, rows = score_table({"base": short_results(whole), "adapted": short_results(whole)})
    assert columns == ("task and metric", "base", "adapted")
    assert rows == [("t acc", "0.500 ± 0.100", "0.500 ± 0.100")]


@pytest.mark.filterwarnings("ignore")
def test_a_local_task_runs_in_the_harness(model, tokenizer, tmp_path):
    pytest.importorskip("lm_eval")
    rows = [{"question": f"Way {n}: ", "answer": ("north", "south")[n % 2]} for n in range(6)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "made_up_choice.yaml").write_text(TASK.format(path=path))
    whole = evaluate_tasks(model, tokenizer, ["made_up_choice"], folder=tmp_path)
    got = short_results(whole)["made_up_choice"]
    right = 0
    for row in rows:
        prompt = tokenizer.encode(row["question"].rstrip(), add_special_tokens=False)
        scores = [
            alone(model, prompt, tokenizer.encode(" " + option, add_special_tokens=False))[0]
            for option in ("north", "south")
        ]
        right += ("north", "south")[int(np.argmax(scores))] == row["answer"]
    assert got["acc,none"] == pytest.approx(right / len(rows))
    assert got["version"] == 3
    with pytest.raises(ConfigError, match="no task made_up_choise"):
        evaluate_tasks(model, tokenizer, ["made_up_choise"], folder=tmp_path)
