"""`govern`: raw records to data that can be signed for; `govern verify` and `govern forget` on what it made."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.commands import command, given_options
from mlx_hybrid.cli.options import listed, map_option, rule_changes, rule_option
from mlx_hybrid.errors import ConfigError, DataError


class WithDefault(click.Group):
    """A group whose first word may be a path: then it is the command `records`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        helps = {"-h", "--help"} & set(args[:1])
        if args and args[0] not in self.commands and not helps:
            args = ["records", *args]
        return super().parse_args(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        with click.Context(records, parent=ctx.parent, info_name="govern") as inner:
            return f"{records.get_help(inner)}\n\nSee also: govern verify --help, govern forget --help."


@click.group(cls=WithDefault, context_settings={"help_option_names": ["-h", "--help"]})
def govern() -> None:
    """Check raw records; keep, flag or reject each with a reason."""


@govern.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to create.")
@click.option("--dry-run", is_flag=True, help="Print what would be decided and write nothing.")
@click.option("--replace", is_flag=True, help="Replace DIR when govern made it.")
@map_option
@click.option(
    "--languages", multiple=True, callback=listed, metavar="CODES", help="Keep only these, as sw,ha."
)
@click.option("--licences", multiple=True, callback=listed, metavar="NAMES", help="Keep only these licences.")
@click.option(
    "--against", multiple=True, metavar="PATH", help="Evaluation file to keep out; may be repeated."
)
@click.option("--only", multiple=True, callback=listed, metavar="STAGES", help="Run only these stages.")
@click.option("--skip", multiple=True, callback=listed, metavar="STAGES", help="Leave out these stages.")
@rule_option
@click.option("--keep", multiple=True, callback=listed, metavar="IDS", help="Keep these whatever is found.")
@click.option("--engine", metavar="NAME", help="py3langid, or fasttext:MODEL (path, preset or Hub id).")
@click.option(
    "--near-threshold", type=float, metavar="J", help="Jaccard from which a record is a copy.  [0.8]"
)
@click.option("--redact", is_flag=True, default=None, help="Replace personal data and secrets by their type.")
@click.option("--max-reject-share", type=float, metavar="SHARE", help="Most that a language may lose.  [0.3]")
@click.option("--min-kept", type=int, metavar="N", help="Fewest records a language may be left with.  [0]")
@click.option("--workers", type=int, metavar="N", help="Processes; 0 is one a core.  [0]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def records(
    paths: tuple[str, ...],
    output: Path | None,
    dry_run: bool,
    replace: bool,
    renames: tuple[str, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """Check the records of files, folders or Hub data sets; keep, flag or reject each with a reason.

    DIR gets kept.jsonl, rejected.jsonl (untouched, each with its reason), manifest.json (the hash of every file),
    report.html, report.json, a dataset card and its Croissant description.

    \b
    Examples:
        mlx-hybrid govern raw.jsonl -o clean
        mlx-hybrid govern raw.jsonl --dry-run
        mlx-hybrid govern raw.jsonl more.parquet -o clean --languages sw,ha --against test.jsonl
        mlx-hybrid govern verify clean
        mlx-hybrid govern forget clean --id user-17
    """
    from mlx_hybrid import api

    if (output is None) is not dry_run:
        raise ConfigError("name a folder with -o DIR, or say --dry-run to write nothing; one of the two.")
    settings["rules"] = rule_changes(settings["rules"])
    given = {key: value for key, value in settings.items() if value not in (None, (), {})}
    summary = api.govern(paths, output, replace=replace, map=renames, progress=Progress(), **given)
    if as_json:
        click.echo(json.dumps({**summary, "output": str(output) if output else None}, ensure_ascii=False))
    else:
        show(summary)
    if summary["alarms"]:
        raise DataError(f"Governing these for good would stop: {'; '.join(summary['alarms'])}.")
    if not summary["kept"]:
        raise DataError(nothing_kept(summary, output))
    if not as_json:
        click.echo(
            command("govern", *paths, "-o", "clean", *given_options("dry_run"))
            if dry_run
            else command("finetune", "--data", output / "kept.jsonl")
        )


@govern.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def verify(folder: Path, as_json: bool) -> None:
    """Hash every file of DIR again and compare with its manifest; exit 3 when one has changed.

    \b
    Examples:
        mlx-hybrid govern verify clean
    """
    from mlx_hybrid.governance.folder.manifest import verify as verify_folder

    manifest = verify_folder(folder)
    if as_json:
        click.echo(json.dumps(manifest, ensure_ascii=False))
        return
    click.echo(f"{len(manifest['outputs'])} files are as the manifest says.")
    click.echo(command("finetune", "--data", folder / "kept.jsonl"))


@govern.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--id", "ids", multiple=True, required=True, metavar="ID", help="An id, or path:line; may be repeated."
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    envvar="MLX_HYBRID_RUNS",
    default=Path("runs"),
    metavar="DIR",
    help="Where runs are kept.  [runs]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def forget(folder: Path, ids: tuple[str, ...], runs: Path, as_json: bool) -> None:
    """Remove a person's records from DIR and from the data of its runs, and list the runs that were trained on them.

    \b
    Examples:
        mlx-hybrid govern forget clean --id user-17
        mlx-hybrid govern forget clean --id user-17 --id raw.jsonl:204
    """
    from mlx_hybrid.governance.folder.forgetting import forget as forget_records

    done = forget_records(folder, ids, runs)
    if as_json:
        click.echo(json.dumps(asdict(done), ensure_ascii=False))
        return
    click.echo(f"Removed {', '.join(f'{count} from {name}' for name, count in done.removed.items())}.")
    if done.left:
        shown = ", ".join(done.left[:5]) + (" …" if len(done.left) > 5 else "")
        click.echo(f"Other lines still name them or their data; forget them by their places too: {shown}.")
    for run, count in done.removed_from_runs.items():
        click.echo(f"Removed {count} from the data that {run} keeps.")
    for run in done.runs:
        click.echo(f"Trained on them: {run}")
    if not done.runs:
        click.echo(f"No run in {runs} was trained on this folder.")
    for run in done.other_runs:
        click.echo(f"Another run holds such a record, and was left alone: {run}")
    click.echo(command("govern", "verify", folder))


def nothing_kept(summary: dict[str, Any], output: Path | None) -> str:
    """Why no record is left, and what to do."""
    if not summary["records"]:
        return "There is no record in these files."
    taken = Counter[str]()
    for row in summary["counts"]:
        taken[row["reason"]] += row["records"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in taken.most_common())
    look = f"look at {output / 'report.html'}, " if output else ""
    return (
        f"None of the {summary['records']:,} records was kept ({reasons}): {look}see `mlx-hybrid rules "
        f"{taken.most_common(1)[0][0]}`, and switch a rule off with --rule NAME=off."
    )


class Progress:
    """The number of records read, on stderr, where somebody is looking."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, records: int) -> None:
        import sys

        if records - self.shown >= 20_000 and sys.stderr.isatty():
            self.shown = records
            click.echo(f"\r{records:,} records", err=True, nl=False)


def show(summary: dict[str, Any]) -> None:
    """What was read as what, the table of losses by stage, language and reason, and one line of totals."""
    from mlx_hybrid.records.shapes import describe_read

    click.echo(describe_read((source["path"], source["shapes"]) for source in summary["sources"]))
    rows = [("stage", "language", "reason", "records")]
    rows += [(row["stage"], row["language"], row["reason"], str(row["records"])) for row in summary["counts"]]
    rows += [("flag", row["language"], row["flag"], str(row["records"])) for row in summary["flags"]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        click.echo(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>8}")
    click.echo(
        f"{summary['kept']:,} of {summary['records']:,} records kept, {summary['rejected']:,} set aside."
    )
