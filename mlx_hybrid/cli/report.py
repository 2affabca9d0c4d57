"""`report`: a page to read of a run or a comparison."""

import shlex
from pathlib import Path

import click
from click import argument, option

from mlx_hybrid.cli.commands import command
from mlx_hybrid.cli.options import PATH
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import find_run


@click.command()
@argument("target", metavar="RUN|COMPARISON")
@option(
    "-o", "--output", type=PATH, metavar="FILE", help="Write the page of a run there.  [default: in the run]"
)
def report(target: str, output: Path | None) -> None:
    """Make one self-contained page of a run, or the page, tables and figures of a comparison.

    \b
    Examples:
        mlx-hybrid report last
        mlx-hybrid report comparison
    """
    from mlx_hybrid.report.run_page import write_run_page
    from mlx_hybrid.study.pages import rewrite

    if (Path(target) / "plan.json").is_file():
        if output:
            raise ConfigError("-o takes the page of a run; a comparison's files stay in its folder.")
        page = rewrite(Path(target))
        then = f"open {shlex.quote(str(page))}"
    else:
        page = write_run_page(find_run(target), output)
        then = command("evaluate", target, "--variants", "all")
    click.echo(f"Page: {page}\nNext: {then}")
