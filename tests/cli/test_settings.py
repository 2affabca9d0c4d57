"""Settings are found: by their options, by what other programs call them, in a list, and before training."""

import json

import pytest
from acting import refused
from mlx_lm.lora import CONFIG_DEFAULTS
from transformers import TrainingArguments

from mlx_hybrid.config import flat, load_config
from mlx_hybrid.config.explain import absurd, chosen, meant, settings
from mlx_hybrid.config.formats import ALIASES
from mlx_hybrid.config.recipes import run_config
from mlx_hybrid.errors import ConfigError

OPTIONS = {
    "--learning-rate=1e-4": ("train.learning_rate", 1e-4),
    "--rank=5": ("adapter.low_rank.rank", 5),
    "--epochs=2.5": ("train.epochs", 2.5),
    "--steps=7": ("train.steps", 7),
    "--batch-size=3": ("train.batch_size", 3),
    "--max-tokens=300": ("train.max_tokens", 300),
    "--targets=q_proj,v_proj": ("adapter.targets", ["q_proj", "v_proj"]),
}


@pytest.mark.parametrize("left_out", ["--epochs", "--steps"])
def test_the_settings_used_most_are_options(left_out, finetune):
    given = {word: told for word, told in OPTIONS.items() if not word.startswith(left_out)}
    tree = json.loads(finetune(*given, "--method", "lora", "--dry-run", "--json", code=0).stdout)["config"]
    for key, value in given.values():
        assert flat(tree)[key] == value


OURS = {
    "--learning-rate": "--lr",
    "--steps": "--iters",
    "--rank": "--lora_r -r",
    "--max-tokens": "--max-seq-length",
    "--batch-size": "--per_device_train_batch_size",
    "--output": "--output-dir",
    "--dry-run": "--dry-rnu",
    "--set adapter.layers=VALUE": "--num-layers",
    "--set adapter.low_rank.alpha=VALUE": "--lora-alpha",
    "--set train.accumulate=VALUE": "--gradient-accumulation-step",
}


@pytest.mark.parametrize(("word", "flag"), [(word, flag) for flag in OURS for word in OURS[flag].split()])
def test_an_option_of_another_program_names_ours(word, flag, run):
    refused(run("finetune", word, "3"), 2, f"did you mean {flag}?")


def test_an_option_that_nobody_has_says_where_to_look(run):
    refused(run("finetune", "--xyzzyx"), 2, "`mlx-hybrid settings` lists")
    assert "settings" not in run("doctor", "--xyzzyx", code=2).stderr


KEYS = {
    "adapter.low_rank.rank": "rank adapter.r lora-r",
    "train.learning_rate": "lr train.lr",
    "train.steps": "itres",
    "train.batch_size": "batch_size",
}


@pytest.mark.parametrize(("given", "key"), [(given, key) for key in KEYS for given in KEYS[key].split()])
def test_a_key_that_is_not_one_names_ours(given, key):
    with pytest.raises(ConfigError, match=f'unknown key "{given}"; did you mean "{key}"'):
        load_config(None, (f"{given}=3",))


def test_every_other_name_leads_to_a_setting_and_is_none():
    assert set(ALIASES.values()) <= set(settings())
    assert not {name for name, key in ALIASES.items() if name in settings() and name != key}


ELSEWHERE = (
    "mask_prompt report_to project_name test test_batches val_batches optimizer train optimizer_config config"
)
ELSEWHERE += " data model clear_cache_threshold trust_remote_code"


def test_what_mlx_lm_and_transformers_call_it_is_known():
    """By their own lists of arguments."""
    unknown = {name for name in CONFIG_DEFAULTS if not meant(name) and name != "adapter_path"}
    assert unknown <= set(ELSEWHERE.split())
    theirs = set(TrainingArguments.__dataclass_fields__)
    asked = "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps seed"
    asked += " weight_decay max_grad_norm lr_scheduler_type warmup_steps eval_steps save_steps logging_steps"
    for name in [*asked.split(), "save_total_limit", "gradient_checkpointing", "torch_compile", "run_name"]:
        assert name in theirs
        assert meant(name), name


def test_peft_s_names_are_known():
    peft = pytest.importorskip("peft")
    theirs = set(peft.LoraConfig.__dataclass_fields__)
    asked = "r lora_alpha lora_dropout target_modules use_rslora use_dora init_lora_weights"
    for name in asked.split():
        assert name in theirs
        assert meant(name).startswith("adapter."), name


def test_settings_lists_groups_and_explains_one(run):
    told = run("settings", code=0).stdout
    assert all(f"{key} = " in told for key in settings())
    train = json.loads(run("settings", "train", "--json", code=0).stdout)
    assert {row["key"] for row in train} == {key for key in settings() if key.startswith("train.")}
    one = run("settings", "lora_alpha", code=0).stdout
    assert one.startswith("adapter.low_rank.alpha\n")
    assert "Others call it lora_alpha" in one
    assert "at least 1 and at most" not in run("settings", "rank").stdout
    refused(run("settings", "xyzzyx"), 2, 'No setting "xyzzyx"')


def test_what_a_run_takes_is_shown_before_it_trains(finetune, lora):
    said = finetune(*lora, "--rank", 4, "--steps", 1, "--set", "evaluate=false", code=0).stderr
    head, _, rest = said.partition("Records:")
    assert rest
    for line in ("method lora", "adapter.low_rank.rank 4", "train.steps 1", "evaluate false"):
        assert line in [" ".join(row.split()) for row in head.splitlines()]
    assert "train.epochs" not in head


def test_the_settings_shown_make_the_same_run(tmp_path):
    own = ("method=hra", "train.steps=9", "adapter.targets=q_proj,v_proj", "train.warmup=0.2")
    config = load_config(None, own)
    given = tuple(f"{key}={value}" for key, value in chosen(config).items())
    assert load_config(None, given) == config


ABSURD = {"train.learning_rate=5": True, "train.learning_rate=1e-3": False, "train.batch_size=4096": True}


@pytest.mark.parametrize(("override", "warned"), ABSURD.items())
def test_an_absurd_value_is_warned_about(override, warned, finetune, lora):
    said = finetune(*lora, "--set", override, "--dry-run", code=0).stderr
    assert ("Warning: " + override.partition("=")[0] in said) == warned
    assert bool(absurd(load_config(None, (override,)))) == warned


def test_epochs_asked_for_stand_above_a_recipe_s_steps_and_both_are_too_much(run):
    tree = run_config("classify", (), {"train.epochs": 2.0}).train
    assert (tree.epochs, tree.steps) == (2.0, 0)
    refused(run("finetune", "--epochs", 2, "--steps", 3, "--dry-run"), 2, "give one of them")
    with pytest.raises(ConfigError, match=r"train\.epochs would do nothing .*train\.steps is 64 and decides"):
        run_config("classify", ("train.epochs=2",))


def test_an_adapter_that_is_gone_on_from_keeps_its_own_sizes(finetune, finished):
    refused(finetune("--from", finished("lora").path, "--rank", 3), 2, "leave out --rank")


def test_lists_may_be_written_with_commas():
    for text in ("q_proj,v_proj", "[q_proj, v_proj]", "q_proj, v_proj"):
        config = load_config(None, (f"adapter.targets={text}",))
        assert config.adapter.targets == ("q_proj", "v_proj")
