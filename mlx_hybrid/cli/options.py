"""Options that several commands share."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, get_origin

import yaml
from click import Context, IntRange, Parameter, argument, option
from click import Path as PathType

from mlx_hybrid.errors import ConfigError

PATH = PathType(path_type=Path)
COUNT, SOME = IntRange(min=0), IntRange(min=1)


def listed(ctx: Context, asked: Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """`a,b` and repeated options alike."""
    return tuple(name.strip() for name in ",".join(value).split(",") if name.strip())


def split_names(ctx: Context, asked: Parameter, value: str | None) -> tuple[str, ...] | None:
    """What stands between commas."""
    return None if value is None else listed(ctx, asked, (value,))


def together(*parameters: Callable) -> Callable:
    """Several options as one decorator, in this order."""
    return lambda command: reduce(lambda made, parameter: parameter(made), reversed(parameters), command)


def rule_changes(ctx: Context, asked: Parameter, value: tuple[str, ...]) -> dict[str, Any]:
    """`--rule menu=off --rule long_token.limit=80` as the setting `governance.rules`."""
    pairs = [rule.partition("=") for rule in value]
    if odd := [name for name, equals, text in pairs if not equals or not text.strip()]:
        raise ConfigError(f"--rule {odd[0]}: write RULE=off or RULE.limit=NUMBER, as menu=off.")
    return {name.strip(): yaml.safe_load(text) for name, _, text in pairs}


def setting(key: str, flag: str = "", **how: Any) -> Callable:
    """The option of one setting, named, typed and explained as it is; `given_settings` collects what is given."""
    from mlx_hybrid.config.explain import settings

    known = settings()[key]
    usual = "" if known.default in ((), "", False) else f"  [default: {known.default}]"
    kind: dict[str, Any] = {"type": known.hint, "help": known.meaning + usual}
    if known.hint is bool:
        kind |= {"is_flag": True, "default": None}
    elif get_origin(known.hint) is tuple:
        kind |= {"type": str, "multiple": True, "callback": listed, "metavar": "A,B"}
    flag = flag or f"--{key.rpartition('.')[2].replace('_', '-')}"
    return option(flag, key.replace(".", "__"), **{**kind, **how})


def given_settings(options: dict[str, Any]) -> dict[str, Any]:
    """What is given of the options that `setting` made, by its key."""
    return {name.replace("__", "."): value for name, value in options.items() if value not in (None, (), {})}


base_model_option = option(
    "--base-model", metavar="MODEL", help="Put the adapter on this base.  [default: the one it names]"
)
context_option = option(
    "--context", type=int, help="Use less of the context, in tokens.  [default: the model's]"
)
retain_option = option(
    "--retain",
    default="auto",
    show_default=True,
    metavar="PATH|none",
    help="Text by which forgetting is measured.",
)
MAP = "What keys are read as: question=prompt,answer=completion."
map_option = option("--map", "renames", multiple=True, callback=listed, metavar="THEIRS=OURS", help=MAP)
rule_option = option(
    "--rule",
    "governance__rules",
    multiple=True,
    callback=rule_changes,
    metavar="RULE=VALUE",
    help="Switch a rule off or move its limit, as menu=off.",
)
set_option = option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting; `mlx-hybrid settings` lists them.",
)


def read_template(context: Context, option: Parameter, value: str | None) -> str | None:
    """A template's name, or what stands in its file, so that a run keeps it."""
    from mlx_hybrid.models.templates import NAMED, template_text

    return value if value is None or value in NAMED else template_text(value)


TEMPLATE = {
    "flag": "--template",
    "metavar": "NAME|FILE",
    "callback": read_template,
    "help": "Chat template: plain, chatml, or a file with Jinja.  [default: the model's own]",
}
template_option = option(TEMPLATE["flag"], **{k: v for k, v in TEMPLATE.items() if k != "flag"})
run_options = together(
    argument("config", required=False, metavar="[CONFIG]"),
    setting(
        "model.name",
        "--model",
        help="Hub id, folder or GGUF file of the base model, or ollama:NAME.  [default: the recipe's]",
    ),
    setting(
        "data.paths",
        "--data",
        callback=None,
        metavar="PATH",
        help="Files, folder or Hub data set; repeatable.",
    ),
    setting("data.map", metavar="THEIRS=OURS", help=MAP),
    setting("model.chat_template", **TEMPLATE),
    rule_option,
    setting("method"),
    setting("train.learning_rate"),
    setting("adapter.low_rank.rank", help="Rank of the low-rank update.  [default: the method's]"),
    setting("train.epochs", help="Passes over the training data.  [default: 3, or the recipe's]"),
    setting("train.steps", help="Optimiser steps, in place of epochs."),
    setting("train.batch_size"),
    setting("train.max_tokens", help="Longest record, in tokens.  [default: 1024]"),
    setting("adapter.targets"),
    set_option,
)
"""What a run is of."""
benchmark_options = together(
    option("--languages", default="", callback=split_names, help="As en,sw,ha.  [default: all]"),
    option(
        "--from",
        "folder",
        type=PATH,
        envvar="MLX_HYBRID_DATA",
        help="Local copy of the benchmarks.  [default: $MLX_HYBRID_DATA, else the Hub]",
    ),
)
sampling_options = together(
    option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token."),
    option("--top-p", type=float, default=1.0, show_default=True, help="Sample among the likeliest tokens."),
    option("--top-k", type=int, default=0, help="Sample among so many of the likeliest.  [default: all]"),
    option("--min-p", type=float, default=0.0, help="Least share of the likeliest one's probability."),
    option("--repetition-penalty", type=float, default=1.0, help="Over 1, says less again.  [default: 1]"),
    option("--seed", type=int, help="Same seed, same answers.  [default: a fresh one each time]"),
)
"""How tokens are chosen, alike wherever an answer is made."""
