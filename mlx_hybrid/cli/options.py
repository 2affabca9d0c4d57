"""Options that several commands share."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import click
import yaml

from mlx_hybrid.config import PRESETS
from mlx_hybrid.errors import ConfigError, nearest

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=0)


def listed(ctx: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """`a,b` and repeated options alike."""
    return split_names(",".join(value))


def split_names(text: str | None) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


class Method(click.Choice):
    """A preset; a misspelt one names the nearest."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            self.fail(f'unknown method "{value}"; {nearest(value, PRESETS)}', param, ctx)
        return value


def together(*parameters: Callable) -> Callable:
    """Several options as one decorator, in this order."""
    return lambda command: reduce(lambda made, parameter: parameter(made), reversed(parameters), command)


method_option = click.option("--method", type=Method(list(PRESETS)), help="What to train.  [default: hybrid]")


def rule_changes(rules: tuple[str, ...]) -> dict[str, Any]:
    """`--rule menu=off --rule long_token.limit=80` as the setting `governance.rules`."""
    pairs = [rule.partition("=") for rule in rules]
    if odd := [name for name, equals, value in pairs if not equals or not value.strip()]:
        raise ConfigError(f"--rule {odd[0]}: write RULE=off or RULE.limit=NUMBER, as menu=off.")
    return {name.strip(): yaml.safe_load(value) for name, _, value in pairs}


base_model_option = click.option(
    "--base-model", metavar="MODEL", help="Put the adapter on this base.  [default: the one it names]"
)
context_option = click.option(
    "--context", type=int, help="Use less of the context, in tokens.  [default: the model's]"
)
map_option = click.option(
    "--map",
    "renames",
    multiple=True,
    callback=listed,
    metavar="THEIRS=OURS",
    help="What keys are read as: question=prompt,answer=completion.",
)
rule_option = click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="RULE=VALUE",
    help="Switch a rule off or move its limit, as menu=off.",
)
run_options = together(
    click.argument("config", required=False, metavar="[CONFIG]"),
    click.option("--model", help="Hub id or folder of the base model.  [default: the recipe's]"),
    click.option(
        "--data", multiple=True, metavar="PATH", help="File of records, folder or Hub data set; repeatable."
    ),
    map_option,
    rule_option,
    method_option,
    click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting, as train.epochs=2."
    ),
)
"""What a run is of."""
benchmark_options = together(
    click.option("--languages", default="", help="Codes with commas between, as en,sw,ha.  [default: all]"),
    click.option(
        "--from",
        "folder",
        type=PATH,
        envvar="MLX_HYBRID_DATA",
        help="Local copy of the benchmarks.  [default: $MLX_HYBRID_DATA, else the Hub]",
    ),
)
sampling_options = together(
    click.option(
        "--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token."
    ),
    click.option(
        "--top-p", type=float, default=1.0, show_default=True, help="Sample among the likeliest tokens."
    ),
    click.option(
        "--top-k", type=int, default=0, help="Sample among so many of the likeliest.  [default: all]"
    ),
    click.option("--min-p", type=float, default=0.0, help="Least share of the likeliest one's probability."),
    click.option(
        "--repetition-penalty", type=float, default=1.0, help="Over 1, says less again.  [default: 1]"
    ),
    click.option("--seed", type=int, help="Same seed, same answers.  [default: a fresh one each time]"),
)
"""How tokens are chosen, alike wherever an answer is made."""


def run_values(
    model: str | None,
    data: tuple[str, ...],
    renames: tuple[str, ...],
    rules: tuple[str, ...],
    method: str | None,
) -> dict:
    """The settings that `run_options` gave."""
    values = {"model": model, "method": method, "data.paths": list(data) or None}
    values |= {"data.map": list(renames) or None, "governance.rules": rule_changes(rules) or None}
    return {key: value for key, value in values.items() if value is not None}
