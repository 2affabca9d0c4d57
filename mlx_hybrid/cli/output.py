"""What commands print: results, talk beside them, and commands to copy from the screen."""

import json
import shlex
from functools import partial
from typing import Any

import click

tell = partial(click.echo, err=True)
"""Say something on stderr, which holds all that is no result."""


def answer(tree: Any, as_json: bool, *lines: str) -> None:
    """Print a result, as JSON or as lines for a person."""
    click.echo(json.dumps(tree, ensure_ascii=False) if as_json else "\n".join(lines))


def command(*words: object) -> str:
    """`mlx-hybrid` with its arguments, quoted where the shell would split or expand them."""
    return shlex.join(["mlx-hybrid", *(str(word) for word in words)])


def given() -> dict[str, str]:
    """What of the running command stands on the command line: each parameter's name, and how it is written there."""
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    typed = (p for p in context.command.params if context.get_parameter_source(p.name) is source)
    return {p.name: p.opts[-1] for p in typed}


def typed(without: str, *, takes_value: bool = False) -> list[str]:
    """What was typed after the command but for one option, to be repeated in another command."""
    words, kept = iter(click.get_current_context().obj), []
    for word in words:
        name, equals, _ = word.partition("=")
        if name != without:
            kept.append(word)
        elif takes_value and not equals:
            next(words)
    return kept
