"""Settings: strict keys, bounds, `--set`, and a round trip through YAML."""

import dataclasses
import itertools
import math
import typing
from pathlib import Path

import pytest
import yaml

from mlx_hybrid.config import (
    PRESETS,
    AdapterConfig,
    Config,
    build_config,
    dump_config,
    load_config,
    to_tree,
)
from mlx_hybrid.config.checks import AT_LEAST, AT_MOST, get_key
from mlx_hybrid.config.reading import parse_scalar
from mlx_hybrid.config.recipes import recipe_path, recipes, summary
from mlx_hybrid.errors import ConfigError


def refused(message: str, overrides: tuple[str, ...] = (), **values) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_config(None, overrides, values)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def leaves(kind: type, prefix: str = "") -> list[str]:
    hints = typing.get_type_hints(kind)
    return [
        name
        for field in dataclasses.fields(kind)
        for name in (
            leaves(hints[field.name], f"{prefix}{field.name}.")
            if dataclasses.is_dataclass(hints[field.name])
            else [prefix + field.name]
        )
    ]


def another(value):
    """A valid value that is not `value`, of its type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    if isinstance(value, float):
        return value / 2 + 0.01
    if isinstance(value, tuple):
        return ["o_proj"]
    return "other"


CHOICES = {"method": "boft", "adapter.orthogonal": "butterfly", "adapter.start": "lora-ga", "adapter.mixing": "off",
           "adapter.reflection_start": "gradient",
           "train.schedule": "linear", "train.too_long": "drop", "train.compile": "on"}  # fmt: skip


@pytest.mark.parametrize("key", leaves(Config))
def test_every_setting_arrives_and_survives_the_round_trip(key, tmp_path):
    default = get_key(Config(), key)
    value = CHOICES.get(key, another(default))
    company = ("adapter.orthogonal=none", "adapter.start=zeros") if key == "adapter.magnitude" else ()
    config = load_config(
        None,
        (
            *company,
            f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}",
        ),
    )
    got = get_key(config, key)
    assert got == (tuple(value) if isinstance(value, list) else value) != default
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize("key", leaves(Config))
def test_every_setting_is_explained_where_it_is_defined(key):
    name = key.split(".")[-1]
    text = (
        (Path(__file__).parents[1] / "mlx_hybrid" / "config" / "settings.py")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    explained = {a.split(":")[0].strip() for a, b in itertools.pairwise(text) if b.startswith('    """')}
    assert name in explained


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_parses_and_opens_with_what_it_does(name):
    path = recipe_path(name)
    assert isinstance(load_config(path), Config)
    assert summary(path)
    assert f"mlx-hybrid finetune {name}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_builds_and_fills_what_is_left_out(method):
    config = build_config({"method": method}, "test")
    for key, value in PRESETS[method].items():
        assert getattr(config.adapter, key) == value
    if method != "full":
        assert build_config({"method": method, "adapter": {"alpha": 3}}, "test").adapter.alpha == 3.0
        kept = build_config({"method": method, "adapter": {"mixing": "fixed"}}, "test").adapter
        assert kept.mixing == "fixed"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, 'unknown key "trian"; did you mean "train"?'),
        ({"train.epoch": 2}, 'unknown key "train.epoch"; did you mean "epochs"?'),
        ({"adapter.rnk": 2}, 'unknown key "adapter.rnk"; did you mean "rank"?'),
        ({"method": "hybird"}, 'unknown method "hybird"; did you mean "hybrid"?'),
        ({"method": ["lora"]}, "unknown method"),
        ({"method": {"a": 1}}, "unknown method"),
        ({"adapter": 3}, "adapter must be a mapping"),
        ({"train": 3}, "train must be a group of keys, not 3"),
        ({"train": 5}, "train must be a group of keys"),
        ({"name": "a/b"}, 'name "a/b" cannot be a run'),
        ({"name": "last"}, 'name "last" cannot be a run'),
        ({"adapter.orthogonal": "cayley"}, '"cayley" is not one of none, householder, butterfly'),
        ({"adapter.orthogonal": ["none"]}, "is not one of none, householder, butterfly"),
        ({"train.steps": 1.5}, "train.steps: must be a whole number, not 1.5"),
        ({"train.steps": True}, "train.steps: must be a whole number, not True"),
        ({"train.steps": "many"}, "train.steps: must be a whole number"),
        ({"train.epochs": "many"}, "train.epochs: must be a number"),
        ({"train.grad_checkpoint": 1}, "train.grad_checkpoint: must be true or false"),
        ({"evaluate.limit": 2}, "evaluate is true or false, without keys of its own such as limit"),
        ({"train.steps.most": 2}, "train.steps is a whole number, without keys of its own such as most"),
        ({"data.paths": {"a": 1}}, "data.paths: must be a list"),
        ({"data.paths": [["a"]]}, "data.paths: must be text"),
        ({"adapter.reflections": 7}, "reflections come in pairs; use 8"),
        ({"method": "boft", "adapter.reflection_start": "gradient"}, "reflection_start gradient needs .* householder"),
        ({"adapter.block_size": 7}, "adapter.block_size must be even, not 7"),
        ({"adapter.start_passes": 3}, "adapter.start_passes must be even"),
        ({"adapter.start": "lora-ga", "adapter.rank": 0}, "start lora-ga needs a low-rank branch"),
        ({"adapter.unitary": ["o_proj"], "adapter.orthogonal": "none"}, "adapter.unitary needs an orthogonal branch"),
        ({"method": "hra", "adapter.orthogonal": "none"}, "nothing to train"),
        ({"method": "full", "adapter.rank": 4}, "method full trains the weights themselves"),
        ({"adapter.magnitude": True}, r"adapter.magnitude \(DoRA\) needs a low-rank branch"),
        ({"adapter.alpha": math.nan}, "adapter.alpha: must be a finite number"),
        ({"train.learning_rate": math.inf}, "train.learning_rate: must be a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(values, message):
    refused(message, **values)


@pytest.mark.parametrize("key", AT_LEAST)
def test_lower_bounds(key):
    refused(f"{key} must be at least {AT_LEAST[key]}", (f"{key}={AT_LEAST[key] - 1}",))


@pytest.mark.parametrize("key", AT_MOST)
def test_upper_bounds(key):
    refused(f"{key} must be at most {AT_MOST[key]}", (f"{key}={AT_MOST[key] + 1}",))


@pytest.mark.parametrize("key", sorted({*AT_LEAST, *AT_MOST} - {"adapter.reflections"}))
def test_the_bounds_themselves_are_allowed(key):
    for bounds in (AT_LEAST, AT_MOST):
        if key in bounds and key != "adapter.rank":
            company = ("train.steps=5",) if key == "train.epochs" else ()
            assert get_key(load_config(None, (*company, f"{key}={bounds[key]}")), key) == bounds[key]


def test_no_epochs_and_no_steps_train_nothing():
    refused("train.epochs and train.steps are both 0", ("train.epochs=0",))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "write key=value"),
        ("=3", "write key=value"),
        ("method.x=3", "method"),
        ("train.epochs.x=3", 'train.epochs'),
        ("data.paths=[a", "data.paths"),
        ("name='", "name"),
        ("train..epochs=3", "unknown key"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_read_is_refused(override, message):
    refused(message, (override,))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("2", 2), ("2.5", 2.5), ("true", True), ("[a, b]", ["a", "b"]), ("", ""),
     ("a=b", "a=b"), ("null", None), ("0.1.2", "0.1.2")],
)  # fmt: skip
def test_values_of_overrides_are_yaml_and_numbers_look_like_numbers(text, value):
    assert parse_scalar(text) == value


