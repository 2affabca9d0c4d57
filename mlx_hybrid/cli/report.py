"""`report`: a page to read of a run or a comparison."""

import shlex
import time
from pathlib import Path

import click
from click import argument, option

from mlx_hybrid.cli.commands import command, tell
from mlx_hybrid.cli.options import PATH, SOME
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run, find_run


@click.command()
@argument("target", metavar="RUN|COMPARISON")
@option(
    "-o", "--output", type=PATH, metavar="FILE", help="Write the page of a run there.  [default: in the run]"
)
@option("--watch", is_flag=True, help="Write the page anew until the run ends; the browser reloads it.")
@option(
    "--every", type=SOME, default=10, show_default=True, metavar="SECONDS", help="With --watch: how often."
)
def report(target: str, output: Path | None, watch: bool, every: int) -> None:
    """Make one self-contained page of a run, or the page, tables and figures of a comparison.

    \b
    Examples:
        mlx-hybrid report last
        mlx-hybrid report last --watch
        mlx-hybrid report comparison
    """
    from mlx_hybrid.report.run_page import write_run_page
    from mlx_hybrid.study.pages import rewrite

    if (Path(target) / "plan.json").is_file():
        if output or watch:
            raise ConfigError("-o and --watch take a run; a comparison's files stay in its folder.")
        page = rewrite(Path(target))
        then = f"open {shlex.quote(str(page))}"
    else:
        run = find_run(target)
        page = follow(run, output, every) if watch else write_run_page(run, output)
        then = command("evaluate", target, "--variants", "all")
    click.echo(f"Page: {page}\nNext: {then}")


def follow(run: Run, output: Path | None, every: int) -> Path:
    """Write the page of a run again and again while it is at work, and once more at its end."""
    from mlx_hybrid.files import write_text
    from mlx_hybrid.report.run_page import run_page, write_run_page

    page = write_run_page(run, output)
    tell(
        f"Open {page}; it is written anew every {every} s while the run is at work. Ctrl-C ends this, not the run."
    )
    try:
        while run.status() == "running":
            reload = f'<head>\n<meta http-equiv="refresh" content="{every}">'
            write_text(page, run_page(run).replace("<head>", reload, 1))
            time.sleep(every)
    finally:
        write_run_page(run, output)
    return page
