"""Tables as HTML and plain text."""

import numpy as np
import pytest

from mlx_hybrid.evaluation.metrics.calibration import fit_temperature
from mlx_hybrid.evaluation.results import Results, Row
from mlx_hybrid.report.result_tables import result_tables, with_worst
from mlx_hybrid.report.tables import Table, interval, page, plain

TABLE = Table("A | title", ("name", "value"), [("a|b", "1.0"), ("中文", "<2>")], "Read it so.")


def test_html_escapes_and_names_rows():
    shown = page("Tables", [("", [TABLE])])
    assert "&lt;2&gt;" in shown
    assert "<th>中文</th>" in shown
    assert "<2>" not in shown


def test_plain_columns_are_even_in_wide_scripts():
    lines = plain(TABLE).splitlines()
    assert lines[1:4] == ["name  value", "a|b     1.0", "中文    <2>"]
    accents = Table("", ("", ""), [("e\u0301", "1"), ("e", "1")])  # the accent a character of its own
    assert plain(accents).splitlines()[2:] == ["e\u0301  1", "e  1"]


@pytest.mark.parametrize(
    ("scores", "answers", "shown"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1], "none fits (0.0001)"),
        ([[2.0, 0.0], [0.0, 1.0]], [1, 0], "none fits (1e+04)"),
        ([[0.0, 0.0]], [0], "1"),
        ([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]], [0, 1, 1], "4.33"),
    ],
)
def test_a_temperature_where_the_fit_stopped_is_none(scores, answers, shown):
    fitted = Row("temperature", value=fit_temperature(np.array(scores), answers))
    assert with_worst(Results({}, ()), fitted) == shown


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (None, "–"),
        (Row("accuracy", value=0.12345), "0.123"),
        (Row("nll", value=-1.0), "-1.000"),
        (Row("accuracy", "all", "", 0.1, -0.2, 0.4, model="difference"), "+0.100 [-0.200, +0.400]"),
        (Row("chrf", "all", "", 31.25, 30.0, 32.0), "31.2 [30.0, 32.0]"),
        (Row("drop", "all", "lower", 0.1, -0.2, 0.4), "+0.100 [-0.200, +0.400]"),
    ],
    ids=["none", "no interval", "negative", "difference", "of a hundred", "drop"],
)
def test_a_figure_has_its_bounds(row, shown):
    assert interval(row) == shown


def row(metric: str, model: str, value: float, language: str = "all", variant: str = "", n: int = 9) -> Row:
    return Row(metric, language, variant, value, value - 0.1, value + 0.1, n, model=model)


FACTS = {
    "task": "sib200",
    "version": 1,
    "kind": "classification",
    "records": 9,
    "limit": 4,
    "notes": ["A note."],
}
ROWS = [
    row("accuracy", model, value) for model, value in (("base", 0.4), ("adapted", 0.6), ("difference", 0.2))
]
ROWS += [row("nll", model, 1.5) for model in ("base", "adapted")]
ROWS += [row("accuracy", "base", value, name) for name, value in (("swh_Latn", 0.3), ("eng_Latn", 0.5))]
ROWS += [row("accuracy_worst", "base", 0.3), row("drop", "base", 0.1, variant="lower", n=7)]
ROWS += [Row("temperature", value=2.0, model="adapted")]


def test_results_are_tables_of_measures_languages_and_variants_against_models():
    quality, languages, parity, variants = result_tables(Results(FACTS, tuple(ROWS)))
    assert quality.title == "Quality and calibration: sib200 v1, 9 records, at most 4 a language"
    assert quality.columns == ("", "base", "adapted", "difference")
    assert quality.rows[0][3] == "+0.200 [+0.100, +0.300]"
    assert ("temperature, fitted on dev", "–", "2", "–") in quality.rows
    for words in ("over resampled groups", "A note."):
        assert words in quality.note
    assert [own[0] for own in languages.rows] == ["swh_Latn", "eng_Latn"]
    assert parity.rows == [("worst language", "0.300 [0.200, 0.400] swh_Latn", "–", "–")]
    assert variants.rows == [("lower, 7 records", "+0.100 [+0.000, +0.200]", "–", "–")]


def test_tasks_of_the_harness_are_lines():
    own = (row("arc acc", "base", 0.5), row("arc acc", "adapted", 0.6))
    (table,) = result_tables(Results({"harness": "lm-eval"}, own))
    assert table.columns == ("task and metric", "base", "adapted")
    assert table.rows == [("arc acc", "0.500 [0.400, 0.600]", "0.600 [0.500, 0.700]")]
