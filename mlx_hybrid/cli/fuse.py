"""`fuse`: an adapter merged into its base."""

from pathlib import Path
from typing import Any

import click
from click import argument, option

from mlx_hybrid.cli.commands import command
from mlx_hybrid.cli.export import REQUANTISE, moved_base, shared, show


@click.command()
@argument("run", metavar="RUN")
@option("--requantise", is_flag=True, help=REQUANTISE.capitalize())
@moved_base
@shared
def fuse(run: str, output: Path, as_json: bool, **options: Any) -> None:
    """Merge RUN's adapter into the base it was trained on, as a model for MLX.

    The result is bf16: packed weights round small updates away. RUN is a run's name or path, `last`, or an adapter
    folder.

    \b
    Examples:
        mlx-hybrid fuse last -o my-model
    """
    from mlx_hybrid.exports.export import fuse as write

    show(write(run, output, **options), as_json, command("chat", output))
