"""`recipes`: list the recipes that come with the package, or show one."""

import click
from click import argument

from mlx_hybrid.config.recipes import recipe_path, summary
from mlx_hybrid.config.recipes import recipes as all_recipes


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes that come with the package, or show one.

    \b
    Examples:
        mlx-hybrid recipes
        mlx-hybrid recipes show quickstart
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
