"""`report`: a page to read of a run or a comparison."""

import shlex
import time
from pathlib import Path

import click

from mlx_hybrid.cli.options import PATH, SOME, flag, option
from mlx_hybrid.cli.output import command, tell
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run, find_run


@click.command()
@click.argument("target", metavar="RUN|COMPARISON")
@option("-o --output", "Write the page of a run there.  [default: in the run]", type=PATH, metavar="FILE")
@flag("--watch", "Write the page anew until the run ends; the browser reloads it.")
@option("--every", "With --watch: how often.", type=SOME, default=10, metavar="SECONDS")
def report(target: str, output: Path | None, watch: bool, every: int) -> None:
    """Make one self-contained page of a run, or the page, tables and figures of a comparison.

    \b
    Examples:
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
        run, then = find_run(target), command("evaluate", target, "--variants", "all")
        page = follow(run, output, every) if watch else write_run_page(run, output)
    click.echo(f"Page: {page}\nNext: {then}")


def follow(run: Run, output: Path | None, every: int) -> Path:
    """Write the page of a run again and again while it is at work, and once more at its end."""
    from mlx_hybrid.files import write_text
    from mlx_hybrid.report.run_page import run_page, write_run_page

    page, how_often = write_run_page(run, output), f"it is written anew every {every} s"
    tell(f"Open {page}; {how_often} while the run is at work. Ctrl-C ends this, not the run.")
    try:
        while run.status() == "running":
            reload = f'<head>\n<meta http-equiv="refresh" content="{every}">'
            write_text(page, run_page(run).replace("<head>", reload, 1))
            time.sleep(every)
    finally:
        write_run_page(run, output)
    return page
