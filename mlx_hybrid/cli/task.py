"""`task`: a benchmark as records to train on and to measure with."""

from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import COUNT, PATH, option
from mlx_hybrid.cli.output import answer, command


@click.command()
@click.argument("name")
@option("--split splits", "train, dev or test; may be repeated.  [default: all]", multiple=True)
@option("--shots", "Training records a language.  [default: all]", type=COUNT, default=0)
@option("--dev", "Development records a language.  [default: all]", type=COUNT, default=0)
@option("--seed", "Which shots are drawn.", type=COUNT, default=0)
@shared.benchmark_options
@option("-o --output", "Folder to write.", type=PATH, required=True, metavar="DIR")
@shared.json_option
def task(name: str, splits: tuple[str, ...], output: Path, as_json: bool, **chosen: Any) -> None:
    """Make a benchmark into records: train.jsonl, valid.jsonl and test.jsonl.

    NAME is xnli, sib200, flores, ntrex or adapt. The folder is what `finetune --data` and `evaluate --on` take.

    \b
    Examples:
        mlx-hybrid task sib200 --shots 32 --dev 32 --languages en,sw,tr -o data/sib200
    """
    from mlx_hybrid.evaluation.benchmarks.tasks import write_task

    told = write_task(name, output, splits=splits, **chosen)
    lines = [
        f"{output / row['file']}  {split}: {row['records']} records in {', '.join(row['languages'])}"
        for split, row in told["splits"].items()
    ]
    words = ("finetune", "--data") if "train" in told["splits"] else ("evaluate", "last", "--on")
    answer(told, as_json, *lines, f"Next: {command(*words, output)}")
