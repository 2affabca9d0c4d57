"""`rescue`: records that a rule set aside back among those that are kept."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from mlx_hybrid.cli.commands import command
from mlx_hybrid.cli.options import PATH, listed
from mlx_hybrid.errors import ConfigError


@click.command()
@click.argument("folder", type=PATH, metavar="DIR")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    callback=listed,
    metavar="NAMES",
    help="All set aside for these, as menu.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def rescue(folder: Path, ids: tuple[str, ...], reasons: tuple[str, ...], as_json: bool) -> None:
    """Bring records that a rule set aside back into kept.jsonl of DIR, which govern made.

    They are named by their id, their place as path:line, or by the reason they went for; each comes to its place
    among the others, as it was, flagged as rescued. Report, cards and manifest are written anew.

    \b
    Examples:
        mlx-hybrid rescue clean --reason menu
        mlx-hybrid rescue clean user-17 raw.jsonl:204
    """
    from mlx_hybrid.governance.folder.rescuing import rescue as rescue_records

    if not ids and not reasons:
        raise ConfigError("name the records: with --reason NAME, or by their ids or places as path:line.")
    done = rescue_records(folder, ids, reasons)
    if as_json:
        click.echo(json.dumps(asdict(done), ensure_ascii=False))
        return
    told = ", ".join(f"{count} from {reason}" for reason, count in done.records.items())
    click.echo(f"Back in kept.jsonl: {told}.")
    if done.left:
        more = f" and {len(done.left) - 3} more" if len(done.left) > 3 else ""
        click.echo(f"No records, so they stay: {'; '.join(done.left[:3])}{more}.")
    click.echo(command("finetune", "--data", folder / "kept.jsonl"))
