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


def interval(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 20}


def test_a_run_s_scores_of_format_1_become_rows(tmp_path):
    sides = {"base": interval(0.3), "adapted": interval(0.6), "gain": interval(0.3)}
    write_json(tmp_path / "held-out.json", {
        "format": 1,
        "seed": 3,
        "records": 40,
        "questions": 30,
        "loss_nats_per_token": {"base": 2.5, "adapted": 1.25, "difference": interval(-1.25)},
        "accuracy": sides,
        "accuracy_by_language": {"swh_Latn": sides | {"questions": 25, "gain": interval(0.4)}},
    })  # fmt: skip
    results = read_results(tmp_path / "held-out.json")
    assert (results.facts["task"], results.facts["seed"]) == ("held-out records", 3)
    assert results.models == ["base", "adapted"]
    for own in (
        Row("loss", value=1.25, n=40, model="adapted"),
        row("loss", -1.25, "difference", 40),
        row("accuracy", 0.3, "base", 30),
        row("accuracy", 0.4, "difference", 25, "swh_Latn"),
    ):
        assert results.get(own.metric, own.model, own.language) == own


@pytest.mark.parametrize("tree", [{}, [], {"format": 2}, {"models": {}}, {"format": 1, "rows": []}])
def test_other_files_are_refused(tree, tmp_path):
    write_json(tmp_path / "other.json", tree)
    with pytest.raises(ConfigError, match=r"other.json: not a file of results"):
        read_results(tmp_path / "other.json")
