"""`evaluate`, `predict`, `compare` and `report`: runs and models measured, and what is shown of them."""

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.commands import answer, command, given, tell
from mlx_hybrid.cli.options import COUNT, PATH, SOME, flag, listed, names, option, setting
from mlx_hybrid.errors import INTERRUPTED, ConfigError
from mlx_hybrid.jobs.stopping import StopRequest
from mlx_hybrid.run import Run, find_run


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@option("--on path", "File of records, or a folder with test and valid files.", type=PATH)
@shared.map_option
@option("--task name", "A benchmark: xnli, sib200, flores, ntrex or adapt.")
@option("--split", "Split of the task to measure on.", default="test")
@shared.base_model_option
@option("--dev", "What is calibrated on; never the test set.", default="auto", metavar="PATH|SPLIT|none")
@shared.benchmark_options
@shared.measured_options
@option("--baseline/--no-baseline", "Measure the base too.  [default: on]", default=None)
@option("--seed", "Of limit, variants, intervals.", type=COUNT, default=0)
@flag("--examples", "Write every record's answer beside the results.")
@names("--lm-eval lm_tasks", "Tasks of lm-evaluation-harness, as a,b.")
@option("--lm-eval-tasks lm_folder", "Folder with YAML tasks for --lm-eval.", type=PATH)
@option("-o --output", "For results.  [default: the run's evaluation/]", type=PATH, metavar="DIR")
@shared.json_option
def evaluate(as_json: bool, **options: Any) -> None:
    """Measure a run beside its base, or a model, with 95 % intervals.

    RUN is a run's path or name, `last`, or an adapter's folder or Hub id. Without --on or --task, a run is measured on
    its data's test files, else on the records it held back. After a stop the same command goes on.

    \b
    Examples:
        mlx-hybrid evaluate last --on data/sib200
        mlx-hybrid evaluate last --task sib200 --languages en,sw --variants all
        mlx-hybrid evaluate last --lm-eval arc_easy --limit 100
    """
    from mlx_hybrid.jobs.evaluate import Request, measure, refuse_idle
    from mlx_hybrid.report.result_tables import result_tables
    from mlx_hybrid.report.tables import joined

    refuse_idle(given())
    options["lm_tasks"] = options["lm_tasks"] if "lm_tasks" in given() else None
    results, path, run = measure(Request(**options), tell)
    place = [f"Results in {path}."] if path else []
    target, base = options["target"], options["base_model"]
    then = ["finetune", "--from", target, *(["--model", base] if base else [])]
    if run or "adapted" not in results.models:
        then = ["report", run] if run else ["finetune", "--model", target]
    answer(results.tree(), as_json, joined(result_tables(results)), *place, f"Next: {command(*then)}")


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@click.argument("rows", metavar="FILE")
@names("--options", "Answers to choose from.", metavar="a,b,c")
@shared.map_option
@shared.base_model_option
@option("--dev", "What is calibrated on.", default="auto", metavar="PATH|none")
@option("-o --output", "Write there; an unfinished one goes on.", type=PATH, metavar="FILE")
def predict(output: Path | None, **asked: Any) -> None:
    """Label records, with the calibrated probability of each option.

    FILE is JSONL, CSV or another table, with `prompt`, `messages` or `text`; --map names other columns. Options are
    those given, else `options` in a record, else the labels that the run was trained on. The calibration is the one
    stored with the run, else it is fitted on its validation records and stored.

    \b
    Examples:
        mlx-hybrid predict last tickets.jsonl -o labels.jsonl
        mlx-hybrid predict bundled tickets.csv --options billing,delivery,other
    """
    from mlx_hybrid.jobs import predict as job

    done = job.read_done(output) if output else ()
    for row in job.predict(**asked, done=done, tell=tell):
        with click.open_file(output or "-", "a", encoding="utf-8") as file:
            print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
    if output:
        click.echo(f"Labels in {output}.")


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
    from mlx_hybrid.study.cells import Stopped
    from mlx_hybrid.study.pages import as_text, write_study
    from mlx_hybrid.study.plan import Plan, governance_settings
    from mlx_hybrid.study.study import run_study

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


@click.command()
@click.argument("target", metavar="RUN|COMPARISON")
@option("-o --output", "Write the page of a run there.  [default: in the run]", type=PATH, metavar="FILE")
@flag("--watch", "Write the page anew until the run ends; the browser reloads it.")
@option("--every", "With --watch: how often.", type=SOME, default=10, metavar="SECONDS")
def report(target: str, output: Path | None, watch: bool, every: int) -> None:
    """Make one self-contained page of a run, or the page, tables and figures of a comparison.

    \b
    Examples:
        mlx-hybrid report last --watch
        mlx-hybrid report comparison
    """
    from mlx_hybrid.report.run_page import write_run_page
    from mlx_hybrid.study.pages import rewrite

    if (Path(target) / "plan.json").is_file():
        if output or watch:
            raise ConfigError("-o and --watch take a run; a comparison's files stay in its folder.")
        page = rewrite(Path(target))
        then = f"open {shlex.quote(str(page))}"
    else:
        run, then = find_run(target), command("evaluate", target, "--variants", "all")
        page = follow(run, output, every) if watch else write_run_page(run, output)
    click.echo(f"Page: {page}\nNext: {then}")


def follow(run: Run, output: Path | None, every: int) -> Path:
    """Write the page of a run again and again while it is at work, and once more at its end."""
    from mlx_hybrid.files import write_text
    from mlx_hybrid.report.run_page import run_page, write_run_page

    page, how_often = write_run_page(run, output), f"it is written anew every {every} s"
    tell(f"Open {page}; {how_often} while the run is at work. Ctrl-C ends this, not the run.")
    try:
        while run.status() == "running":
            reload = f'<head>\n<meta http-equiv="refresh" content="{every}">'
            write_text(page, run_page(run).replace("<head>", reload, 1))
            time.sleep(every)
    finally:
        write_run_page(run, output)
    return page
