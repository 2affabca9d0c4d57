"""Settings: strict keys, bounds, `--set`, and a round trip through YAML."""

import dataclasses
import json
import math
from operator import attrgetter

import pytest
import yaml

from mlx_hybrid.config import (
    PRESETS,
    AdapterConfig,
    ButterflyConfig,
    Config,
    HouseholderConfig,
    LowRankConfig,
    build_config,
    dump_config,
    explain,
    load_config,
    merge,
    to_tree,
)
from mlx_hybrid.config.formats import MOVED, from_format_1
from mlx_hybrid.config.reading import parse_scalar
from mlx_hybrid.errors import ConfigError


def refused(message: str, overrides: tuple[str, ...] = (), **values) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_config(None, overrides, values)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


SETTINGS = explain.settings()
BOUNDS = {key: setting.bounds for key, setting in SETTINGS.items() if setting.bounds}
LEAST = {key: bounds["least"] for key, bounds in BOUNDS.items()}
MOST = {key: bounds["most"] for key, bounds in BOUNDS.items() if bounds["most"] < math.inf}
BUTTERFLY = ("adapter.rotation.block_size", "adapter.rotation.factors")


def company(key: str) -> tuple[str, ...]:
    """What has to be set beside a setting for it to have a place."""
    if key in BUTTERFLY:
        return ("adapter.rotation.kind=butterfly",)
    if key == "adapter.low_rank.magnitude":
        return ("method=dora", "adapter.low_rank.magnitude=false")
    if key.startswith("adapter.rotation") or key in ("adapter.mixing", "adapter.unitary"):
        return ("method=hybrid",)
    return ("train.steps=5",) if key == "train.epochs" else ()


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


CHOICES = {
    "method": "boft",
    "model.template": {"enable_thinking": False},
    "governance.rules": {"menu": False},
    "model.system": "fold",
    "adapter.rotation.kind": "butterfly",
    "adapter.low_rank.start": "lora-ga",
    "adapter.mixing": "off",
    "train.rates": "leaf",
    "train.prompt_hold": "loss",
    "train.average": "ema",
    "train.schedule": "linear",
    "train.too_long": "drop",
    "train.compile": "on",
}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_arrives_and_survives_the_round_trip(key, tmp_path):
    default = attrgetter(key)(load_config(None, company(key)))
    value = CHOICES.get(key, another(default))
    text = yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
    config = load_config(None, (*company(key), f"{key}={text}"))
    got = attrgetter(key)(config)
    assert got == (tuple(value) if isinstance(value, list) else value) != default
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_every_setting_is_explained_where_it_is_defined():
    assert len(SETTINGS) > 60
    assert all(setting.meaning.endswith(".") for setting in SETTINGS.values())


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_builds_and_fills_what_is_left_out(method):
    tree = to_tree(build_config({"method": method}, "test").adapter)
    assert merge(tree, PRESETS[method]) == tree
    if method != "full":
        kept = build_config({"method": method, "adapter": {"layers": 2}}, "test").adapter
        assert to_tree(kept) == tree | {"layers": 2}
    if tree["low_rank"]:
        given = {"method": method, "adapter": {"low_rank": {"alpha": 3}}}
        assert to_tree(build_config(given, "test").adapter.low_rank) == tree["low_rank"] | {"alpha": 3.0}


def adapter_with(*overrides: str) -> AdapterConfig:
    return load_config(None, ("method=hybrid", *overrides)).adapter


def test_a_branch_is_sized_left_out_added_or_of_another_kind():
    assert adapter_with("adapter.rotation.reflections=4").rotation == HouseholderConfig(reflections=4)
    assert adapter_with("adapter.low_rank.rank=16").low_rank == LowRankConfig(rank=16)
    assert adapter_with("adapter.rotation=null").rotation is None
    assert adapter_with("adapter.rotation.kind=butterfly").rotation == ButterflyConfig()
    sized = adapter_with("adapter.rotation={kind: butterfly, block_size: 4}", "adapter.rotation.factors=2")
    assert sized.rotation == ButterflyConfig(block_size=4, factors=2)
    added = adapter_with("method=hra", "adapter.low_rank.rank=4")
    assert (added.rotation, added.low_rank) == (HouseholderConfig(reflections=16), LowRankConfig(rank=4))
    turned = adapter_with("method=lora", "adapter.rotation.kind=householder")
    assert turned.rotation == HouseholderConfig()


