"""`compare`: methods side by side over seeds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import PATH, SOME, listed, names, option, setting
from mlx_hybrid.cli.output import answer, command, tell
from mlx_hybrid.errors import INTERRUPTED, ConfigError
from mlx_hybrid.training.stopping import StopRequest


def numbers(spelt: str, kind: type, example: str) -> Callable:
    """An option that takes numbers above zero with commas between, each once and in order."""

    def read(ctx: click.Context | None, asked: click.Parameter | None, value: tuple[str, ...]) -> tuple:
        try:
            found = tuple(sorted({kind(own) for own in listed(ctx, asked, value)}))
        except ValueError:
            found = (0,)
        if found and found[0] <= 0:
            told = f"write numbers above zero with commas between, as {example}."
            raise ConfigError(f"{spelt.split()[0]} {','.join(value)}: {told}")
        return found

    return option(spelt, f"To choose from, as {example}.  [default: its own]", multiple=True, callback=read)


@click.command()
@click.argument("config", metavar="CONFIG")
@names("--methods", "With commas; the first is the reference.", default=["lora,hybrid"])
@option("--seeds", "Runs of each method.", type=SOME, default=3)
@numbers("--lrs rates", float, "1e-3,3e-3")
@numbers("--batch-sizes batches", int, "4,8,16")
@names("--governance", "own, off, on, a stage, or steps: each stage added to those before.", default=["own"])
@option("--noise", "Share of faults to plant in records.", type=click.FloatRange(0, 0.5), default=0.0)
@option("--workers", "Cells at a time, a process each; 1 on a GPU.", type=SOME, default=1)
@shared.measured_options
@setting("model.name", "--model", "Base model.  [default: the config's]")
@setting("data.paths", "--data", "In place of the config's; repeatable.", **shared.FILES)
@setting("data.allow_changed", "--allow-changed-data")
@shared.set_option
@option("-o --output", "Folder; an unfinished one goes on.", type=PATH, required=True, metavar="DIR")
@shared.json_option
def compare(config: str, output: Path, as_json: bool, workers: int, **terms: Any) -> None:
    """Train methods on the same data with the same steps, measure them alike, and tabulate means over seeds.

    Each method's learning rate and batch size are chosen on the validation records alone, in as many trials for each; a
    grid whose end is chosen grows. Every run is kept; the same command goes on after a stop. The folder gets
    report.html, results.csv and figures.

    \b
    Examples:
        mlx-hybrid compare compare-sib200 --methods lora,hybrid --seeds 3 -o comparison
        mlx-hybrid compare mine.yaml --methods lora --governance steps --noise 0.3 -o governed
    """
    from mlx_hybrid.config.recipes import recipe_path
    from mlx_hybrid.study.pages import as_text, write_study
    from mlx_hybrid.study.plan import Plan, governance_settings
    from mlx_hybrid.study.study import Stopped, run_study

    terms["governance"] = governance_settings(terms["governance"])
    own = {name: value for name, value in terms.items() if "__" not in name}
    plan = Plan(source=recipe_path(config), values=shared.given_settings(terms), **own)
    try:
        with StopRequest(tell) as stop:
            summary = run_study(plan, output, stop, workers=workers)
    except Stopped as stopped:
        tell(str(stopped))
        raise SystemExit(INTERRUPTED) from None
    page = write_study(summary, output)
    answer(summary, as_json, as_text(summary), f"Page: {page}", f"Next: {command('report', output)}")
