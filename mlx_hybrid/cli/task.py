"""`task`: a benchmark as records to train on and to measure with."""

from pathlib import Path
from typing import Any

import click
from click import argument, option

from mlx_hybrid.cli.commands import answer, command
from mlx_hybrid.cli.options import COUNT, PATH, benchmark_options


@click.command()
@argument("name")
@option("--split", "splits", multiple=True, help="train, dev or test; may be repeated.  [default: all]")
@option("--shots", type=COUNT, default=0, help="Training records a language.  [default: all]")
@option("--dev", type=COUNT, default=0, help="Development records a language.  [default: all]")
@option("--seed", type=COUNT, default=0, show_default=True, help="Which shots are drawn.")
@benchmark_options
@option("-o", "--output", type=PATH, required=True, metavar="DIR", help="Folder to write.")
@option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def task(name: str, splits: tuple[str, ...], output: Path, as_json: bool, **chosen: Any) -> None:
    """Make a benchmark into records: train.jsonl, valid.jsonl and test.jsonl.

    NAME is xnli, sib200, flores, ntrex or adapt. The folder is what `finetune --data` and `evaluate --on` take.

    \b
    Examples:
        mlx-hybrid task sib200 --shots 32 --dev 32 --languages en,sw,tr -o data/sib200
        mlx-hybrid task xnli --from benchmarks --languages en,fr -o data/xnli
    """
    from mlx_hybrid.evaluation.benchmarks.folders import Choice, write_task

    told = write_task(name, output, Choice(**chosen), splits)
    lines = [
        f"{output / row['file']}  {split}: {row['records']} records in {', '.join(row['languages'])}"
        for split, row in told["splits"].items()
    ]
    words = ("finetune", "--data") if "train" in told["splits"] else ("evaluate", "last", "--on")
    answer(told, as_json, *lines, f"Next: {command(*words, output)}")
