"""`evaluate`: a run beside its base, or a model, measured."""

import json
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.commands import command, given_parameters
from mlx_hybrid.cli.options import base_model_option
from mlx_hybrid.errors import ConfigError

PATH = click.Path(path_type=Path)
COPY = click.option(
    "--from", "folder", type=PATH, envvar="MLX_HYBRID_DATA",
    help="Local copy of the benchmarks.  [default: $MLX_HYBRID_DATA, else the Hub]",
)  # fmt: skip
LANGUAGES = click.option(
    "--languages", default="", help="Codes with commas between, as en,sw,ha.  [default: all]"
)
ENGLISH = click.option("--english-prompts", is_flag=True, help="Ask in English whatever the language.")


def choice(
    languages: str, seed: int, english: bool, folder: Path | None, *, shots: int = 0, dev: int = 0
) -> Any:
    from mlx_hybrid.evaluation.benchmarks.folders import Choice

    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--from {folder}: no such folder.")
    codes = tuple(code.strip() for code in languages.split(",") if code.strip())
    return Choice(languages=codes, shots=shots, dev=dev, seed=seed, english_prompts=english, folder=folder)


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@click.option("--on", "path", type=PATH, help="JSONL file, or a folder with test.jsonl and valid.jsonl.")
@click.option("--task", "name", help="A benchmark: xnli, sib200, flores, ntrex or adapt.")
@click.option("--split", default="test", show_default=True, help="Split of the task to measure on.")
@base_model_option
@click.option(
    "--dev", default="auto", show_default=True, metavar="PATH|SPLIT|none",
    help="Development set, for the temperature and the choice of scoring; never the test set.",
)  # fmt: skip
@LANGUAGES
@COPY
@ENGLISH
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
def evaluate(target: str, output: Path | None, as_json: bool, **options: Any) -> None:
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
    from mlx_hybrid.cli.harness import measure_tasks
    from mlx_hybrid.jobs.evaluate import measure, refuse_idle
    from mlx_hybrid.report.result_tables import result_tables
    from mlx_hybrid.report.tables import joined

    refuse_idle({parameter.name: parameter.opts[0] for parameter in given_parameters()})
    run = measure if options["lm_tasks"] is None else measure_tasks
    told = run(target, output, options, lambda text: click.echo(text, err=True))
    if as_json:
        click.echo(json.dumps(told.results, ensure_ascii=False))
        return
    click.echo(joined(result_tables(told.results)))
    if told.path:
        click.echo(f"Results in {told.path}.")
    click.echo(f"Next: {then(target, told, options['base_model'])}")


def then(target: str, told: Any, base_name: str | None) -> str:
    """The command to go on with: a run's page, or training on from an adapter or a model."""
    if told.run:
        return command("report", told.run)
    adapted = "adapted" in told.results.get("models", told.results.get("lm_eval", ()))
    if not adapted:
        return command("finetune", "--model", target)
    return command("finetune", "--from", target, *(["--model", base_name] if base_name else []))
