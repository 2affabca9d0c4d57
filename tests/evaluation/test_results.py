"""One row a figure: written and read back."""

import json

import pytest

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import Results, Row, read_results, write_results
from mlx_hybrid.files import write_json


def row(metric: str, value: float, model: str, n: int, language: str = "all", variant: str = "") -> Row:
    return Row(metric, language, variant, value, value - 0.1, value + 0.1, n, 20, model)


def test_rows_are_written_one_a_line_and_read_back(tmp_path):
    rows = (row("accuracy", 0.5, "base", 9), Row("temperature", value=2.0, n=9, model="base"))
    results = Results({"task": "sib200", "languages": ["swh_Latn"], "notes": []}, rows)
    write_results(tmp_path / "new" / "a.json", results)
    assert read_results(tmp_path / "new" / "a.json") == results
    text = (tmp_path / "new" / "a.json").read_text()
    assert sum('"metric"' in line for line in text.splitlines()) == 2
    assert json.loads(text) == results.tree()


@pytest.mark.parametrize("tree", [{}, [], {"format": 2}, {"models": {}}, {"format": 1, "rows": []}])
def test_other_files_are_refused(tree, tmp_path):
    write_json(tmp_path / "other.json", tree)
    with pytest.raises(ConfigError, match=r"other.json: not a file of results"):
        read_results(tmp_path / "other.json")
