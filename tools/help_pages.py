"""Write docs/commands.md and docs/settings.md from the program itself; a test holds them to it."""

from itertools import groupby
from pathlib import Path

import click

from mlx_hybrid.cli import main
from mlx_hybrid.config.explain import Setting, settings

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDTH = 100
SETTINGS_HEAD = """# Settings

Generated from the program by `tools/help_pages.py`; do not edit.

Each is given as `--set KEY=VALUE`, as `--set train.epochs=2`, or in a YAML file, where the key before a point is a
group. `mlx-hybrid settings KEY` says the same in a terminal. Lists are written `a,b`. What a method sets of `adapter`
comes before the defaults here ([the method](method.md)). `finetune --dry-run` shows what a run would take.
"""


def help_text(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    width = {"max_content_width": WIDTH, "terminal_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **width, **command.context_settings)
    return f"```text\n{command.get_help(context)}\n```\n"


def commands_page() -> str:
    context = click.Context(main, info_name="mlx-hybrid", **main.context_settings)
    parts = ["# Commands\n\nGenerated from the program by `tools/help_pages.py`; do not edit.\n"]
    parts.append(help_text(main, "mlx-hybrid"))
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        parts.append(f"## {name}\n\n{help_text(command, name, context)}")
        inside = click.Context(command, info_name=name, parent=context)
        for inner, own in getattr(command, "commands", {}).items():
            parts.append(f"### {name} {inner}\n\n{help_text(own, inner, inside)}")
    return "\n".join(parts)


def settings_page() -> str:
    """A table a group, and the whole in the order of the files."""
    lines = [SETTINGS_HEAD]
    for group, own in groupby(settings().values(), lambda one: one.key.rpartition(".")[0]):
        lines += [
            f"## {group or 'The run'}\n",
            "| setting | default | takes | meaning |",
            "|---|---|---|---|",
        ]
        lines += [*map(setting_row, own), ""]
    return "\n".join(lines)


def setting_row(one: Setting) -> str:
    others = f" Others call it {', '.join(f'`{other}`' for other in one.others)}." if one.others else ""
    name = one.key.rpartition(".")[2]
    cells = (f"`{name}`", f"`{one.usual}`", one.takes, f"{one.meaning}{others}")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def pages() -> dict[Path, str]:
    return {DOCS / "commands.md": commands_page(), DOCS / "settings.md": settings_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
