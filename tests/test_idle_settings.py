"""Settings that do nothing under a method: refused where asked for, and never in the way of a file that has to load."""

from operator import attrgetter

import pytest
import yaml
from mlx.utils import tree_flatten
from toys import tiny_llama

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.config import PRESETS, dump_config, load_config, override_tree
from mlx_hybrid.config.idle import idle_settings, load_run_config
from mlx_hybrid.config.recipes import recipe_path, recipes
from mlx_hybrid.errors import ConfigError

REFUSED = [
    ("full", "adapter.layers=2", "train.learning_rate acts"),
    ("full", "adapter.targets=[q_proj]", "every weight is trained"),
    ("full", "adapter.low_rank.dropout=0.1", "every weight is trained"),
    ("full", "adapter.low_rank.alpha=8", "every weight is trained"),
    ("full", "adapter={low_rank: {alpha: 8}}", "every weight is trained"),
    ("full", "train.orthogonal_learning_rate=1e-3", "train.learning_rate acts"),
    ("full", "train.prompt_hold=base", "no base to go back to, and loss acts"),
    ("boft", "train.weight_decay=0.1", "adapter.low_rank.rank"),
    ("boft", "adapter.low_rank.dropout=0.1", "adapter.low_rank.rank adds one"),
    ("hra", "adapter.low_rank.alpha=8", "adapter.low_rank.rank adds one"),
    ("lora", "train.orthogonal_learning_rate=1e-3", "train.learning_rate acts"),
    ("lora", "adapter.rotation.reflections=4", "adapter.rotation.kind adds one"),
    ("dora", "adapter.rotation.block_size=4", "adapter.rotation.kind adds one"),
    ("lora", "adapter.mixing=gradient", "two branches"),
    ("hybrid-boft", "adapter.rotation.reflections=32", "this is butterfly"),
    ("hybrid", "adapter.rotation.factors=3", "this is householder"),
]


@pytest.mark.parametrize(("method", "override", "acts"), REFUSED)
def test_what_would_do_nothing_is_refused_in_options_and_files_with_what_acts(
    method, override, acts, tmp_path
):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"method": method, **override_tree((override,))}))
    for where, given in (("--set ", (None, (override,), {"method": method})), (f"{path}: ", (path,))):
        with pytest.raises(ConfigError, match="would do nothing") as error:
            load_run_config(*given)
        assert error.value.exit_code == 2
        assert str(error.value).startswith(where)
        assert acts in str(error.value)


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("name", [name for name in recipes() if not name.startswith("tasks")])
def test_every_recipe_serves_every_method(name, method):
    """What the method has no use for goes back to its default, so that the run's config.yaml loads as any file."""
    config = load_run_config(recipe_path(name), (), {"method": method})
    usual = load_config(None, (), {"method": method})
    for key in idle_settings(config):
        assert attrgetter(key)(config) == attrgetter(key)(usual)
    assert config.train.batch_size == load_config(recipe_path(name)).train.batch_size


@pytest.mark.parametrize("method", PRESETS)
def test_a_saved_config_loads_as_it_was(method, tmp_path):
    config = load_run_config(recipe_path("quickstart"), (), {"method": method})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_run_config(path) == config


def test_a_file_that_is_whole_with_the_method_asked_for_beside_it_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("adapter: {unitary: [o_proj]}\n")
    assert load_run_config(path, (), {"method": "hybrid"}).adapter.unitary == ("o_proj",)


@pytest.mark.parametrize(
    "given", [{"method": "lora"}, {"method": "full"}, {"method": "lora", "start_from": "a"}]
)
def test_the_config_of_a_run_is_taken_as_it_is(given, tmp_path):
    """As a comparison leaves it, which moves both rates for every method."""
    config = load_config(None, ("train.orthogonal_learning_rate=2e-3",), given)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    with pytest.raises(ConfigError, match=r"train\.orthogonal_learning_rate would do nothing"):
        load_run_config(path)
    (tmp_path / "run.json").write_text("{}")
    assert load_run_config(path) == load_config(path) == config


