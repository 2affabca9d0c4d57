"""`records`: a record as the model will see it."""

import sys
from itertools import groupby
from typing import Any

import click

from mlx_hybrid.chat.terminal import Printable
from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import SOME, option
from mlx_hybrid.cli.output import answer, tell
from mlx_hybrid.errors import DataError


@click.command()
@click.argument("file", metavar="FILE")
@option("--model", "Hub id or folder of the base model.", default="bundled")
@shared.map_option
@option("--show", "Show so many records.  [default: 3; with --json all]", type=SOME)
@shared.set_option
@shared.json_option
def records(file: str, model: str, show: int | None, as_json: bool, **how: Any) -> None:
    """Show records as the model will see them, the trained tokens marked.

    Trained text stands in colour, or between ⟦ ⟧ where the output has none. With --json: the tokens, which of them are
    trained, what chat would send before the first trained one, and why a record is set aside.

    \b
    Examples:
        mlx-hybrid records chats.jsonl --model mlx-community/Qwen3-0.6B-4bit --show 1
    """
    from mlx_hybrid.config import load_config
    from mlx_hybrid.models.base import tokenizer_for
    from mlx_hybrid.records.examples import shown
    from mlx_hybrid.records.files import find_files
    from mlx_hybrid.records.record import read_records, shapes_of

    config = load_config(None, how["overrides"], {"model": model})
    tokenizer, seen = tokenizer_for(config.model), []
    most = show or (sys.maxsize if as_json else 3)
    for item in read_records(find_files([file], "FILE", (*config.data.map, *how["renames"]))):
        seen.append(item)
        if len(seen) > most:
            continue
        if not hasattr(item, "fields"):
            raise DataError(f"{item.where}: {item.detail} ({item.reason}).")
        one, left_out = shown(item, tokenizer)
        answer(one, as_json, picture(item.where, one, left_out, tokenizer))
    if not seen:
        raise DataError(f"{file}: holds no record.")
    tell(shapes_of(item for item in seen if hasattr(item, "shape")))


def picture(where: str, one: dict[str, Any], left_out: str, tokenizer: Any) -> str:
    """The record as text, its trained stretches marked."""
    if one["set_aside"]:
        return f"{where}  set aside: {one['set_aside']}\n"
    plain, colour = Printable(), click.get_text_stream("stdout").isatty()
    runs = groupby(zip(one["tokens"], one["trained"], strict=True), lambda pair: pair[1])
    parts = [(plain(tokenizer.decode([token for token, _ in run])), flag) for flag, run in runs]
    mark = (lambda part: click.style(part, fg="green", bold=True)) if colour else "⟦{}⟧".format
    text = "".join(mark(part) if flag else part for part, flag in parts)
    missing = f"; the chat template does not write {left_out}" if left_out else ""
    return f"{where}  {len(one['tokens'])} tokens, {sum(one['trained'])} trained{missing}\n{text}\n"
