"""`recipes`: list the recipes that come with the package, show or copy one."""

import shutil
from pathlib import Path

import click

from mlx_hybrid.cli.options import PATH, option
from mlx_hybrid.config import recipes as shipped
from mlx_hybrid.errors import ConfigError


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes that come with the package, show or copy one.

    \b
    Examples:
        mlx-hybrid recipes show quickstart > mine.yaml
        mlx-hybrid recipes copy support-chat
    """
    if ctx.invoked_subcommand is None:
        lines = [f"{name:<24} {shipped.summary(path)}" for name, path in shipped.recipes().items()]
        click.echo("\n".join([*lines, "Next: mlx-hybrid recipes show quickstart"]))


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe; save it, change it, and run it."""
    click.echo(shipped.recipe_path(name).read_text(encoding="utf-8"), nl=False)


@recipes.command()
@click.argument("name")
@option("-o --output", "Folder to copy to.  [default: here]", type=PATH, default=".", metavar="DIR")
def copy(name: str, output: Path) -> None:
    """Copy a recipe and the records that it brings along, to make it your own."""
    copies = {own: output / own.name for own in shipped.recipe_files(name)}
    if there := [new for new in copies.values() if new.exists()]:
        raise ConfigError(f"{there[0]}: exists already; name another folder with -o.")
    output.mkdir(parents=True, exist_ok=True)
    for own, new in copies.items():
        shutil.copyfile(own, new)
        click.echo(f"Copied {new}")
    click.echo(f"Next: {shipped.first_command(next(iter(copies.values())))}")
