"""Figures: the same input draws the same bytes, and nothing is left out."""

import numpy as np
import pytest

from mlx_hybrid.report import figures

MODULES = ["model.layers.0.q_proj", "model.layers.0.up_proj", "model.layers.1.q_proj"]


def point(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def test_a_grid_of_layers_leaves_holes_where_a_layer_lacks_a_projection():
    kinds, layers, grid = figures.layer_grid(MODULES, [0.1, 0.5, 0.9])
    assert (kinds, layers) == (["q_proj", "up_proj"], [0, 1])
    np.testing.assert_equal(grid, [[0.1, 0.9], [0.5, np.nan]])
    assert len(figures.numbered(grid)) == 3


def test_error_bars_are_lengths():
    assert figures.reach({"value": 0.5, "low": 0.4, "high": 0.7}) == [
        [pytest.approx(0.1)],
        [pytest.approx(0.2)],
    ]


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
        figures.by_language({"base": {"eng_Latn": point(0.5)}, "lora": {"eng_Latn": point(0.6)}}, "accuracy"),
        figures.lines({"lora": [[(1, 2.0), (2, 1.0)], []]}, "step", "loss"),
        figures.reliability({"lora": [{"confidence": 0.7, "accuracy": 0.6, "count": 4}]}),
        figures.mixing_by_layer({"hybrid": {"modules": MODULES, "value": [0.1, 0.5, 0.9]}}),
        figures.mixing_by_step(MODULES, [10, 20], [[0.1, 0.2], [0.5, 0.5], [0.9, 0.8]]),
    ]
    for figure in made:
        assert figures.image(figure, "png").startswith(b"\x89PNG")
