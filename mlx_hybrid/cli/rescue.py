"""`rescue`: records that a rule set aside back among those that are kept."""

from pathlib import Path

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import PATH, names
from mlx_hybrid.cli.output import answer, command
from mlx_hybrid.errors import ConfigError


@click.command()
@click.argument("folder", type=PATH, metavar="DIR")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@names("--reason reasons", "All that went for these.", metavar="NAMES")
@shared.json_option
def rescue(folder: Path, ids: tuple[str, ...], reasons: tuple[str, ...], as_json: bool) -> None:
    """Bring records that a rule set aside back into kept.jsonl of DIR, which govern made.

    They are named by their id, their place as path:line, or by the reason they went for; each comes to its place
    among the others, as it was, flagged as rescued. Report, cards and manifest are written anew.

    \b
    Examples:
        mlx-hybrid rescue clean --reason menu
        mlx-hybrid rescue clean user-17 raw.jsonl:204
    """
    from mlx_hybrid import api

    if not ids and not reasons:
        raise ConfigError("name the records: with --reason NAME, or by their ids or places as path:line.")
    done = api.rescue(folder, ids, reasons=reasons)
    told = ", ".join(f"{count} from {reason}" for reason, count in done["records"].items())
    lines = [f"Back in kept.jsonl: {told}."]
    if left := done["left"]:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        lines.append(f"No records, so they stay: {'; '.join(left[:3])}{more}.")
    answer(done, as_json, *lines, command("finetune", "--data", folder / "kept.jsonl"))
