"""Settings that do nothing under a method: refused where asked for, and never in the way of a file that has to load."""

import dataclasses

import pytest
from mlx.utils import tree_flatten
from toys import tiny_llama

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.config import PRESETS, dump_config, load_config, load_run_config
from mlx_hybrid.config.idle import idle_settings
from mlx_hybrid.config.recipes import recipe_path, recipes
from mlx_hybrid.errors import ConfigError

REFUSED = [
    ("full", "adapter.layers=2", "train.learning_rate acts"),
    ("full", "adapter.targets=[q_proj]", "every weight is trained"),
    ("full", "adapter.dropout=0.1", "every weight is trained"),
    ("full", "adapter.alpha=8", "every weight is trained"),
    ("full", "adapter={alpha: 8}", "every weight is trained"),
    ("full", "train.orthogonal_learning_rate=1e-3", "train.learning_rate acts"),
    ("hra", "train.learning_rate=1e-3", "train.orthogonal_learning_rate acts"),
    ("hra", "train.learning_rate=5e-4", "train.orthogonal_learning_rate acts"),
    ("boft", "train.weight_decay=0.1", "adapter.rank"),
    ("boft", "adapter.dropout=0.1", "adapter.rank"),
    ("hra", "adapter.alpha=8", "adapter.rank"),
    ("hra", "adapter.start_records=8", "adapter.start is zeros"),
    ("lora", "adapter.start_passes=2", "adapter.start is zeros"),
    ("lora", "train.orthogonal_learning_rate=1e-3", "train.learning_rate acts"),
    ("lora", "adapter.reflections=4", "adapter.rank acts"),
    ("dora", "adapter.block_size=4", "adapter.rank acts"),
    ("lora", "adapter.mixing=gradient", "two branches"),
    ("hybrid-boft", "adapter.reflections=32", "adapter.block_size and adapter.factors act"),
    ("hybrid", "adapter.factors=3", "adapter.reflections acts"),
]


@pytest.mark.parametrize(("method", "override", "acts"), REFUSED)
def test_an_override_that_would_do_nothing_is_refused_with_what_acts(method, override, acts):
    with pytest.raises(ConfigError, match="would do nothing") as error:
        load_run_config(None, (override,), {"method": method})
    assert error.value.exit_code == 2
    assert acts in str(error.value)
    assert str(error.value).startswith("--set ")


@pytest.mark.parametrize(("method", "override", "acts"), [r for r in REFUSED if "5e-4" not in r[1]])
def test_so_is_a_value_of_a_file_that_is_not_the_usual_one(method, override, acts, tmp_path):
    path = tmp_path / "mine.yaml"
    given, _, value = override.partition("=")
    group, _, key = given.partition(".")
    path.write_text(
        f"method: {method}\n{group}: {{{key}: {value}}}\n" if key else f"method: {method}\n{group}: {value}\n"
    )
    with pytest.raises(ConfigError, match=f"{path}: .* would do nothing") as error:
        load_run_config(path)
    assert acts in str(error.value)


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("name", [name for name in recipes() if not name.startswith("tasks")])
def test_every_recipe_serves_every_method(name, method):
    """What the method has no use for goes back to its default, so that the run's config.yaml loads as any file."""
    config = load_run_config(recipe_path(name), (), {"method": method})
    usual = load_config(None, (), {"method": method})
    for key in idle_settings(config):
        group, _, last = key.partition(".")
        assert getattr(getattr(config, group), last) == getattr(getattr(usual, group), last)
    assert config.train.batch_size == load_config(recipe_path(name)).train.batch_size


@pytest.mark.parametrize("method", PRESETS)
def test_a_saved_config_loads_as_it_was(method, tmp_path):
    config = load_run_config(recipe_path("quickstart"), (), {"method": method})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_run_config(path) == config


def test_the_config_of_a_run_is_taken_as_it_is(tmp_path):
    """As a comparison leaves it, which moves both rates for every method."""
    config = load_config(None, ("train.orthogonal_learning_rate=2e-3",), {"method": "lora"})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    with pytest.raises(ConfigError, match=r"train\.orthogonal_learning_rate would do nothing"):
        load_run_config(path)
    (tmp_path / "run.json").write_text("{}")
    assert load_run_config(path) == load_config(path) == config


def test_values_that_ask_for_nothing_and_options_that_make_a_setting_act_are_taken(tmp_path):
    assert load_run_config(None, ("adapter.mixing=off", "adapter.start=zeros"), {"method": "lora"})
    assert load_run_config(None, ("train.weight_decay=0",), {"method": "hra"})
    path = tmp_path / "mine.yaml"
    path.write_text("method: lora\ntrain: {orthogonal_learning_rate: 1e-3}\n")
    assert load_run_config(path, (), {"method": "hybrid"}).train.orthogonal_learning_rate == 1e-3


LEAVES = {
    "hra": {"house_u"},
    "boft": {"oft_q"},
    "lora": {"lora_a", "lora_b"},
    "hybrid": {"house_u", "lora_a", "lora_b"},
}


@pytest.mark.parametrize("method", LEAVES)
def test_settings_said_to_act_change_what_is_trained_and_idle_ones_do_not(method):
    """Against the adapter itself: its leaves and their shapes, under another value of each size."""
    usual = load_config(None, (), {"method": method})

    def attached(**changes) -> dict[str, list[int]]:
        model = tiny_llama()
        attach(model, dataclasses.replace(usual.adapter, **changes), method=method)
        return {name: leaf.shape for name, leaf in tree_flatten(model.trainable_parameters())}

    plain = attached()
    assert {name.rsplit(".", 1)[-1] for name in plain} == LEAVES[method]
    idle = idle_settings(usual)
    for key, value in (("reflections", 4), ("block_size", 4), ("factors", 2)):
        changed = attached(**{key: value}) != plain
        assert changed == (f"adapter.{key}" not in idle), key
    rates = {"train.learning_rate": "lora_a", "train.orthogonal_learning_rate": ("house_u", "oft_q")}
    for key, leaves in rates.items():
        assert (key in idle) == (not any(name.endswith(leaves) for name in plain)), key
