"""`push`: publish on the Hugging Face Hub, after showing what and asking once."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_hybrid.errors import ConfigError

if TYPE_CHECKING:
    from mlx_hybrid.publish.publication import Publication


@click.command()
@click.argument("directory", metavar="DIR|RUN")
@click.argument("repo", metavar="OWNER/NAME")
@click.option(
    "--run", "run_name", metavar="RUN", help="The run behind an export.  [default: found by its weights]"
)
@click.option("--public", is_flag=True, help="Make the repository public.  [default: private]")
@click.option("--message", default="Upload with mlx-hybrid", show_default=True, help="Commit message.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what would be published, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push(
    directory: str,
    repo: str,
    run_name: str | None,
    public: bool,
    message: str,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish a run's adapter, an export or a model on the Hugging Face Hub.

    Only known files are taken, with a model card made from the run; a README.md that you wrote stays yours. All is
    shown first. A push that broke off goes on when the command is repeated.

    \b
    Examples:
        mlx-hybrid push last me/my-adapter --dry-run
        mlx-hybrid push last me/my-adapter
        mlx-hybrid export last --to peft -o peft && mlx-hybrid push peft me/my-lora --public
    """
    from mlx_hybrid.publish import hub
    from mlx_hybrid.publish.publication import plan
    from mlx_hybrid.run import find_run

    hub.check_repo(repo)
    token = None if dry_run else hub.find_token()
    folder = Path(directory) if Path(directory).is_dir() else find_run(directory).path
    publication = plan(folder, repo, run=find_run(run_name) if run_name else None)
    show(publication, repo, public=public)
    if dry_run:
        click.echo("Nothing was published.", err=True)
        return
    ask(repo, yes=yes)
    done = hub.push(publication, repo, token=token, private=not public, message=message, tell=note)
    click.echo(json.dumps({"format": 1, **asdict(done)}) if as_json else done.url)
    note(f"Commit {done.commit[:12]}, {'private' if done.private else 'public'}. Look at it: {done.url}")


def note(text: str) -> None:
    click.echo(text, err=True)


def show(publication: "Publication", repo: str, *, public: bool) -> None:
    """The card, the files and what stays, on stderr."""
    note(publication.card.rstrip())
    note("")
    sizes = publication.sizes()
    note(
        f"To {repo}, {'PUBLIC' if public else 'private'}, {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB:"
    )
    for name, size in sizes.items():
        note(f"  {size:>14,}  {name}")
    if publication.left_out:
        shown = ", ".join(publication.left_out[:10]) + (", …" if len(publication.left_out) > 10 else "")
        note(f"Not published: {shown}")
    note(f"The card is {'your README.md' if publication.card_is_own else 'made from the run'}.")


def ask(repo: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("There is no terminal to ask in; look with --dry-run, then push with --yes.")
    if not click.confirm(f"Publish this to {repo}?", err=True):
        note("Nothing was published.")
        raise SystemExit(1)
