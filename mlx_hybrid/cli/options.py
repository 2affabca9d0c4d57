"""Options that several commands share, and how an option is written."""

from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any, get_origin

import click

from mlx_hybrid.config.explain import settings
from mlx_hybrid.config.reading import parse_scalar
from mlx_hybrid.errors import ConfigError

PATH = click.Path(path_type=Path)
COUNT, SOME = click.IntRange(min=0), click.IntRange(min=1)


def option(spelt: str, told: str, **how: Any) -> Callable:
    """click's option: how it is spelt and named, what it means, and its default, unless that is said or nothing."""
    shown = how.get("default") not in (None, "") and "[default" not in told
    return click.option(*spelt.split(), help=told, show_default=shown, **how)


def listed(ctx: click.Context, asked: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """`a,b` and repeated options alike."""
    return tuple(name.strip() for name in ",".join(value).split(",") if name.strip())


flag = partial(option, is_flag=True)
names = partial(option, multiple=True, callback=listed)


def together(*parameters: Callable) -> Callable:
    """Several options as one decorator, in this order."""
    return lambda command: reduce(lambda made, parameter: parameter(made), reversed(parameters), command)


def setting(key: str, spelt: str = "", told: str = "", **how: Any) -> Callable:
    """The option of one setting, named, typed and explained as it is; `given_settings` collects what is given."""
    known, kind = settings()[key], {}
    usual = "" if known.default in ((), "", False) else f"  [default: {known.default}]"
    if known.hint is bool:
        kind = {"is_flag": True, "default": None}
    elif get_origin(known.hint) is tuple:
        kind = {"type": str, "multiple": True, "callback": listed, "metavar": "A,B"}
    spelt = spelt or f"--{key.rpartition('.')[2].replace('_', '-')}"
    named = f"{spelt} {key.replace('.', '__')}"
    return option(named, told or known.meaning + usual, **{"type": known.hint, **kind, **how})


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """What is given of the options that `setting` made, by its key."""
    values = {key: options.get(key.replace(".", "__")) for key in settings()}
    return {key: value for key, value in values.items() if value not in (None, (), {})}


def rule_changes(ctx: click.Context, asked: click.Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    """`--rule menu=off --rule long_token.limit=80` as the setting `governance.rules`."""
    pairs = [rule.partition("=") for rule in value]
    if odd := [name for name, equals, text in pairs if not equals or not text.strip()]:
        raise ConfigError(f"--rule {odd[0]}: write RULE=off or RULE.limit=NUMBER, as menu=off.")
    return {name.strip(): parse_scalar(text.strip(), f"--rule {name}") for name, _, text in pairs}


def read_template(ctx: click.Context, asked: click.Parameter, value: str | None) -> str | None:
    """A template's name, or what stands in its file, so that a run keeps it."""
    from mlx_hybrid.models.templates import NAMED, template_text

    return value if value is None or value in NAMED else template_text(value)


BASE = "Hub id, folder or GGUF file of the base model, or ollama:NAME.  [default: the recipe's]"
MAP = "What keys are read as: question=prompt,answer=completion."
TEMPLATE = "Chat template: plain, chatml, or a file with Jinja.  [default: the model's own]"
OTHER_BASE = "Put the adapter on this base.  [default: the one it names]"
COPY = "Local copy of the benchmarks.  [default: $MLX_HYBRID_DATA, else the Hub]"
RULE = "Switch a rule off or move its limit, as menu=off."
FILES = {"callback": None, "metavar": "PATH"}  # their names may hold commas
RULES = {"type": str, "multiple": True, "callback": rule_changes, "metavar": "RULE=VALUE"}
OF_TEMPLATE = {"metavar": "NAME|FILE", "callback": read_template}

json_option = flag("--json as_json", "Print the result as JSON.")
ANY = "Any setting; `mlx-hybrid settings` lists them."
set_option = option("--set overrides", ANY, multiple=True, metavar="KEY=VALUE")
map_option = names("--map renames", MAP, metavar="THEIRS=OURS")
rule_option = setting("governance.rules", "--rule", RULE, **RULES)
base_model_option = option("--base-model", OTHER_BASE, metavar="MODEL")
run_options = together(
    click.argument("config", required=False, metavar="[CONFIG]"),
    setting("model.name", "--model", BASE),
    setting("data.paths", "--data", "Files, folder or Hub data set; repeatable.", **FILES),
    setting("data.map", "", MAP, metavar="THEIRS=OURS"),
    setting("model.chat_template", "--template", TEMPLATE, **OF_TEMPLATE),
    rule_option,
    setting("method"),
    setting("train.learning_rate"),
    setting("adapter.low_rank.rank", "", "Rank of the low-rank update.  [default: the method's]"),
    setting("train.epochs", "", "Passes over the training data.  [default: 3, or the recipe's]"),
    setting("train.steps", "", "Optimiser steps, in place of epochs."),
    setting("train.batch_size"),
    setting("train.max_tokens", "", "Longest record, in tokens.  [default: 1024]"),
    setting("adapter.targets"),
    set_option,
)
measured_options = together(
    names("--variants", "Spellings to test: names with commas between, or `all`."),
    option("--limit", "Most test records a language.  [default: all]", type=COUNT, default=0),
    option("--pivot", "Language the others are held against.  [default: eng_Latn]"),
    option("--max-tokens", "Of one translation.  [default: 256]", type=SOME),
    option("--retain", "Text by which forgetting is measured.", default="auto", metavar="PATH|none"),
)
benchmark_options = together(
    names("--languages", "As en,sw,ha.  [default: all]"),
    option("--from folder", COPY, type=PATH, envvar="MLX_HYBRID_DATA"),
)
model_options = together(
    option("--context", "Use less of the context, in tokens.  [default: the model's]", type=int),
    option("--base-model base_name", OTHER_BASE, metavar="MODEL"),
    option("--template", TEMPLATE, **OF_TEMPLATE),
)
LOADING = ("context", "base_name", "template")
"""How a model is loaded that makes answers; `open_and_tell` takes them."""
sampling_options = together(
    option("--temperature", "0 takes the likeliest token.  [default: 0]", type=float, default=0.0),
    option("--top-p", "Sample among the likeliest tokens.", type=float, default=1.0),
    option("--top-k", "Sample among so many of the likeliest.  [default: all]", type=int, default=0),
    option("--min-p", "Least share of the likeliest one's probability.", type=float, default=0.0),
    option("--repetition-penalty", "Over 1, says less again.  [default: 1]", type=float, default=1.0),
    option("--seed", "Same seed, same answers.  [default: a fresh one each time]", type=int),
)
