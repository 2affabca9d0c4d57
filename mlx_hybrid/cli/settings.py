"""`settings`: what every setting means, and what others call it."""

from textwrap import wrap

import click

from mlx_hybrid.cli.options import json_option
from mlx_hybrid.cli.output import answer
from mlx_hybrid.config import explain
from mlx_hybrid.errors import ConfigError, nearest


@click.command()
@click.argument("key", required=False, metavar="[KEY]")
@json_option
def settings(key: str | None, as_json: bool) -> None:
    """List every setting, those of a group, or say what one means.

    KEY is a setting, a group of them, or what another program calls one. Each is given as --set KEY=VALUE or in a YAML
    file; those used most have an option of `finetune` too.

    \b
    Examples:
        mlx-hybrid settings train
        mlx-hybrid settings lora_alpha
    """
    known = explain.settings()
    found = [one for name, one in known.items() if not key or f"{name}.".startswith(f"{key}.")]
    if not found:
        if not (near := explain.meant(key)):
            groups = {name.partition(".")[0] for name in known}
            raise ConfigError(f'No setting "{key}"; {nearest(key, groups)}')
        found = [known[near]]
    lines = [line for one in found for line in told(one, alone=len(found) == 1)]
    answer([one.facts() for one in found], as_json, *lines)


def told(one: explain.Setting, *, alone: bool) -> list[str]:
    """A setting in a list, its key and default and what it means below; or all there is to say of one `alone`."""
    meaning = wrap(one.meaning, 96, initial_indent="    ", subsequent_indent="    ")
    if not alone:
        return [f"{one.key} = {one.usual}", *meaning]
    before = " where the method sets none" if one.key.startswith("adapter.") else ""
    others = [f"    Others call it {', '.join(one.others)}."] if one.others else []
    takes = f"    Takes {one.takes}. Default{before}: {one.usual}."
    return [one.key, *meaning, takes, *others, f"Next: mlx-hybrid finetune --set {one.key}=VALUE"]
