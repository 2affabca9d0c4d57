"""A run's page: complete without anything beside it, and silent about this machine's folders."""

import json
import re
from pathlib import Path

import pytest

from mlx_hybrid.config import load_config
from mlx_hybrid.evaluation.results import Results, Row, write_results
from mlx_hybrid.report.run_page import run_page
from mlx_hybrid.run import Run, create_run


@pytest.fixture
def run(tmp_path) -> Run:
    """What a finished lora run leaves, without its weights."""
    config = load_config(
        None, (), {"method": "lora", "data.paths": [str(tmp_path / "secret" / "mine.jsonl")]}
    )
    run = create_run(config, tmp_path / "run <1>")
    run.update(status="finished", step=4, best_step=4, seed=0, records={"train": 9}, base={"id": "tiny"})
    keys = ("step", "loss_nats_per_token", "seconds", "peak_memory_gb", "tokens_per_second")
    rows = [dict(zip(keys, values)) for values in ((2, 2.0, 1.0, 0.1, 50.0), (4, 1.0, 2.0, 0.2, 60.0))]
    rows.insert(1, {"step": 4, "valid_loss_nats_per_token": 1.5, "best": True})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.path / "evaluation").mkdir()
    rows = [Row("accuracy", value=0.5, low=0.4, high=0.6, model=model) for model in ("base", "adapted")]
    rows.append(Row("accuracy", value=0.1, low=-0.05, high=0.2, model="difference"))
    facts = {"task": "held-out records", "version": 1, "records": 9}
    write_results(run.path / "evaluation" / "held-out.json", Results(facts, tuple(rows)))
    (run.path / "evaluation" / "other.json").write_text("{}")
    return run


def test_the_page_needs_nothing_else_names_no_folder_and_holds_the_results(run, tmp_path):
    page = run_page(run)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert str(tmp_path) not in page
    assert page.count("<img") == 1
    shown = ("mine.jsonl", "run &lt;1&gt;", "+0.100 [-0.050, +0.200]", "0.20 GB")
    for words in (*shown, "other.json: another kind of results."):
        assert words in page


def test_the_page_counts_what_governance_set_aside(run):
    assert "Set aside" not in run_page(run)
    run.update(governance={"kept": 1200, "rejected": 3, "reasons": {"menu": 2, "bad_json": 1}})
    page = run_page(run)
    assert "1,200 kept, 3 set aside; data/report.html has their texts." in page
    assert "<tr><th>menu</th><td>2</td><td>the navigation of a page</td></tr>" in page
    assert "<tr><th>bad_json</th><td>1</td>" in page


def test_a_run_that_measured_nothing_has_a_page(run):
    for path in Path(run.path / "evaluation").iterdir():
        path.unlink()
    assert "Nothing was measured yet" in run_page(run)
