"""Tables as Markdown, HTML and plain text."""

import numpy as np
import pytest

from mlx_hybrid.evaluation.metrics.calibration import fit_temperature
from mlx_hybrid.report.page import page
from mlx_hybrid.report.result_tables import temperature
from mlx_hybrid.report.tables import Table, interval, markdown, number, plain, width

TABLE = Table("A | title", ("name", "value"), [("a|b", "1.0"), ("中文", "<2>")], "Read it so.")


def test_markdown_keeps_its_columns():
    lines = markdown(TABLE).splitlines()
    assert lines[0] == "### A | title"
    rows = [line for line in lines if line.startswith("|")]
    assert rows[1] == "|---|--:|"
    assert rows[2] == "| a\\|b | 1.0 |"


def test_html_escapes_and_names_rows():
    shown = page("Tables", [("", [TABLE])])
    assert "&lt;2&gt;" in shown
    assert "<th>中文</th>" in shown
    assert "<2>" not in shown


def test_plain_columns_are_even_in_wide_scripts():
    lines = plain(TABLE).splitlines()
    assert len({width(line) for line in lines[1:4]}) == 1
    assert width("中文") == 4
    assert width("é") == 1


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.12345, "0.123"), (-1.0, "-1.000"), (0.0, "0.000")]
)
def test_numbers(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("scores", "answers", "shown"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1], "none fits (0.0001)"),
        ([[2.0, 0.0], [0.0, 1.0]], [1, 0], "none fits (1e+04)"),
        ([[0.0, 0.0]], [0], "1"), ([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]], [0, 1, 1], "4.33"),
    ],
)  # fmt: skip
def test_a_temperature_where_the_fit_stopped_is_none(scores, answers, shown):
    assert temperature(fit_temperature(np.array(scores), answers)) == shown
    assert temperature(None) == "–"


def test_an_interval_has_its_bounds():
    assert interval({"value": 0.1, "low": -0.2, "high": 0.4}, 1, signed=True) == "+0.1 [-0.2, +0.4]"
    assert interval(None) == "–"
