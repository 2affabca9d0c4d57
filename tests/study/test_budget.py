"""Methods made equal in parameters or in time."""

import json

import pytest
from toys import tiny_llama

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.config import Config, build_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run
from mlx_hybrid.study.budget import (
    FAR_OFF,
    count_parameters,
    matched_sizes,
    matched_steps,
    resized,
)

METHODS = ("lora", "lora-ga", "hra", "hybrid", "hybrid-unitary")


def config(method: str) -> Config:
    return build_config({"method": method}, "test")


@pytest.mark.parametrize("method", METHODS)
def test_the_count_is_that_of_the_attached_model(method):
    own = config(method)
    counted = count_parameters(tiny_llama(), own)
    assert counted == attach(tiny_llama(), own.adapter).trainable


def test_sizes_come_as_near_as_they_can():
    model = tiny_llama()
    configs = {method: config(method) for method in METHODS}
    sizes = matched_sizes(model, configs)
    wanted = count_parameters(model, configs["lora"])
    assert sizes["lora"] == {}
    for method in METHODS[1:]:
        count = count_parameters(model, resized(configs[method], sizes[method]))
        assert abs(count - wanted) <= FAR_OFF * wanted


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(ConfigError, match="full trains every weight"):
        matched_sizes(tiny_llama(), {"lora": config("lora"), "full": config("full")})
    small = resized(config("lora"), {"low_rank.rank": 1})
    with pytest.raises(ConfigError, match="no size of hybrid comes within 10%"):
        matched_sizes(tiny_llama(), {"lora": small, "hybrid": config("hybrid")})


def test_steps_take_as_long_as_the_first_methods(tmp_path):
    runs = {}
    for name, seconds in (("lora", 10.0), ("boft", 40.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 20, "seconds": seconds}) + "\n")
        runs[name] = Run(tmp_path / name)
    assert matched_steps(runs) == {"lora": 20, "boft": 5}
