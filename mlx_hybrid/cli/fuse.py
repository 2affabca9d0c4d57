"""`fuse`: an adapter merged into its base."""

from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.export import REQUANTISE, moved_base, show_report, written_options
from mlx_hybrid.cli.options import flag


@click.command()
@click.argument("run", metavar="RUN")
@flag("--requantise", REQUANTISE.capitalize())
@moved_base
@written_options
def fuse(run: str, output: Path, as_json: bool, **options: Any) -> None:
    """Merge RUN's adapter into the base it was trained on, as a model for MLX.

    The result is bf16: packed weights round small updates away.

    \b
    Examples:
        mlx-hybrid fuse last -o my-model
    """
    from mlx_hybrid import api

    show_report(api.export(run, "fuse", output, **options), as_json, "chat", output)
