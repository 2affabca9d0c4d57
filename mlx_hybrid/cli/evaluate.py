"""`evaluate`: a run or a model measured, with intervals."""

from typing import Any

import click
from click import argument, option

from mlx_hybrid.cli.commands import answer, command, given_parameters, tell
from mlx_hybrid.cli.options import (
    COUNT,
    PATH,
    SOME,
    base_model_option,
    benchmark_options,
    map_option,
    retain_option,
    split_names,
)


@click.command()
@argument("target", metavar="RUN|MODEL")
@option("--on", "path", type=PATH, help="File of records, or a folder with test and valid files.")
@map_option
@option("--task", "name", help="A benchmark: xnli, sib200, flores, ntrex or adapt.")
@option("--split", default="test", show_default=True, help="Split of the task to measure on.")
@base_model_option
@option(
    "--dev",
    default="auto",
    show_default=True,
    metavar="PATH|SPLIT|none",
    help="What is calibrated on; never the test set.",
)
@benchmark_options
@option("--variants", default="", callback=split_names, help="Spellings to test, as a,b, or `all`.")
@option("--baseline/--no-baseline", default=None, help="Measure the base too.  [default: on]")
@option("--limit", type=COUNT, default=0, help="Most records a language.  [default: all]")
@option("--seed", type=COUNT, default=0, show_default=True, help="Of limit, variants, intervals.")
@option("--pivot", help="Language the others are held against.  [default: eng_Latn]")
@option("--max-tokens", type=SOME, help="Of one translation.  [default: 256]")
@retain_option
@option("--examples", is_flag=True, help="Write every record's answer beside the results.")
@option("--lm-eval", "lm_tasks", callback=split_names, help="Tasks of lm-evaluation-harness, as a,b.")
@option("--lm-eval-tasks", "lm_folder", type=PATH, help="Folder with YAML tasks for --lm-eval.")
@option("-o", "--output", type=PATH, metavar="DIR", help="For results.  [default: the run's evaluation/]")
@option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def evaluate(as_json: bool, **options: Any) -> None:
    """Measure a run beside its base, or a model, with 95 % intervals.

    RUN is a run's path or name, `last`, or an adapter's folder or Hub id. Without --on or --task, a run is
    measured on its data's test files, else on the records it held back. Going on after a stop needs only the same
    command.

    \b
    Examples:
        mlx-hybrid evaluate last --on data/sib200
        mlx-hybrid evaluate last --task sib200 --languages en,sw --variants all
        mlx-hybrid evaluate last --lm-eval arc_easy --limit 100
    """
    from mlx_hybrid.jobs.evaluate import Request, measure, refuse_idle
    from mlx_hybrid.report.result_tables import result_tables
    from mlx_hybrid.report.tables import joined

    refuse_idle({parameter.name: parameter.opts[0] for parameter in given_parameters()})
    results, path, run = measure(Request(**options), tell)
    place = [f"Results in {path}."] if path else []
    target, base = options["target"], options["base_model"]
    if run:
        words = ["report", run]
    elif "adapted" in results.models:
        words = ["finetune", "--from", target, *(["--model", base] if base else [])]
    else:
        words = ["finetune", "--model", target]
    answer(results.tree(), as_json, joined(result_tables(results)), *place, f"Next: {command(*words)}")
