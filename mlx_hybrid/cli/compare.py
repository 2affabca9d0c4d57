"""`compare`: methods side by side over seeds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click import argument, option

from mlx_hybrid.cli.commands import answer, command, tell
from mlx_hybrid.cli.options import (
    COUNT,
    PATH,
    SOME,
    given_settings,
    listed,
    retain_option,
    set_option,
    setting,
)
from mlx_hybrid.errors import INTERRUPTED, ConfigError
from mlx_hybrid.jobs.stopping import StopRequest

SETTINGS = ("model__name", "data__paths", "data__allow_changed")


def numbers(flag: str, name: str, kind: type, example: str) -> Callable:
    """An option that takes numbers with commas between, each once and in order."""

    def read(ctx: click.Context | None, given: click.Parameter | None, value: tuple[str, ...]) -> tuple:
        try:
            return tuple(sorted({kind(own) for own in listed(ctx, given, value)}))
        except ValueError:
            told = f"write numbers with commas between, as {example}."
            raise ConfigError(f"{flag} {','.join(value)}: {told}") from None

    told = f"To choose from, as {example}.  [default: its own]"
    return option(flag, name, multiple=True, callback=read, help=told)


def names(flag: str, *usual: str, **how: Any) -> Callable:
    """An option that takes names with commas between."""
    return option(flag, multiple=True, default=usual, show_default=bool(usual), callback=listed, **how)


@click.command()
@argument("config", metavar="CONFIG")
@names("--methods", "lora,hybrid", help="With commas; the first is the reference.")
@option("--seeds", type=SOME, default=3, show_default=True, help="Runs of each method.")
@numbers("--lrs", "rates", float, "1e-3,3e-3")
@numbers("--batch-sizes", "batches", int, "4,8,16")
@names("--governance", "own", help="own, off, on, a stage, or steps: each stage added to those before.")
@option("--noise", type=click.FloatRange(0, 0.5), default=0.0, help="Share of faults to plant in records.")
@names("--variants", help="Spellings to test: names with commas between, or `all`.")
@option("--limit", type=COUNT, default=0, help="Most test records a language.  [default: all]")
@option(
    "--workers", type=SOME, default=1, show_default=True, help="Cells at a time, a process each; 1 on a GPU."
)
@retain_option
@option("--pivot", help="Language the others are held against.  [default: eng_Latn]")
@option("--max-tokens", type=SOME, help="Of one translation.  [default: 256]")
@setting("model.name", "--model", help="Base model.  [default: the config's]")
@setting("data.paths", "--data", callback=None, metavar="PATH", help="In place of the config's; repeatable.")
@setting("data.allow_changed", "--allow-changed-data")
@set_option
@option("-o", "--output", type=PATH, required=True, metavar="DIR", help="Folder; an unfinished one goes on.")
@option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def compare(config: str, output: Path, as_json: bool, workers: int, **terms: Any) -> None:
    """Train methods on the same data with the same steps, measure them alike, and tabulate means over seeds.

    Each method's learning rate and batch size are chosen on the validation records alone, in as many trials for each;
    a grid whose end is chosen grows. Every run is kept; the same command goes on after a stop. The folder gets
    report.html, results.csv and figures.

    \b
    Examples:
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
    values = given_settings({name: terms.pop(name) for name in SETTINGS})
    plan = Plan(source=recipe_path(config), values=values, **terms)
    try:
        with StopRequest(tell) as stop:
            summary = run_study(plan, output, stop, workers=workers)
    except Stopped as stopped:
        tell(str(stopped))
        raise SystemExit(INTERRUPTED) from None
    page = write_study(summary, output)
    answer(summary, as_json, as_text(summary), f"Page: {page}", f"Next: {command('report', output)}")
