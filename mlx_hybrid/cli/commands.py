"""What commands print: results, talk beside them, and commands to copy from the screen."""

import json
import shlex
from functools import partial
from typing import Any

import click

from mlx_hybrid.cli.options import listed

tell = partial(click.echo, err=True)
"""Say something on stderr, which holds all that is no result."""


def answer(tree: Any, as_json: bool, *lines: str) -> None:
    """Print a result, as JSON or as lines for a person."""
    click.echo(json.dumps(tree, ensure_ascii=False) if as_json else "\n".join(lines))


def command(*words: object) -> str:
    """`mlx-hybrid` with its arguments, quoted where the shell would split or expand them."""
    return shlex.join(["mlx-hybrid", *(str(word) for word in words)])


def given_parameters() -> list[click.Parameter]:
    """What of the running command stands on the command line."""
    context = click.get_current_context()
    source = click.core.ParameterSource.COMMANDLINE
    return [p for p in context.command.params if context.get_parameter_source(p.name) is source]


def given_options(*besides: str) -> list[str]:
    """The options of the running command as they were given, to repeat them in another."""
    values, words = click.get_current_context().params, []
    for option in given_parameters():
        if option.name in besides or option.param_type_name != "option":
            continue
        value, name = values[option.name], option.opts[-1]
        if option.is_flag:
            words.append(name)
        elif option.callback is listed:
            words += [name, ",".join(value)]
        elif isinstance(value, dict):  # rules, whose on and off YAML reads as true and false
            said = ((key, ("off", "on")[one] if isinstance(one, bool) else one) for key, one in value.items())
            words += [word for key, one in said for word in (name, f"{key}={one}")]
        else:
            words += [word for one in (value if option.multiple else [value]) for word in (name, str(one))]
    return words