def test_a_method_beside_a_file_decides_the_branches_and_the_file_their_sizes(tmp_path):
    path = tmp_path / "mine.yaml"
    rotation = "{kind: householder, reflections: 4}"
    path.write_text(f"method: hybrid\nadapter: {{rotation: {rotation}, low_rank: {{rank: 2, alpha: 4}}}}\n")
    for method, rotation, low_rank in (
        ("hybrid", HouseholderConfig(reflections=4), LowRankConfig(rank=2, alpha=4.0)),
        ("hra", HouseholderConfig(reflections=4), None),
        ("lora", None, LowRankConfig(rank=2, alpha=4.0)),
        ("boft", ButterflyConfig(), None),
        ("full", None, None),
    ):
        adapter = load_config(path, (), {"method": method}).adapter
        assert (adapter.rotation, adapter.low_rank) == (rotation, low_rank)
    path.write_text("adapter: {rotation: {reflektions: 4}}\n")
    with pytest.raises(ConfigError, match="reflektions"):
        load_config(path, (), {"method": "boft"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, 'unknown key "trian"; did you mean "train"?'),
        ({"train.epoch": 2}, 'unknown key "train.epoch"; did you mean "epochs"?'),
        ({"adapter.rnk": 2}, 'unknown key "adapter.rnk"; did you mean "low_rank.rank"?'),
        ({"method": "hybird"}, 'unknown method "hybird"; did you mean "hybrid"?'),
        ({"method": ["lora"]}, "unknown method"),
        ({"method": {"a": 1}}, "unknown method"),
        ({"adapter": 3}, "adapter must be a mapping"),
        ({"train": 3}, "train must be a group of keys, not 3"),
        ({"name": "a/b"}, 'name "a/b" cannot be a run'),
        ({"name": "last"}, 'name "last" cannot be a run'),
        ({"adapter.rotation.kind": "cayley"}, '"cayley" is not one of householder, butterfly'),
        ({"adapter.rotation.kind": ["none"]}, "is not one of householder, butterfly"),
        ({"train.steps": 1.5}, "train.steps: must be a whole number, not 1.5"),
        ({"train.steps": True}, "train.steps: must be a whole number, not True"),
        ({"train.steps": "many"}, "train.steps: must be a whole number"),
        ({"train.epochs": "many"}, "train.epochs: must be a number"),
        ({"train.grad_checkpoint": 1}, "train.grad_checkpoint: must be true or false"),
        ({"evaluate.limit": 2}, "evaluate is true or false, without keys of its own such as limit"),
        ({"train.steps.most": 2}, "train.steps is a whole number, without keys of its own such as most"),
        ({"data.paths": {"a": 1}}, "data.paths: must be a list"),
        ({"data.paths": [["a"]]}, "data.paths: must be text"),
        ({"adapter.rotation": 7}, "adapter.rotation must be a group of keys or null, not 7"),
        ({"adapter.low_rank.rnk": 7}, 'unknown key "adapter.low_rank.rnk"; did you mean "rank"?'),
        ({"method": "hybrid", "adapter.rotation.factors": 2}, "kind butterfly, and this is householder"),
        ({"method": "hra", "adapter.rotation.reflections": 7}, "reflections come in pairs; use 8"),
        ({"method": "boft", "adapter.rotation.reflections": 4}, "belongs to adapter.rotation.kind householder"),
        ({"method": "hra", "adapter.rotation.start": "gradient"}, 'unknown key "adapter.rotation.start"'),
        ({"method": "boft", "adapter.rotation.block_size": 7}, "adapter.rotation.block_size must be even, not 7"),
        ({"adapter.sketch.passes": 2}, 'unknown key "adapter.sketch"'),
        ({"method": "hra", "adapter.low_rank.start": "lora-ga"}, "adapter.low_rank.rank adds one"),
        ({"adapter.unitary": ["o_proj"], "adapter.rotation": None}, "adapter.unitary needs an orthogonal branch"),
        ({"method": "hra", "adapter.rotation": None}, "nothing to train"),
        ({"method": "full", "adapter.low_rank.rank": 4}, "method full trains the weights themselves"),
        ({"method": "hybrid", "adapter.low_rank.magnitude": True}, r"magnitude \(DoRA\) needs a low-rank branch"),
        ({"adapter.low_rank.alpha": math.nan}, "adapter.low_rank.alpha: must be a finite number"),
        ({"train.learning_rate": math.inf}, "train.learning_rate: must be a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(values, message):
    refused(message, **values)


@pytest.mark.parametrize("key", LEAST)
def test_bounds_are_allowed_and_what_is_beyond_them_is_not(key):
    refused(f"{key} must be at least {LEAST[key]}", (*company(key), f"{key}={LEAST[key] - 1}"))
    if key in MOST:
        refused(f"{key} must be at most {MOST[key]}", (f"{key}={MOST[key] + 1}",))
    for bound in {LEAST[key], MOST.get(key, LEAST[key])}:
        assert attrgetter(key)(load_config(None, (*company(key), f"{key}={bound}"))) == bound


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
        ("train.epochs=0", "train.epochs and train.steps are both 0"),
        ("train.learning_rate=0", "train.learning_rate must be at least 1e-12"),
        ("adapter.low_rank.alpha=0", "adapter.low_rank.alpha must be at least 1e-06"),
    ],
)  # fmt: skip
def test_an_override_that_cannot_be_read_is_refused(override, message):
    refused(message, (override,))


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("2", 2), ("2.5", 2.5), ("true", True), ("[a, b]", ["a", "b"]), ("", ""),
     ("a=b", "a=b"), ("null", None), ("0.1.2", "0.1.2"), ("2026-11-30", "2026-11-30"), ("2026-13-45", "2026-13-45")],
)  # fmt: skip
def test_values_of_overrides_are_yaml_and_numbers_look_like_numbers(text, value):
    assert parse_scalar(text, "--set") == value


