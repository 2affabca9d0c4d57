"""`evaluate`: a run or a model measured, with intervals."""

from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import COUNT, PATH, flag, names, option
from mlx_hybrid.cli.output import answer, command, given, tell


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
