"""`report` on folders that are no run or no finished comparison, and on a comparison's summary."""

import json
from dataclasses import asdict

from mlx_hybrid.evaluation.results import Row
from mlx_hybrid.study.pages import csv_text

METRICS = ("trainable", "peak_memory_gb", "step_seconds", "tokens_per_second", "train_seconds")


def row(model: str, metric: str, language: str = "all") -> dict:
    own = asdict(Row(metric, language, "", 0.6, 0.5, 0.7, 9, 9, model))
    return own | ({"governance": "", "seeds": 0} if model == "base" else {"governance": "own", "seeds": 2})


LINES = [row("base", "accuracy"), row("lora", "accuracy"), row("lora", "accuracy", "eng_Latn")]
FACTS = {"format": 2, "task": "made-up", "version": 1, "kind": "classification", "records": 9, "limit": 0}
TERMS = {"noise": 0, "methods": ["lora"], "governance": ["own"], "reference": "lora", "seeds": [0, 1]}
TERMS |= {"languages": ["eng_Latn"], "pivot": "eng_Latn", "chosen": {"lora": 1e-3}}
EMPTY = {key: [] for key in ("variants", "grid", "notes")}
EMPTY |= {key: {} for key in ("governed", "mixing", "reliability")}
CURVES = {"curves": {"lora": [[[1, 2.0], [2, 1.0]]]}}
SUMMARY = FACTS | TERMS | EMPTY | CURVES | {"rows": LINES + [row("lora", metric) for metric in METRICS]}


def test_a_comparison_is_written_from_its_summary(run, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    assert "is not finished" in run("report", tmp_path).stderr
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | {"format": 1}))
    assert "is of an older format; the command that made" in run("report", tmp_path).stderr
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    result = run("report", tmp_path, code=0)
    page = (tmp_path / "report.html").read_text()
    assert "0.600 ± 0.100" in page
    assert "<script" not in page
    assert result.stdout.splitlines()[-1].startswith("Next: ")
    run("report", tmp_path, "-o", tmp_path / "x.html", code=2)


def test_csv_has_a_row_a_figure():
    lines = csv_text(SUMMARY).splitlines()
    assert len(lines) == 1 + len(SUMMARY["rows"])
    assert "lora,own,accuracy,eng_Latn,,9,2,0.6,0.5,0.7" in lines[3]


def test_what_is_neither_is_one_sentence(run, tmp_path):
    assert 'No run "nowhere"' in run("report", "nowhere", code=2).stderr