@pytest.mark.parametrize(
    "override", ["evaluate.limit=2", "evalute=2", "train.steps=many", "adapter.low_rank.start=ones"]
)
def test_what_is_wrong_with_an_override_names_it_and_not_the_file(override, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("method: lora\n")
    with pytest.raises(ConfigError) as error:
        load_config(path, (override,))
    assert str(error.value).startswith(f"--set {override}: ")
    found = load_config(None, ("method=boft", "adapter.rotation.block_size=auto"))
    assert found.adapter.rotation.block_size == 0


def test_what_is_wrong_with_an_option_is_not_blamed_on_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("method: lora\n")
    for overrides in ((), ("train.steps=3",)):
        with pytest.raises(ConfigError, match=r"^options: adapter\.low_rank\.rank must be at least 1"):
            load_config(path, overrides, {"adapter.low_rank.rank": 0})
    path.write_text("method: lora\ntrain: {stepz: 1}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: unknown key"):
        load_config(path, (), {"adapter.low_rank.rank": 2})


def test_later_settings_win(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("method: lora\nseed: 1\ntrain: {epochs: 1}\n")
    config = load_config(path, ("seed=2", "train.epochs=2", "train.epochs=4"), {"seed": 3})
    assert (config.method, config.seed, config.train.epochs) == ("lora", 3, 4.0)


def test_yaml_s_on_and_off_are_words_here_and_one_word_a_list_of_one(tmp_path):
    assert load_config(None, ("data.paths=a.jsonl",)).data.paths == ("a.jsonl",)
    path = tmp_path / "config.yaml"
    path.write_text("adapter: {mixing: off}\ntrain: {compile: on}\n")
    config = load_config(path)
    assert (config.adapter.mixing, config.train.compile) == ("off", "on")


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "must hold keys and values"), ("a: [\n", "not a YAML file"), ("\x00", "not a YAML file"),
     (None, r"config\.yaml: cannot be read"), (b"name: \xe9\n", r"config\.yaml: not a YAML file"),
     ("seed: 1\nseed: 2\n", r'line 2, column 1: key "seed" stands twice'),
     ("train:\n\tsteps: 2\n", "line 2, column 1: found character"),
     ("1: 2", "unknown key")],
)  # fmt: skip
def test_a_file_that_is_no_config_is_refused_by_name(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["train:\n  # steps: 6\n", "# nothing\n"])
def test_a_file_without_a_value_is_the_default(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert load_config(path) == load_config(None)
    assert load_config(None).adapter == AdapterConfig()


@pytest.mark.parametrize(
    ("given", "hold", "weight"),
    [
        ({}, "base", 1.0),
        ({"method": "hybrid"}, "base", 1.0),
        ({"method": "full"}, "loss", 0.2),
        ({"start_from": "last"}, "loss", 0.2),
        ({"train": {"prompt_hold": "loss"}}, "loss", 0.2),
        ({"train": {"prompt_hold": "loss", "prompt_weight": 1}}, "loss", 1.0),
        ({"method": "full", "train": {"prompt_weight": 0.5}}, "loss", 0.5),
    ],
)
def test_prompts_are_held_to_a_base_where_there_is_one(given, hold, weight):
    config = build_config(given, "test")
    assert (config.train.prompt_hold, config.train.prompt_weight) == (hold, weight)
    assert config.held_to_base == (hold == "base")


FORMAT_1 = [
    ({"rank": 4, "alpha": 8}, {"low_rank": {"rank": 4, "alpha": 8}}),
    ({"rank": 0, "alpha": 8, "targets": ["q_proj"]}, {"low_rank": None, "targets": ["q_proj"]}),
    ({"orthogonal": "none", "reflections": 8, "factors": 4}, {"rotation": None}),
    ({"orthogonal": "butterfly", "reflections": 8, "factors": 2}, {"rotation": {"kind": "butterfly", "factors": 2}}),
    ({"reflections": 4}, {"rotation": {"reflections": 4}}),
    ({"start": "lora-ga"}, {"low_rank": {"start": "lora-ga"}}),
    ({"magnitude": True, "dropout": 0.1}, {"low_rank": {"magnitude": True, "dropout": 0.1}}),
    ({"low_rank": {"rank": 4}, "mixing": "off"}, {"low_rank": {"rank": 4}, "mixing": "off"}),
]  # fmt: skip


@pytest.mark.parametrize(("flat", "tree"), FORMAT_1)
def test_settings_of_format_1_are_read_from_files_and_options(flat, tree, tmp_path):
    assert from_format_1(flat) == tree
    path = tmp_path / "old.yaml"
    method = "dora" if "magnitude" in flat else "hybrid"
    for given in (flat, tree):
        path.write_text(yaml.safe_dump({"method": method, "adapter": given}))
        overrides = (f"adapter={json.dumps(given)}",)
        assert load_config(path) == load_config(None, overrides, {"method": method})
        assert load_config(path).adapter == build_config({"method": method, "adapter": tree}, "t").adapter


@pytest.mark.parametrize("method", PRESETS)
def test_a_whole_config_of_format_1_is_its_method_s(method, tmp_path):
    """As runs wrote it: every value, those of no use too."""
    adapter = build_config({"method": method}, "test").adapter
    rotation, low_rank = to_tree(adapter.rotation) or {"kind": "none"}, to_tree(adapter.low_rank)
    flat = {old: {"rotation": rotation, "low_rank": low_rank or {"rank": 0}}[group][key]
            for old, (group, key) in MOVED.items() if group != "sketch"
            and key in {"rotation": rotation, "low_rank": low_rank or {"rank": 0}}[group]}  # fmt: skip
    idle = {"reflections": 8, "reflection_start": "random", "block_size": 8, "factors": 4, "alpha": 16.0}
    rest = {key: value for key, value in to_tree(adapter).items() if key not in ("rotation", "low_rank")}
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({"method": method, "adapter": idle | flat | rest, "train": {"packing": "off"}})
    )
    assert load_config(path) == load_config(None, (), {"method": method})


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
        ("adapter", "rotation.start", "gradient"),
        ("adapter", "sketch", "{records: 16}"),
        ("adapter", "reflection_start", "gradient"),
    ):
        *outer, name = f"{group}.{key}".split(".")
        path.write_text("".join(f"{part}: {{" for part in outer) + f"{name}: {value}" + "}" * len(outer))
        key = key.replace("reflection_start", "rotation.start")
        with pytest.raises(ConfigError, match=rf"config.yaml: {group}.{key} is gone; leave it out"):
            load_config(path)
    (tmp_path / "run.json").write_text("{}")
    assert load_config(path) == load_config(None)
