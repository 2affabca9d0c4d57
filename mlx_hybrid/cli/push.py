"""`push`: publish on the Hugging Face Hub, after showing what and asking once."""

import sys
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.options import flag, json_option, option
from mlx_hybrid.cli.output import answer, tell
from mlx_hybrid.errors import ConfigError


@click.command()
@click.argument("directory", metavar="DIR|RUN")
@click.argument("repo", metavar="OWNER/NAME")
@option("--run", "The run behind an export.  [default: found by its weights]", metavar="RUN")
@flag("--public", "Make the repository public.  [default: private]")
@option("--message", "Commit message.", default="Upload with mlx-hybrid")
@flag("--yes", "Do not ask.")
@flag("--dry-run", "Show what would be published, and stop.")
@json_option
def push(directory: str, repo: str, run: str, public: bool, as_json: bool, **how: Any) -> None:
    """Publish a run's adapter, an export or a model on the Hugging Face Hub.

    Only known files are taken, with a model card made from the run; a README.md that you wrote stays yours. All is
    shown first. A push that broke off goes on when the command is repeated.

    \b
    Examples:
        mlx-hybrid push last me/my-adapter --dry-run
        mlx-hybrid export last --to peft -o peft && mlx-hybrid push peft me/my-lora --public
    """
    from mlx_hybrid.publish import hub
    from mlx_hybrid.run import find_run

    hub.check_repo(repo)
    token = None if how["dry_run"] else hub.find_token()
    folder = Path(directory) if Path(directory).is_dir() else find_run(directory).path
    publication = hub.plan(folder, repo, run=find_run(run) if run else None)
    show_publication(publication, f"{repo}, {'PUBLIC' if public else 'private'}")
    if not how["dry_run"] and not how["yes"] and not sys.stdin.isatty():
        raise ConfigError("There is no terminal to ask in; look with --dry-run, then push with --yes.")
    if how["dry_run"] or not (how["yes"] or click.confirm(f"Publish this to {repo}?", err=True)):
        tell("Nothing was published.")
        raise SystemExit(0 if how["dry_run"] else 1)
    done = hub.push(publication, repo, token=token, private=not public, message=how["message"], tell=tell)
    answer({"format": 1, **done}, as_json, done["url"])
    tell(f"Commit {done['commit'][:12]}, {'public' if public else 'private'}. Look at it: {done['url']}")


def show_publication(publication: Any, where: str) -> None:
    """The card, the files and what stays, on stderr."""
    sizes, left = publication.sizes(), publication.left_out
    tell(f"{publication.card.rstrip()}\n")
    tell(f"To {where}, {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB:")
    for name, size in sizes.items():
        tell(f"  {size:>14,}  {name}")
    if left:
        tell(f"Not published: {', '.join(left[:10])}{', …' if len(left) > 10 else ''}")
    tell(f"The card is {'your README.md' if publication.card_is_own else 'made from the run'}.")
