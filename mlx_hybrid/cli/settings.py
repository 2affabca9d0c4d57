"""`settings`: what every setting means, and what others call it."""

from textwrap import wrap

import click
from click import argument, option

from mlx_hybrid.cli.commands import answer
from mlx_hybrid.config.explain import Setting, meant
from mlx_hybrid.config.explain import settings as every_setting
from mlx_hybrid.errors import ConfigError, nearest


@click.command()
@argument("key", required=False, metavar="[KEY]")
@option("--json", "as_json", is_flag=True, help="Print as JSON.")
def settings(key: str | None, as_json: bool) -> None:
    """List every setting, those of a group, or say what one means.

    KEY is a setting, a group of them, or what another program calls one. Each is given as --set KEY=VALUE or in a YAML
    file; those used most have an option of `finetune` too.

    \b
    Examples:
        mlx-hybrid settings
        mlx-hybrid settings train
        mlx-hybrid settings lora_alpha
    """
    known = every_setting()
    found = [one for name, one in known.items() if not key or f"{name}.".startswith(f"{key}.")]
    if not found:
        if not (near := meant(key)):
            groups = {name.partition(".")[0] for name in known}
            raise ConfigError(f'No setting "{key}"; {nearest(key, groups)}')
        found = [known[near]]
    lines = [line for one in found for line in (told(one) if len(found) == 1 else listed(one))]
    answer([one.facts() for one in found], as_json, *lines)


def listed(one: Setting) -> list[str]:
    """A setting in a list: its key and default, and what it means below."""
    return [
        f"{one.key} = {one.usual}",
        *wrap(one.meaning, 96, initial_indent="    ", subsequent_indent="    "),
    ]


def told(one: Setting) -> list[str]:
    """All there is to say of one setting."""
    lines = [one.key, *wrap(one.meaning, 96, initial_indent="    ", subsequent_indent="    ")]
    before = " where the method sets none" if one.key.startswith("adapter.") else ""
    lines.append(f"    Takes {one.takes}. Default{before}: {one.usual}.")
    if one.others:
        lines.append(f"    Others call it {', '.join(one.others)}.")
    return [*lines, f"Next: mlx-hybrid finetune --set {one.key}=VALUE"]
