"""`task`: a benchmark as records to train on and to measure with."""

import json
from pathlib import Path

import click

from mlx_hybrid.cli.commands import command
from mlx_hybrid.cli.options import (
    PATH,
    benchmark_copy,
    benchmark_languages,
    english_prompts_option,
    split_names,
)


@click.command()
@click.argument("name")
@click.option("--split", "splits", multiple=True, help="train, dev or test; may be repeated.  [default: all]")
@click.option(
    "--shots", type=click.IntRange(min=0), default=0, help="Training records a language.  [default: all]"
)
@click.option(
    "--dev", type=click.IntRange(min=0), default=0, help="Development records a language.  [default: all]"
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which shots are drawn."
)
@benchmark_languages
@benchmark_copy
@english_prompts_option
@click.option("-o", "--output", type=PATH, required=True, metavar="DIR", help="Folder to write.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def task(
    name: str,
    splits: tuple[str, ...],
    shots: int,
    dev: int,
    seed: int,
    languages: str,
    folder: Path | None,
    english_prompts: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Make a benchmark into records: train.jsonl, valid.jsonl and test.jsonl.

    NAME is xnli, sib200, flores, ntrex or adapt. The folder is what `finetune --data` and `evaluate --on` take.

    \b
    Examples:
        mlx-hybrid task sib200 --shots 32 --dev 32 --languages en,sw,tr -o data/sib200
        mlx-hybrid task xnli --from benchmarks --languages en,fr -o data/xnli
        mlx-hybrid task flores --languages en,ha -o data/flores
    """
    from mlx_hybrid.evaluation.benchmarks.folders import Choice, write_task

    part = Choice(
        languages=split_names(languages),
        seed=seed,
        english_prompts=english_prompts,
        folder=folder,
        shots=shots,
        dev=dev,
    )
    told = write_task(name, output, part, splits)
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False))
        return
    for split, row in told["splits"].items():
        codes = ", ".join(row["languages"])
        click.echo(f"{output / row['file']}  {split}: {row['records']} records in {codes}")
    trains = "train" in told["splits"]
    click.echo(
        f"Next: {command('finetune', '--data', output) if trains else command('evaluate', 'last', '--on', output)}"
    )