def test_values_that_ask_for_nothing_and_options_that_make_a_setting_act_are_taken(tmp_path):
    assert load_run_config(None, ("adapter.mixing=off", "adapter.low_rank.start=zeros"), {"method": "lora"})
    assert load_run_config(None, ("train.weight_decay=0",), {"method": "hra"})
    path = tmp_path / "mine.yaml"
    path.write_text("method: lora\ntrain: {orthogonal_learning_rate: 1e-3}\n")
    assert load_run_config(path, (), {"method": "hybrid"}).train.orthogonal_learning_rate == 1e-3


def test_where_there_is_no_base_a_file_that_holds_to_one_holds_by_the_loss(tmp_path):
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(load_config(None)))
    for values in ({"method": "full"}, {"start_from": "last"}):
        train = load_run_config(saved, (), values).train
        assert (train.prompt_hold, train.prompt_weight) == ("loss", 0.2)
        assert load_run_config(saved, ("train.prompt_weight=0.5",), values).train.prompt_weight == 0.5
    (tmp_path / "run.json").write_text("{}")
    assert load_run_config(saved, (), {"method": "full"}).train.prompt_hold == "loss"
    assert load_run_config(saved) == load_config(None)
    saved.write_text("train: {prompt_hold: loss, prompt_weight: 0.1}\n")
    train = load_run_config(saved).train
    assert (train.prompt_hold, train.prompt_weight) == ("loss", 0.1)


LEAVES = {
    "hra": {"house_u"},
    "boft": {"oft_q"},
    "lora": {"lora_a", "lora_b"},
    "hybrid": {"house_u", "lora_a", "lora_b"},
}


@pytest.mark.parametrize("method", LEAVES)
def test_rates_said_to_act_have_leaves_and_idle_ones_have_none(method):
    """Against the adapter itself."""
    usual, model = load_config(None, (), {"method": method}), tiny_llama()
    attach(model, usual.adapter)
    leaves = {name.rsplit(".", 1)[-1] for name, _ in tree_flatten(model.trainable_parameters())}
    assert leaves == LEAVES[method]
    idle = idle_settings(usual)
    assert "train.learning_rate" not in idle
    assert "train.orthogonal_learning_rate" in idle  # one rate serves all branches
    leaf = idle_settings(load_config(None, ("train.orthogonal_learning_rate=1e-3",), {"method": method}))
    assert ("train.learning_rate" in leaf) == ("lora_a" not in leaves)
    assert ("train.orthogonal_learning_rate" in leaf) == (not leaves & {"house_u", "oft_q"})


def test_two_rates_are_adams_own_in_files_and_options_that_knew_no_other(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("method: hybrid\ntrain: {learning_rate: 5e-4, orthogonal_learning_rate: 1e-4}\n")
    train = load_run_config(path).train
    assert (train.rates, train.learning_rate, train.orthogonal_learning_rate) == ("leaf", 5e-4, 1e-4)
    both = ("method=hra", "train.orthogonal_learning_rate=1e-4")
    assert load_run_config(None, both).train.rates == "leaf"
    path.write_text("train: {learning_rate: 5e-4}\n")
    assert load_run_config(path).train.rates == "share"
    with pytest.raises(ConfigError, match="rates leaf has two"):
        load_run_config(None, (*both, "train.rates=share"))


SIZES = {
    "rotation.reflections=4": ("hra", "hybrid"),
    "rotation.block_size=4": ("boft",),
    "rotation.factors=2": ("boft",),
    "low_rank.rank=4": ("hra", "boft", "lora", "hybrid"),
}


@pytest.mark.parametrize("method", LEAVES)
@pytest.mark.parametrize("size", SIZES)
def test_a_size_changes_what_is_trained_or_is_refused(size, method):
    def attached(*overrides: str) -> dict[str, list[int]]:
        model = tiny_llama()
        attach(model, load_run_config(None, overrides, {"method": method}).adapter)
        return {name: leaf.shape for name, leaf in tree_flatten(model.trainable_parameters())}

    if method not in SIZES[size]:
        with pytest.raises(ConfigError, match="would do nothing"):
            attached(f"adapter.{size}")
    else:
        assert attached(f"adapter.{size}") != attached()
