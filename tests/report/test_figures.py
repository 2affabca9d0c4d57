"""Figures: the same input draws the same bytes, and nothing is left out."""

import pytest

from mlx_hybrid.evaluation.results import Results, Row
from mlx_hybrid.report import figures

MODULES = ["model.layers.0.q_proj", "model.layers.0.up_proj", "model.layers.1.q_proj"]


def point(value: float, model: str = "lora") -> Row:
    return Row("accuracy", "eng_Latn", "", value, value - 0.1, value + 0.1, model=model)


def test_a_layer_is_the_mean_of_its_projections():
    assert figures.by_layer([*MODULES, "head"], [0.1, 0.5, 0.9, 0.7]) == [(-1, 0.7), (0, 0.3), (1, 0.9)]


def test_error_bars_are_lengths():
    assert figures.reach(Row("accuracy", value=0.5, low=0.4, high=0.7)) == [
        [pytest.approx(0.1)],
        [pytest.approx(0.2)],
    ]
    assert figures.reach(Row("accuracy", value=0.5)) == [[0.0], [0.0]]


def test_the_same_figure_is_the_same_bytes():
    def draw() -> bytes:
        points = {"lora": (point(3), point(0.6))}
        return figures.image(figures.frontier(points, point(0.4), "s", "accuracy"))

    first = draw()
    assert first == draw()
    assert first.startswith(b"<?xml")
    assert b"<image" not in first


def test_every_figure_draws():
    made = [
        figures.by_language(Results({}, (point(0.5, "base"), point(0.6))), "accuracy", "accuracy"),
        figures.lines({"lora": [[(1, 2.0), (2, 1.0)], []]}, "step", "loss"),
        figures.reliability({"lora": [{"confidence": 0.7, "accuracy": 0.6, "count": 4}]}),
    ]
    for figure in made:
        assert figures.image(figure, "png").startswith(b"\x89PNG")
