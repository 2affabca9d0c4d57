"""Options that several commands share."""

import click

from mlx_hybrid.config import PRESETS
from mlx_hybrid.errors import nearest


def listed(ctx: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """`a,b` and repeated options alike."""
    return tuple(part.strip() for item in value for part in item.split(",") if part.strip())


class Method(click.Choice):
    """A preset; a misspelt one names the nearest."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in self.choices:
            self.fail(f'unknown method "{value}"; {nearest(value, PRESETS)}', param, ctx)
        return value


base_model_option = click.option(
    "--base-model", metavar="MODEL", help="Put the adapter on this base.  [default: the one it names]"
)
calibrated_option = click.option(
    "--calibrated", is_flag=True, help="Sample at the temperature `evaluate --save-temperature` fitted."
)
method_option = click.option("--method", type=Method(list(PRESETS)), help="What to train.  [default: hybrid]")
