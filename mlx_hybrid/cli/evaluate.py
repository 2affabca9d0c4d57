"""`evaluate`: a run or a model measured, with intervals."""

import json
from typing import Any

import click

from mlx_hybrid.cli.commands import command, given_parameters
from mlx_hybrid.cli.options import (
    PATH,
    base_model_option,
    benchmark_copy,
    benchmark_languages,
    english_prompts_option,
    split_names,
)


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@click.option("--on", "path", type=PATH, help="JSONL file, or a folder with test.jsonl and valid.jsonl.")
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
@benchmark_languages
@benchmark_copy
@english_prompts_option
@click.option("--variants", help="Spellings to test: names with commas between, or `all`.")
@click.option(
    "--baseline/--no-baseline", default=None, help="Measure the base beside the adapter.  [default: on]"
)
@click.option(
    "--limit", type=click.IntRange(min=0), default=0, help="Most records a language.  [default: all]"
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of limit, variants, intervals."
)
@click.option("--pivot", help="Language the others are held against.  [default: eng_Latn]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of one translation.  [default: 256]")
@click.option("--spbleu", is_flag=True, help="Fetch spBLEU's tokenizer where it is not here yet.")
@click.option("--examples", is_flag=True, help="Write every record's answer beside the results.")
@click.option(
    "--save-temperature", is_flag=True, help="Store the fitted temperature in the adapter's config."
)
@click.option(
    "--lm-eval", "lm_tasks", metavar="TASKS", help="Tasks of lm-evaluation-harness, commas between."
)
@click.option(
    "--lm-eval-tasks", "lm_folder", type=PATH, help="Folder with YAML tasks of your own for --lm-eval."
)
@click.option(
    "-o", "--output", type=PATH, metavar="DIR", help="Folder of results.  [default: the run's evaluation/]"
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
    for name in ("languages", "variants"):
        options[name] = split_names(options[name])
    if options["lm_tasks"] is not None:
        options["lm_tasks"] = split_names(options["lm_tasks"])
    told = measure(Request(**options), lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(told.results.tree(), ensure_ascii=False))
        return
    click.echo(joined(result_tables(told.results)))
    if told.path:
        click.echo(f"Results in {told.path}.")
    click.echo(f"Next: {then(options['target'], told, options['base_model'])}")


def then(target: str, told: Any, base_name: str | None) -> str:
    """The command to go on with: a run's page, or training on from an adapter or a model."""
    if told.run:
        return command("report", told.run)
    if "adapted" not in told.results.models:
        return command("finetune", "--model", target)
    return command("finetune", "--from", target, *(["--model", base_name] if base_name else []))
