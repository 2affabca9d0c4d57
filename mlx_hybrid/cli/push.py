"""`push`: publish on the Hugging Face Hub, after showing what and asking once."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click import argument, option

from mlx_hybrid.cli.commands import answer, tell
from mlx_hybrid.errors import ConfigError

if TYPE_CHECKING:
    from mlx_hybrid.publish.publication import Publication


@click.command()
@argument("directory", metavar="DIR|RUN")
@argument("repo", metavar="OWNER/NAME")
@option("--run", metavar="RUN", help="The run behind an export.  [default: found by its weights]")
@option("--public", is_flag=True, help="Make the repository public.  [default: private]")
@option("--message", default="Upload with mlx-hybrid", show_default=True, help="Commit message.")
@option("--yes", is_flag=True, help="Do not ask.")
@option("--dry-run", is_flag=True, help="Show what would be published, and stop.")
@option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push(
    directory: str, repo: str, run: str, public: bool, message: str, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Publish a run's adapter, an export or a model on the Hugging Face Hub.

    Only known files are taken, with a model card made from the run; a README.md that you wrote stays yours. All is
    shown first. A push that broke off goes on when the command is repeated.

    \b
    Examples:
        mlx-hybrid push last me/my-adapter --dry-run
        mlx-hybrid export last --to peft -o peft && mlx-hybrid push peft me/my-lora --public
    """
    from mlx_hybrid.publish import hub
    from mlx_hybrid.publish.publication import plan
    from mlx_hybrid.run import find_run

    hub.check_repo(repo)
    token = None if dry_run else hub.find_token()
    folder = Path(directory) if Path(directory).is_dir() else find_run(directory).path
    publication = plan(folder, repo, run=find_run(run) if run else None)
    show(publication, repo, public=public)
    if dry_run:
        tell("Nothing was published.")
        return
    if not yes:
        ask(repo)
    done = hub.push(publication, repo, token=token, private=not public, message=message, tell=tell)
    answer({"format": 1, **asdict(done)}, as_json, done.url)
    tell(f"Commit {done.commit[:12]}, {'private' if done.private else 'public'}. Look at it: {done.url}")


def show(publication: "Publication", repo: str, *, public: bool) -> None:
    """The card, the files and what stays, on stderr."""
    sizes, left = publication.sizes(), publication.left_out
    megabytes = f"{sum(sizes.values()) / 1e6:,.1f} MB"
    tell(f"{publication.card.rstrip()}\n")
    tell(f"To {repo}, {'PUBLIC' if public else 'private'}, {len(sizes)} files, {megabytes}:")
    for name, size in sizes.items():
        tell(f"  {size:>14,}  {name}")
    if left:
        tell(f"Not published: {', '.join(left[:10])}{', …' if len(left) > 10 else ''}")
    tell(f"The card is {'your README.md' if publication.card_is_own else 'made from the run'}.")


def ask(repo: str) -> None:
    """End the command unless somebody agrees. Raises ConfigError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise ConfigError("There is no terminal to ask in; look with --dry-run, then push with --yes.")
    if not click.confirm(f"Publish this to {repo}?", err=True):
        tell("Nothing was published.")
        raise SystemExit(1)
