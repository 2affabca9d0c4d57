"""The command line, called in this process."""

from contextlib import nullcontext

from click.testing import CliRunner, Result
from pages import no_pages

from mlx_hybrid.cli import main


def command(*arguments: object, pages: bool = False, code: int | None = None) -> Result:
    with nullcontext() if pages else no_pages():
        done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert code in (None, done.exit_code), f"{done.output}\n{done.exception!r}"
    return done
