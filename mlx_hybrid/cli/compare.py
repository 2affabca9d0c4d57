"""`compare`: methods side by side over seeds."""

import json
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.commands import command
from mlx_hybrid.cli.options import PATH, listed
from mlx_hybrid.errors import INTERRUPTED, ConfigError
from mlx_hybrid.jobs.stopping import StopRequest


def rates(ctx: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[float, ...]:
    """Numbers as `listed` takes names, in order."""
    try:
        return tuple(sorted({float(name) for name in listed(ctx, option, value)}))
    except ValueError:
        raise ConfigError(
            f"--lrs {','.join(value)}: write numbers with commas between, as 1e-3,3e-3."
        ) from None


@click.command()
@click.argument("config", metavar="CONFIG")
@click.option(
    "--methods",
    multiple=True,
    default=["lora,hybrid"],
    show_default=True,
    callback=listed,
    help="With commas; the first is the reference.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each method."
)
@click.option(
    "--lrs",
    "rates",
    multiple=True,
    callback=rates,
    help="Learning rates to choose from, as 1e-3,3e-3.  [default: the config's own]",
)
@click.option(
    "--governance",
    multiple=True,
    default=["own"],
    show_default=True,
    metavar="SETTINGS",
    callback=listed,
    help="own, off, on, a stage, or steps: each stage added to those before.",
)
@click.option(
    "--noise",
    type=click.FloatRange(0, 0.5),
    default=0.0,
    help="Share of faults to plant in the training records.",
)
@click.option(
    "--variants",
    multiple=True,
    callback=listed,
    help="Spellings to test: names with commas between, or `all`.",
)
@click.option(
    "--limit", type=click.IntRange(min=0), default=0, help="Most test records a language.  [default: all]"
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cells at a time, each a process that loads the base: one a core, on a CPU; leave 1 on a GPU.",
)
@click.option("--pivot", help="Language the others are held against.  [default: eng_Latn]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of one translation.  [default: 256]")
@click.option("--model", help="Base model.  [default: the config's]")
@click.option("--data", multiple=True, metavar="PATH", help="Data in place of the config's; may be repeated.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Any setting, as train.epochs=2."
)
@click.option("--allow-changed-data", is_flag=True, help="Train on governed files that changed since.")
@click.option(
    "-o", "--output", type=PATH, required=True, metavar="DIR", help="Folder; an unfinished one goes on."
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def compare(
    config: str,
    output: Path,
    as_json: bool,
    workers: int,
    model: str | None,
    data: tuple[str, ...],
    allow_changed_data: bool,
    **terms: Any,
) -> None:
    """Train methods on the same data with the same steps, measure them alike, and tabulate means over seeds.

    Each method's learning rate is chosen on the validation records alone. Every run is kept; the same command goes on
    after a stop. The folder gets report.html, results.csv and figures.

    \b
    Examples:
        mlx-hybrid task sib200 --shots 96 --dev 16 -o data/sib200
        mlx-hybrid compare compare-sib200 --methods lora,hybrid --seeds 3 -o comparison
        mlx-hybrid compare mine.yaml --methods lora,hra,hybrid --lrs 1e-3,3e-3 -o comparison
        mlx-hybrid compare mine.yaml --methods lora --governance steps --noise 0.3 -o governed
    """
    from mlx_hybrid.config.recipes import recipe_path
    from mlx_hybrid.study.cells import Stopped
    from mlx_hybrid.study.pages import as_text, write_study
    from mlx_hybrid.study.plan import Plan, governance_settings
    from mlx_hybrid.study.study import run_study

    terms["governance"] = governance_settings(terms["governance"])
    values = {"model": model, "data.paths": list(data), "data.allow_changed": allow_changed_data}
    plan = Plan(source=recipe_path(config), values={k: v for k, v in values.items() if v}, **terms)
    try:
        with StopRequest(talk) as stop:
            summary = run_study(plan, output, stop, workers=workers)
    except Stopped as stopped:
        talk(str(stopped))
        raise SystemExit(INTERRUPTED) from None
    page = write_study(summary, output)
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    click.echo(as_text(summary))
    click.echo(f"Page: {page}")
    click.echo(f"Next: {command('report', output)}")


def talk(text: str) -> None:
    click.echo(text, err=True)