@pytest.mark.parametrize(
    "override", ["evaluate.limit=2", "evalute=2", "train.steps=many", "adapter.start=ones"]
)
def test_what_is_wrong_with_an_override_names_it_and_not_the_file(override, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("method: lora\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, (override,))
    assert str(error.value).startswith(f"--set {override}: ")
    assert load_config(path, ("adapter.block_size=auto",)).adapter.block_size == 0


def test_later_settings_win(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("method: lora\nseed: 1\ntrain: {epochs: 1}\n")
    config = load_config(path, ("seed=2", "train.epochs=2", "train.epochs=4"), {"seed": 3})
    assert (config.method, config.seed, config.train.epochs) == ("lora", 3, 4.0)


def test_yaml_s_on_and_off_are_words_here(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("adapter: {mixing: off}\ntrain: {compile: on}\n")
    config = load_config(path)
    assert (config.adapter.mixing, config.train.compile) == ("off", "on")


def test_one_word_stands_for_a_list_of_one():
    assert load_config(None, ("data.paths=a.jsonl",)).data.paths == ("a.jsonl",)


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "must hold keys and values"), ("a: [\n", "not a YAML file"), ("\x00", "not a YAML file"),
     ("seed: 1\nseed: 2\n", r'line 2, column 1: key "seed" stands twice'),
     ("train:\n\tsteps: 2\n", "line 2, column 1: found character"),
     ("1: 2", "unknown key")],
)  # fmt: skip
def test_a_file_that_is_no_config_is_refused_by_name(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not a YAML file"):
        load_config(tmp_path / "latin.yaml")


def test_a_group_with_all_its_keys_left_out_is_the_default(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("train:\n  # steps: 6\n")
    assert load_config(path) == load_config()


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("# nothing\n")
    assert load_config(path) == load_config()
    assert load_config().adapter == AdapterConfig(**PRESETS["hybrid"])


def test_a_config_cannot_be_changed_after_the_fact():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]
    assert list(to_tree(Config())) == [field.name for field in dataclasses.fields(Config)]


def test_settings_that_are_gone_load_where_they_did_nothing(tmp_path):
    path = tmp_path / "config.yaml"
    for text in ("outliers: 'off'\n  profile: chat", "outliers: off", "profile: chat\n  redact: true"):
        path.write_text(f"governance:\n  {text}\n")
        assert load_config(path).governance.redact is ("redact" in text)
    path.write_text("train:\n  packing: off\n  steps: 3\n")
    assert load_config(path) == build_config({"train": {"steps": 3}}, "test")
    for group, key, value in (
        ("governance", "outliers", "flag"),
        ("governance", "profile", "web"),
        ("train", "packing", "auto"),
    ):
        path.write_text(f"{group}: {{{key}: {value}}}\n")
        with pytest.raises(ConfigError, match=rf"config.yaml: {group}.{key} is gone; leave it out"):
            load_config(path)
