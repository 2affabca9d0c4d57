"""`predict`: labels for records, with calibrated probabilities."""

import json
from pathlib import Path
from typing import Any

import click
from click import argument, option

from mlx_hybrid.cli.commands import tell
from mlx_hybrid.cli.options import PATH, base_model_option, listed, map_option
from mlx_hybrid.errors import INTERRUPTED


@click.command()
@argument("target", metavar="RUN|MODEL")
@argument("rows", metavar="FILE")
@option("--options", multiple=True, callback=listed, metavar="a,b,c", help="Answers to choose from.")
@map_option
@base_model_option
@option("--dev", default="auto", show_default=True, metavar="PATH|none", help="What is calibrated on.")
@option("-o", "--output", type=PATH, metavar="FILE", help="Write there; an unfinished one goes on.")
def predict(output: Path | None, **asked: Any) -> None:
    """Label records, with the calibrated probability of each option.

    FILE is JSONL, CSV or another table, with `prompt`, `messages` or `text`; --map names other columns. Options are
    those given, else `options` in a record, else the labels that the run was trained on. The calibration is the one
    stored with the run, else it is fitted on its validation records and stored.

    \b
    Examples:
        mlx-hybrid predict last tickets.jsonl -o labels.jsonl
        mlx-hybrid predict last tickets.csv --map question=prompt
        mlx-hybrid predict bundled tickets.csv --options billing,delivery,other
    """
    from mlx_hybrid.jobs import predict as job

    if output is None:
        for row in job.predict(**asked, tell=tell):
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    done = job.read_done(output)
    try:
        for row in job.predict(**asked, done=done, tell=tell):
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except KeyboardInterrupt:
        tell(f"Stopped; {output} keeps what is labelled, and the same command goes on.")
        raise SystemExit(INTERRUPTED) from None
    click.echo(f"Labels in {output}.")
