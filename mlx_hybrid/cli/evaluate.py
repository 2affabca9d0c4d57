"""`evaluate`: a run or a model measured, with intervals."""

import json
from typing import Any

import click

from mlx_hybrid.cli.commands import command, given_parameters
from mlx_hybrid.cli.options import COUNT, PATH, base_model_option, benchmark_options, map_option, split_names


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@click.option("--on", "path", type=PATH, help="File of records, or a folder with test and valid files.")
@map_option
@click.option("--task", "name", help="A benchmark: xnli, sib200, flores, ntrex or adapt.")
@click.option("--split", default="test", show_default=True, help="Split of the task to measure on.")
@base_model_option
@click.option(
    "--dev",
    default="auto",
    show_default=True,
    metavar="PATH|SPLIT|none",
    help="Development set, for the temperature and the choice of scoring; never the test set.",
)
@benchmark_options
@click.option("--variants", help="Spellings to test: names with commas between, or `all`.")
@click.option("--baseline/--no-baseline", default=None, help="Measure the base too.  [default: on]")
@click.option("--limit", type=COUNT, default=0, help="Most records a language.  [default: all]")
@click.option("--seed", type=COUNT, default=0, show_default=True, help="Of limit, variants, intervals.")
@click.option("--pivot", help="Language the others are held against.  [default: eng_Latn]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of one translation.  [default: 256]")
@click.option("--examples", is_flag=True, help="Write every record's answer beside the results.")
@click.option("--save-temperature", is_flag=True, help="Store the fitted temperature with the adapter.")
@click.option("--lm-eval", "lm_tasks", metavar="TASKS", help="Tasks of lm-evaluation-harness, as a,b.")
@click.option("--lm-eval-tasks", "lm_folder", type=PATH, help="Folder with YAML tasks for --lm-eval.")
@click.option(
    "-o", "--output", type=PATH, metavar="DIR", help="For results.  [default: the run's evaluation/]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def evaluate(as_json: bool, **options: Any) -> None:
    """Measure a run beside its base, or a model, with 95 % intervals.

    RUN is a run's path or name, `last`, or an adapter's folder or Hub id. Without --on or --task, a run is
    measured on its data's test files, else on the records it held back. Going on after a stop needs only the same
    command.

    \b
    Examples:
        mlx-hybrid evaluate last --on data/sib200
        mlx-hybrid evaluate last --task sib200 --languages en,sw --variants all
        mlx-hybrid evaluate bundled --task flores --languages en,ha --limit 50 -o results
        mlx-hybrid evaluate last --lm-eval arc_easy --limit 100
    """
    from mlx_hybrid.jobs.evaluate import Request, measure, refuse_idle
    from mlx_hybrid.report.result_tables import result_tables
    from mlx_hybrid.report.tables import joined

    refuse_idle({parameter.name: parameter.opts[0] for parameter in given_parameters()})
    for name in ("languages", "variants", "lm_tasks"):
        if name != "lm_tasks" or options[name] is not None:
            options[name] = split_names(options[name])
    results, path, run = measure(Request(**options), lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(results.tree(), ensure_ascii=False))
        return
    click.echo(joined(result_tables(results)))
    if path:
        click.echo(f"Results in {path}.")
    target, base = options["target"], options["base_model"]
    if run:
        words = ["report", run]
    elif "adapted" in results.models:
        words = ["finetune", "--from", target, *(["--model", base] if base else [])]
    else:
        words = ["finetune", "--model", target]
    click.echo(f"Next: {command(*words)}")
