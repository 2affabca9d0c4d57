"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path

import click

from mlx_hybrid.config import PRESETS
from mlx_hybrid.errors import nearest


def listed(ctx: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """`a,b` and repeated options alike."""
    return tuple(part.strip() for item in value for part in item.split(",") if part.strip())


def split_names(text: str | None) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


class Method(click.Choice):
    """A preset; a misspelt one names the nearest."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            self.fail(f'unknown method "{value}"; {nearest(value, PRESETS)}', param, ctx)
        return value


PATH = click.Path(path_type=Path)
benchmark_copy = click.option(
    "--from",
    "folder",
    type=PATH,
    envvar="MLX_HYBRID_DATA",
    help="Local copy of the benchmarks.  [default: $MLX_HYBRID_DATA, else the Hub]",
)
benchmark_languages = click.option(
    "--languages", default="", help="Codes with commas between, as en,sw,ha.  [default: all]"
)
english_prompts_option = click.option(
    "--english-prompts", is_flag=True, help="Ask in English whatever the language."
)
base_model_option = click.option(
    "--base-model", metavar="MODEL", help="Put the adapter on this base.  [default: the one it names]"
)
method_option = click.option("--method", type=Method(list(PRESETS)), help="What to train.  [default: hybrid]")


def sampling_options(command: Callable) -> Callable:
    """How tokens are chosen, alike wherever an answer is made."""
    for option in (
        click.option(
            "--top-p", type=float, default=1.0, show_default=True, help="Sample among the likeliest tokens."
        ),
        click.option(
            "--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token."
        ),
    ):
        command = option(command)
    return command
