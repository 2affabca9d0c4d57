"""`predict`: labels for records, with calibrated probabilities."""

import json
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import PATH, names, option
from mlx_hybrid.cli.output import tell


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

    for row in job.predict(**asked, done=job.read_done(output) if output else (), tell=tell):
        with click.open_file(output or "-", "a", encoding="utf-8") as file:
            print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
    if output:
        click.echo(f"Labels in {output}.")
