"""`govern`: raw records to data that can be signed for; `govern verify` and `govern forget` on what it made."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click import argument, option

from mlx_hybrid.cli.commands import answer, command, given_options
from mlx_hybrid.cli.options import PATH, given_settings, map_option, rule_option, setting, together
from mlx_hybrid.errors import ConfigError, DataError

CHECKS = ("languages", "licences", "only", "skip", "engine", "near_threshold", "redact", "max_reject_share")
CHECKS += ("min_kept", "workers", "keep")


class WithDefault(click.Group):
    """A group whose first word may be a path: then it is the command `records`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = not args or args[0] in (*self.commands, "-h", "--help")
        return super().parse_args(ctx, args if known else ["records", *args])

    def get_help(self, ctx: click.Context) -> str:
        with click.Context(records, parent=ctx.parent, info_name="govern") as inner:
            return f"{records.get_help(inner)}\n\nSee also: govern verify --help, govern forget --help."


@click.group(cls=WithDefault, context_settings={"help_option_names": ["-h", "--help"]})
def govern() -> None:
    """Check raw records; keep, flag or reject each with a reason."""


@govern.command()
@argument("paths", nargs=-1, required=True, metavar="PATH...")
@option("-o", "--output", type=PATH, metavar="DIR", help="Folder to create.")
@option("--dry-run", is_flag=True, help="Print what would be decided and write nothing.")
@option("--replace", is_flag=True, help="Replace DIR when govern made it.")
@map_option
@rule_option
@setting(
    "governance.against", callback=None, metavar="PATH", help="Evaluation file to keep out; may be repeated."
)
@together(*(setting(f"governance.{name}") for name in CHECKS))
@option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def records(
    paths: tuple[str, ...],
    output: Path | None,
    dry_run: bool,
    renames: tuple[str, ...],
    as_json: bool,
    **how: Any,
) -> None:
    """Check the records of files, folders or Hub data sets; keep, flag or reject each with a reason.

    DIR gets kept.jsonl, rejected.jsonl (untouched, each with its reason), manifest.json (the hash of every file),
    report.html, report.json and a dataset card.

    \b
    Examples:
        mlx-hybrid govern raw.jsonl -o clean
        mlx-hybrid govern raw.jsonl --dry-run
        mlx-hybrid govern raw.jsonl more.parquet -o clean --languages sw,ha --against test.jsonl
        mlx-hybrid govern verify clean
    """
    from mlx_hybrid import api

    if (output is None) is not dry_run:
        raise ConfigError("name a folder with -o DIR, or say --dry-run to write nothing; one of the two.")
    given = {key.removeprefix("governance."): value for key, value in given_settings(how).items()}
    summary = api.govern(paths, output, map=renames, progress=progress, **given)
    answer({**summary, "output": str(output) if output else None}, as_json, *lines(summary))
    if summary["alarms"]:
        raise DataError(f"Governing these for good would stop: {'; '.join(summary['alarms'])}.")
    if not summary["kept"]:
        raise DataError(nothing_kept(summary, output))
    if dry_run and not as_json:
        click.echo(command("govern", *paths, "-o", "clean", *given_options("dry_run")))
    elif not as_json:
        click.echo(command("finetune", "--data", output / "kept.jsonl"))


@govern.command()
@argument("folder", type=PATH, metavar="DIR")
@option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def verify(folder: Path, as_json: bool) -> None:
    """Hash every file of DIR again and compare with its manifest; exit 3 when one has changed.

    \b
    Examples:
        mlx-hybrid govern verify clean
    """
    from mlx_hybrid.governance.folder.manifest import verify as verify_folder

    manifest = verify_folder(folder)
    told = f"{len(manifest['outputs'])} files are as the manifest says."
    answer(manifest, as_json, told, command("finetune", "--data", folder / "kept.jsonl"))


@govern.command()
@argument("folder", type=PATH, metavar="DIR")
@option(
    "--id", "ids", multiple=True, required=True, metavar="ID", help="An id, or path:line; may be repeated."
)
@option(
    "--runs",
    type=PATH,
    envvar="MLX_HYBRID_RUNS",
    default="runs",
    metavar="DIR",
    help="Where runs are kept.  [runs]",
)
@option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def forget(folder: Path, ids: tuple[str, ...], runs: Path, as_json: bool) -> None:
    """Remove a person's records from DIR and from the data of its runs, and list the runs that were trained on them.

    \b
    Examples:
        mlx-hybrid govern forget clean --id user-17 --id raw.jsonl:204
    """
    from mlx_hybrid.governance.folder.changing import forget as forget_records

    done = forget_records(folder, ids, runs)
    lines = [f"Removed {', '.join(f'{count} from {name}' for name, count in done.removed.items())}."]
    if done.left:
        shown = ", ".join(done.left[:5]) + (" …" if len(done.left) > 5 else "")
        lines.append(f"Other lines still name them or their data; forget them by their places too: {shown}.")
    lines += [f"Removed {n} from the data that {run} keeps." for run, n in done.removed_from_runs.items()]
    lines += [f"Trained on them: {run}" for run in done.runs]
    lines += [] if done.runs else [f"No run in {runs} was trained on this folder."]
    lines += [f"Another run holds such a record, and was left alone: {run}" for run in done.other_runs]
    answer(asdict(done), as_json, *lines, command("govern", "verify", folder))


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


def progress(records: int) -> None:
    """The number of records read, on stderr, where somebody is looking."""
    if sys.stderr.isatty():
        click.echo(f"\r{records:,} records", err=True, nl=False)


def lines(summary: dict[str, Any]) -> Iterator[str]:
    """What was read as what, the table of losses by stage, language and reason, and one line of totals."""
    from mlx_hybrid.records.shapes import describe_read

    yield describe_read((source["path"], source["shapes"]) for source in summary["sources"])
    rows = [("stage", "language", "reason", "records")]
    rows += [(row["stage"], row["language"], row["reason"], row["records"]) for row in summary["counts"]]
    rows += [("flag", row["language"], row["flag"], row["records"]) for row in summary["flags"]]
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    for stage, language, reason, count in rows:
        yield (f"{stage:<{first}}  {language:<{second}}  {reason:<{third}}  {count:>8}")
    kept, set_aside = f"{summary['kept']:,} of {summary['records']:,}", f"{summary['rejected']:,}"
    yield f"{kept} records kept, {set_aside} set aside."
