"""Write docs/commands.md and docs/settings.md from the program itself, or with --check fail when one is stale.

python tools/help_pages.py [--check]
"""

import sys
from pathlib import Path

import click

from mlx_hybrid.cli import main
from mlx_hybrid.config.explain import Setting, settings

DOCS = Path(__file__).resolve().parents[1] / "docs"
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


def setting_rows() -> list[str]:
    """A table a group, and the whole in the order of the files."""
    lines = [SETTINGS_HEAD]
    group = None
    for one in settings().values():
        own, _, name = one.key.rpartition(".")
        if own != group:
            group = own
            lines += [
                f"\n## {own or 'The run'}\n",
                "| setting | default | takes | meaning |",
                "|---|---|---|---|",
            ]
        lines.append(setting_row(name, one))
    return lines


def setting_row(name: str, one: Setting) -> str:
    others = f" Others call it {', '.join(f'`{other}`' for other in one.others)}." if one.others else ""
    cells = (f"`{name}`", f"`{one.usual}`", one.takes, f"{one.meaning}{others}")
    return f"| {' | '.join(cell.replace('|', PIPE) for cell in cells)} |"


PIPE = r"\|"
SETTINGS_HEAD = """# Settings

Generated from the program by `tools/help_pages.py`; do not edit.

Each is given as `--set KEY=VALUE`, as `--set train.epochs=2`, or in a YAML file, where the key before a point is a
group. `mlx-hybrid settings KEY` says the same in a terminal. Lists are written `a,b`. What a method sets of `adapter`
comes before the defaults here ([the method](method.md)). `finetune --dry-run` shows what a run would take."""


def pages() -> dict[Path, str]:
    return {
        DOCS / "commands.md": "\n".join(sections()),
        DOCS / "settings.md": "\n".join([*setting_rows(), ""]),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is stale: run python tools/help_pages.py")
