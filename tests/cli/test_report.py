"""`report` on folders that are no run or no finished comparison, and on a comparison's summary."""

import json

from mlx_hybrid.study.pages import csv_text

ROW = {"governance": "own", "seeds": 2, "low": 0.5, "high": 0.7, "value": 0.6}
SUMMARY = {
    "format": 1, "task": "made-up", "version": 1, "kind": "classification", "records": 9, "languages": ["eng_Latn"],
    "pivot": "eng_Latn", "limit": 0, "methods": ["lora"], "governance": ["own"], "reference": "lora", "seeds": [0, 1],
    "budget": "steps", "noise": 0, "variants": [], "grid": [], "chosen": {"lora": 1e-3}, "sizes": {}, "governed": {},
    "mixing": {}, "curves": {"lora": {"valid_loss": [[[1, 2.0], [2, 1.0]]]}}, "reliability": {},
    "rows": [
        {**ROW, "method": "base", "governance": "", "metric": "accuracy", "seeds": 0},
        *({**ROW, "method": "lora", "metric": metric} for metric in (
            "accuracy", "accuracy@eng_Latn", "trainable", "peak_memory_gb", "step_seconds", "tokens_per_second",
            "train_seconds",
        )),
    ],
}  # fmt: skip


def test_a_comparison_is_written_from_its_summary(run, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    assert "is not finished" in run("report", tmp_path).stderr
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    result = run("report", tmp_path)
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "report.html").read_text()
    assert "0.600 ± 0.100" in page
    assert "<script" not in page
    assert result.stdout.splitlines()[-1].startswith("Next: ")
    assert run("report", tmp_path, "-o", tmp_path / "x.html").exit_code == 2


def test_csv_has_a_row_a_figure():
    lines = csv_text(SUMMARY).splitlines()
    assert len(lines) == 1 + len(SUMMARY["rows"])
    assert "lora,own,accuracy,eng_Latn,2,0.6,0.5,0.7" in lines[3]


def test_what_is_neither_is_one_sentence(run, tmp_path):
    result = run("report", "nowhere")
    assert result.exit_code == 2
    assert 'No run "nowhere"' in result.stderr
