"""`recipes`: list the recipes that come with the package, show or copy one."""

import shutil
from pathlib import Path

import click
from click import argument, option

from mlx_hybrid.cli.commands import command
from mlx_hybrid.cli.options import PATH
from mlx_hybrid.config.recipes import recipe_files, recipe_path, summary
from mlx_hybrid.config.recipes import recipes as all_recipes
from mlx_hybrid.errors import ConfigError


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes that come with the package, show or copy one.

    \b
    Examples:
        mlx-hybrid recipes
        mlx-hybrid recipes show quickstart
        mlx-hybrid recipes copy support-chat
    """
    if ctx.invoked_subcommand is None:
        for name, path in all_recipes().items():
            click.echo(f"{name:<24} {summary(path)}")
        click.echo("Next: mlx-hybrid recipes show quickstart")


@recipes.command("show")
@argument("name")
def show_recipe(name: str) -> None:
    """Print a recipe; save it, change it, and run it.

    \b
    Example:
        mlx-hybrid recipes show quickstart > mine.yaml
    """
    click.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)


@recipes.command("copy")
@argument("name")
@option("-o", "--output", type=PATH, default=".", metavar="DIR", help="Folder to copy to.  [default: here]")
def copy_recipe(name: str, output: Path) -> None:
    """Copy a recipe and the records that it brings along, to make it your own.

    \b
    Example:
        mlx-hybrid recipes copy support-chat
    """
    files = recipe_files(name)
    if there := [output / own.name for own in files if (output / own.name).exists()]:
        raise ConfigError(f"{there[0]}: exists already; name another folder with -o.")
    output.mkdir(parents=True, exist_ok=True)
    for own in files:
        shutil.copyfile(own, output / own.name)
        click.echo(f"Copied {output / own.name}")
    click.echo(f"Next: {command('finetune', output / files[0].name)}")
