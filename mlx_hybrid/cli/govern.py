"""`govern`: raw records to data that can be signed for; `govern verify` and `govern forget` on what it made."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import PATH, flag, option, setting
from mlx_hybrid.cli.output import answer, command, tell, typed
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.records.shapes import describe_read

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
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@option("-o --output", "Folder to create.", type=PATH, metavar="DIR")
@flag("--dry-run", "Print what would be decided and write nothing.")
@flag("--replace", "Replace DIR when govern made it.")
@shared.map_option
@shared.rule_option
@setting("governance.against", "", "Evaluation file to keep out; may be repeated.", **shared.FILES)
@shared.together(*(setting(f"governance.{name}") for name in CHECKS))
@shared.json_option
def records(paths: tuple[str, ...], output: Path | None, dry_run: bool, as_json: bool, **how: Any) -> None:
    """Check the records of files, folders or Hub data sets; keep, flag or reject each with a reason.

    DIR gets kept.jsonl, rejected.jsonl (untouched, each with its reason), manifest.json (the hash of every file),
    report.html, report.json and a dataset card.

    \b
    Examples:
        mlx-hybrid govern raw.jsonl -o clean
        mlx-hybrid govern raw.jsonl --dry-run
        mlx-hybrid govern raw.jsonl more.parquet -o clean --languages sw,ha --against test.jsonl
    """
    from mlx_hybrid import api

    if (output is None) is not dry_run:
        raise ConfigError("name a folder with -o DIR, or say --dry-run to write nothing; one of the two.")
    given = {key.removeprefix("governance."): value for key, value in shared.given_settings(how).items()}
    given["progress"] = lambda records: sys.stderr.isatty() and tell(f"\r{records:,} records", nl=False)
    summary = api.govern(paths, output, replace=how["replace"], map=how["renames"], **given)
    answer({**summary, "output": str(output) if output else None}, as_json, *lines(summary))
    if summary["alarms"]:
        raise DataError(f"Governing these for good would stop: {'; '.join(summary['alarms'])}.")
    if not summary["kept"]:
        raise DataError(nothing_kept(summary, output))
    if not as_json:
        again = ("govern", *typed("--dry-run"), "-o", "clean")
        click.echo(command(*again) if dry_run else command("finetune", "--data", output / "kept.jsonl"))


@govern.command()
@click.argument("folder", type=PATH, metavar="DIR")
@shared.json_option
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
@click.argument("folder", type=PATH, metavar="DIR")
@option("--id ids", "An id, or path:line; may be repeated.", multiple=True, required=True, metavar="ID")
@option("--runs", "Where runs are kept.", type=PATH, envvar="MLX_HYBRID_RUNS", default="runs", metavar="DIR")
@shared.json_option
def forget(folder: Path, ids: tuple[str, ...], runs: Path, as_json: bool) -> None:
    """Remove a person's records from DIR and from the data of its runs, and list the runs that were trained on them.

    \b
    Examples:
        mlx-hybrid govern forget clean --id user-17 --id raw.jsonl:204
    """
    from mlx_hybrid.governance.folder.changing import forget as forget_records

    done = forget_records(folder, ids, runs)
    lines = [f"Removed {', '.join(f'{count} from {name}' for name, count in done['removed'].items())}."]
    if done["left"]:
        shown = ", ".join(done["left"][:5]) + (" …" if len(done["left"]) > 5 else "")
        lines.append(f"Other lines still name them or their data; forget them by their places too: {shown}.")
    lines += [f"Removed {n} from the data that {run} keeps." for run, n in done["removed_from_runs"].items()]
    none = [f"No run in {runs} was trained on this folder."]
    lines += [f"Trained on them: {run}" for run in done["runs"]] or none
    lines += [f"Another run holds such a record, and was left alone: {run}" for run in done["other_runs"]]
    answer(done, as_json, *lines, command("govern", "verify", folder))


def nothing_kept(summary: dict[str, Any], output: Path | None) -> str:
    """Why no record is left, and what to do."""
    from mlx_hybrid.governance.folder.reports import totals

    if not summary["records"]:
        return "There is no record in these files."
    taken = totals((row["reason"], row["records"]) for row in summary["counts"])
    reasons = ", ".join(f"{reason} {count}" for reason, count in taken.most_common())
    look = f"look at {output / 'report.html'}, " if output else ""
    told = f"None of the {summary['records']:,} records was kept ({reasons}): {look}see `mlx-hybrid rules "
    return f"{told}{taken.most_common(1)[0][0]}`, and switch a rule off with --rule NAME=off."


def lines(summary: dict[str, Any]) -> Iterator[str]:
    """What was read as what, the table of losses by stage, language and reason, and one line of totals."""
    yield describe_read((source["path"], source["shapes"]) for source in summary["sources"])
    rows = [("stage", "language", "reason", "records")]
    rows += [(row["stage"], row["language"], row["reason"], row["records"]) for row in summary["counts"]]
    rows += [("flag", row["language"], row["flag"], row["records"]) for row in summary["flags"]]
    first, second, third = (max(len(row[column]) for row in rows) for column in range(3))
    for stage, language, reason, count in rows:
        yield (f"{stage:<{first}}  {language:<{second}}  {reason:<{third}}  {count:>8}")
    yield f"{summary['kept']:,} of {summary['records']:,} records kept, {summary['rejected']:,} set aside."
