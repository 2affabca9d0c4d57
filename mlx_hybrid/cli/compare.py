"""`compare` and `report`: methods side by side over seeds, and pages to read."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.commands import command
from mlx_hybrid.errors import INTERRUPTED, ConfigError

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("config", metavar="CONFIG")
@click.option(
    "--methods", default="lora,hybrid", show_default=True, help="With commas; the first is the reference."
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each method."
)
@click.option("--lrs", help="Learning rates to choose from, as 1e-3,3e-3.  [default: the config's own]")
@click.option(
    "--governance", default="own", show_default=True, metavar="SETTINGS",
    help="own, off, on, a stage, or steps: each stage added to those before.",
)  # fmt: skip
@click.option(
    "--budget", type=click.Choice(("steps", "params", "time")), default="steps", show_default=True,
    help="What the methods have equal: steps alone, parameters too, or training time.",
)  # fmt: skip
@click.option("--noise", type=float, default=0.0, help="Share of faults to plant in the training records.")
@click.option("--variants", help="Spellings to test: names with commas between, or `all`.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=0, help="Most test records a language.  [default: all]"
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True,
    help="Cells at a time, each a process that loads the base: one a core, on a CPU; leave 1 on a GPU.",
)  # fmt: skip
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
def compare(config: str, output: Path, as_json: bool, workers: int, **options: Any) -> None:
    """Train methods on the same data with the same steps, measure them alike, and tabulate means over seeds.

    Each method's learning rate is chosen on the validation records alone. Every run is kept; the same command goes on
    after a stop. The folder gets report.html, report.md, results.csv and figures.

    \b
    Examples:
        mlx-hybrid compare quickstart --methods lora,hybrid --seeds 3 -o comparison
        mlx-hybrid compare mine.yaml --methods lora,hra,hybrid --lrs 1e-3,3e-3 --budget params -o comparison
        mlx-hybrid compare mine.yaml --methods lora --governance steps --noise 0.3 -o governed
    """
    from mlx_hybrid.cli.finetune import StopRequest
    from mlx_hybrid.study.cells import Stopped
    from mlx_hybrid.study.pages import write_comparison

    plan = make_plan(config, options)
    if workers > 1 and plan.budget == "time":
        raise ConfigError(
            "--workers: cells that share the machine say nothing of --budget time; leave one of them."
        )
    try:
        with StopRequest(talk) as stop:
            summary = run_plan(plan, output, stop, workers)
    except Stopped as stopped:
        talk(str(stopped))
        raise SystemExit(INTERRUPTED) from None
    page = write_comparison(summary, output)
    show(summary, page, as_json)


def make_plan(config: str, options: dict) -> Any:
    """The plan that the options ask for."""
    from mlx_hybrid.recipes_folder import recipe_path
    from mlx_hybrid.study.plan import Plan, governance_settings

    given = {"model": options["model"], "data.paths": list(options["data"]) or None}
    given |= {"data.allow_changed": options["allow_changed_data"] or None}
    return Plan(
        source=recipe_path(config), overrides=options["overrides"],
        values={key: value for key, value in given.items() if value is not None},
        methods=names(options["methods"]), seeds=options["seeds"], rates=rates(options["lrs"]),
        governance=governance_settings(names(options["governance"])), budget=options["budget"], noise=options["noise"],
        limit=options["limit"], variants=names(options["variants"] or ""), pivot=options["pivot"] or "",
        max_tokens=options["max_tokens"] or 0,
    )  # fmt: skip


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def rates(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(sorted({float(name) for name in names(text or "")}))
    except ValueError:
        raise ConfigError(f"--lrs {text}: write numbers with commas between, as 1e-3,3e-3.") from None


def run_plan(plan: Any, output: Path, stop: Any, workers: int) -> dict:
    from mlx_hybrid.study.study import compare as compare_methods

    return compare_methods(plan, output, make_tools(tell=talk, stop=stop, workers=workers, apart=tools_apart))


def make_tools(**more: Any) -> Any:
    from mlx_hybrid.jobs import finetune as job
    from mlx_hybrid.study.cells import Tools

    return Tools(train=job.finetune, open_run=open_run, open_base=open_base, **more)


@contextmanager
def tools_apart() -> Iterator[Any]:
    """Of a process that works on one cell: silent, and stopped by the same Ctrl-C."""
    from mlx_hybrid.cli.finetune import StopRequest

    with StopRequest(str) as stop:
        yield make_tools(stop=stop)


def open_run(run: Any, model: str) -> tuple[Any, Any, dict]:
    """A run's best adapter on its base, ready to be measured."""
    from hashlib import sha256

    from mlx_hybrid.adapters.attach import settle
    from mlx_hybrid.models.adapted import load_run

    loaded = load_run(run, base_name=model)
    weights = sha256((run.adapter / "adapters.safetensors").read_bytes()).hexdigest()
    return settle(loaded.model), loaded.tokenizer, {"base": loaded.base["fingerprint"], "adapter": weights}


def open_base(model: str) -> tuple[Any, Any, dict]:
    from mlx_hybrid.models.base import load_base

    base = load_base(model)
    return base.model, base.tokenizer, {"base": base.identity["fingerprint"]}


def talk(text: str) -> None:
    click.echo(text, err=True)


def show(summary: dict, page: Path, as_json: bool) -> None:
    from mlx_hybrid.report.tables import joined
    from mlx_hybrid.study.tables import comparison_tables, reading

    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    click.echo(reading(summary) + "\n")
    click.echo(joined(comparison_tables(summary)))
    click.echo(f"Page: {page}")
    click.echo(f"Next: {command('report', page.parent)}")


@click.command()
@click.argument("target", metavar="RUN|COMPARISON")
@click.option(
    "-o", "--output", type=PATH, metavar="FILE", help="Write the page of a run there.  [default: in the run]"
)
def report(target: str, output: Path | None) -> None:
    """Make one self-contained page of a run, or the page, tables and figures of a comparison.

    \b
    Examples:
        mlx-hybrid report last
        mlx-hybrid report comparison
        mlx-hybrid report last -o share/report.html
    """
    from mlx_hybrid.study.study import SUMMARY_FILE

    folder = Path(target)
    if (folder / "plan.json").is_file():
        if output:
            raise ConfigError("-o takes the page of a run; a comparison's files stay in its folder.")
        if not (folder / SUMMARY_FILE).is_file():
            raise ConfigError(
                f"{folder}: its comparison is not finished; the command that began it goes on with it."
            )
        from mlx_hybrid.files import read_json
        from mlx_hybrid.study.pages import write_comparison

        click.echo(f"Page: {write_comparison(read_json(folder / SUMMARY_FILE), folder)}")
        click.echo(f"Next: open {shlex.quote(str(folder / 'report.html'))}")
        return
    page = write_page(target, output)
    click.echo(f"Page: {page}")
    click.echo(f"Next: {command('evaluate', target, '--variants', 'all')}")


def write_page(target: str, output: Path | None) -> Path:
    from mlx_hybrid.files import write_text
    from mlx_hybrid.report.run_page import run_page
    from mlx_hybrid.run import find_run

    run = find_run(target)
    page = output or run.path / "report.html"
    if not page.parent.is_dir():
        raise ConfigError(f"{page.parent}: no such folder.")
    write_text(page, run_page(run))
    return page
