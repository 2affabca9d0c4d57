"""`import`: a PEFT adapter as one for MLX."""

from pathlib import Path

import click

from mlx_hybrid.cli.export import show_report, written_options
from mlx_hybrid.cli.options import PATH, option


@click.command(name="import")
@click.argument("peft_dir", type=PATH)
@option("--base", "Hub id or folder.  [default: the one its config names]", metavar="MODEL")
@written_options
def import_(peft_dir: Path, output: Path, base: str | None, force: bool, as_json: bool) -> None:
    """Make an adapter for MLX of the PEFT adapter in PEFT_DIR: LoRA, OFT v2, HRA, or OFT with LoRA.

    What cannot be carried exactly is refused, with the reason.

    \b
    Examples:
        mlx-hybrid import my-peft-lora --base Qwen/Qwen3-0.6B -o my-adapter
    """
    from mlx_hybrid.exports.peft_import import import_peft

    report = import_peft(peft_dir, output, base=base, force=force)
    where = ("--base-model", report.base_folder) if report.base_folder else ()
    show_report(report, as_json, "chat", output, *where)
