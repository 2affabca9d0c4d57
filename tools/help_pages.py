"""Write docs/commands.md from the commands' own help, or with --check fail when it is stale.

python tools/help_pages.py [--check]
"""

import sys
from pathlib import Path

import click

from mlx_hybrid.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
WIDTH = 100


def help_text(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    context = click.Context(
        command, info_name=name, parent=parent, max_content_width=WIDTH, terminal_width=WIDTH,
        **command.context_settings,
    )  # fmt: skip
    return command.get_help(context)


def sections() -> list[str]:
    context = click.Context(main, info_name="mlx-hybrid", **main.context_settings)
    parts = ["# Commands\n\nGenerated from the program by `tools/help_pages.py`; do not edit.\n"]
    parts.append(f"```text\n{help_text(main, 'mlx-hybrid')}\n```\n")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        parts.append(f"## {name}\n\n```text\n{help_text(command, name, context)}\n```\n")
        if isinstance(command, click.Group):
            inside = click.Context(command, info_name=name, parent=context)
            for inner in command.list_commands(inside):
                text = help_text(command.get_command(inside, inner), inner, inside)
                parts.append(f"### {name} {inner}\n\n```text\n{text}\n```\n")
    return parts


def page() -> str:
    return "\n".join(sections())


if __name__ == "__main__":
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE} is stale: run python tools/help_pages.py")
    else:
        PAGE.write_text(page(), encoding="utf-8")
