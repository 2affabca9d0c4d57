"""Weights that are no numbers are named when a model is loaded."""

import mlx.core as mx
import pytest
from toys import write_model

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import load_base


@pytest.mark.parametrize(
    ("mode", "leaf", "value"),
    [
        ("", "model.norm.weight", float("nan")),
        ("affine-4", "model.layers.1.mlp.up_proj.scales", float("nan")),
        ("affine-4", "model.layers.0.self_attn.q_proj.biases", float("inf")),
    ],
)
def test_weights_that_are_no_numbers_are_named(tmp_path, mode, leaf, value):
    folder = write_model(tmp_path / "model", mode)
    load_base(str(folder))
    path = next(folder.glob("*.safetensors"))
    weights = mx.load(str(path))
    flat = weights[leaf].reshape(-1)
    flat[3] = value
    mx.save_safetensors(str(path), weights | {leaf: flat.reshape(weights[leaf].shape)}, {"format": "mlx"})
    with pytest.raises(ConfigError, match=f"{leaf} hold NaN or inf"):
        load_base(str(folder))
