"""`export`, `import`, `fuse` and `push`: an adapter for other libraries, checked there, and out into the world."""

import sys
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.commands import answer, command, tell
from mlx_hybrid.cli.options import PATH, SOME, flag, json_option, option, together
from mlx_hybrid.errors import ConfigError

FORMS = ("peft", "merged", "lora", "mlx-lm", "gguf", "gguf-lora")
BASES, PART = click.Choice(["original", "dequantised"]), click.FloatRange(0, 1, min_open=True)
DIVERGENCES = {
    "rounding": "rounding to the stored dtype",
    "trained_base": "from the quantised base it was trained on",
    "truncation": "truncation",
}
REQUANTISE = "pack again as the base was; refused where the held-out loss shows the update lost."
shared = together(
    option("-o --output", "Folder to create.", type=PATH, required=True),
    flag("--force", "Write even where the check fails; the report still says so."),
    json_option,
)
moved_base = option("--model", "The base it was trained on, where it has moved.", metavar="MODEL")


@click.command()
@click.argument("run", metavar="RUN")
@option("--to", "What to make.", type=click.Choice(FORMS), required=True)
@option("--base", "Which weights of a quantised base.  [default: original where at hand]", type=BASES)
@option("--base-id", "The original 16-bit model: Hub id or folder.", metavar="MODEL")
@moved_base
@option("--rank", "lora: truncates if too low.  [default: exact, or else 64]", type=SOME)
@option("--tolerance", "lora: largest error a layer.  [default: 0.05]", type=click.FloatRange(0, 1))
@flag("--requantise", "merged: " + REQUANTISE)
@flag("--merged", "gguf: a whole model, its changed tensors packed in their own type.")
@flag("--f16", "gguf --merged: the changed tensors in F16.")
@option("--strength", "Part of the change, of angles and additions.  [default: 1]", type=PART, default=1.0)
@shared
def export(run: str, to: str, output: Path, as_json: bool, **options: Any) -> None:
    """Write RUN's adapter for another library, and check that it does the same there.

    \b
    peft       a LoRA where the adapter is exactly one, else OFT and LoRA side by side
    merged     a whole Hugging Face model in bf16; with --requantise a model for MLX
    lora       one LoRA of a rank that vLLM takes, truncated where it cannot be exact
    mlx-lm     an adapter that stock mlx-lm loads, else a fused model
    gguf       a LoRA that llama.cpp, ollama and LM Studio load, where it is exact, with a Modelfile
    gguf-lora  a LoRA for llama.cpp's converter, where it is exact

    RUN is a run's name or path, `last`, or an adapter's folder or Hub id. Exit code 3: the check failed.

    \b
    Examples:
        mlx-hybrid export last --to peft -o my-adapter
        mlx-hybrid export last --to merged --base-id Qwen/Qwen3-0.6B -o my-model
        mlx-hybrid export last --to gguf -o my-gguf
    """
    from mlx_hybrid import api

    show_report(api.export(run, to, output, **options), as_json, "push", output, "OWNER/NAME")


@click.command()
@click.argument("run", metavar="RUN")
@flag("--requantise", REQUANTISE.capitalize())
@moved_base
@shared
def fuse(run: str, output: Path, as_json: bool, **options: Any) -> None:
    """Merge RUN's adapter into the base it was trained on, as a model for MLX.

    The result is bf16: packed weights round small updates away.

    \b
    Examples:
        mlx-hybrid fuse last -o my-model
    """
    from mlx_hybrid import api

    show_report(api.export(run, "fuse", output, **options), as_json, "chat", output)


@click.command(name="import")
@click.argument("peft_dir", type=PATH)
@option("--base", "Hub id or folder.  [default: the one its config names]", metavar="MODEL")
@shared
def import_(peft_dir: Path, output: Path, base: str | None, force: bool, as_json: bool) -> None:
    """Make an adapter for MLX of the PEFT adapter in PEFT_DIR: LoRA, OFT v2, HRA, or OFT with LoRA.

    What cannot be carried exactly is refused, with the reason.

    \b
    Examples:
        mlx-hybrid import my-peft-lora --base Qwen/Qwen3-0.6B -o my-adapter
    """
    from mlx_hybrid.exports.peft_import import import_peft

    report = import_peft(peft_dir, output, base=base, force=force)
    where = ("--base-model", report.base_folder) if report.base_folder else ()
    show_report(report, as_json, "chat", output, *where)


def show_report(report: Any, as_json: bool, *then: object) -> None:
    """Figures and the next command on stdout, remarks on stderr."""
    for note in report.notes:
        tell(note)
    answer(report.tree(), as_json, *lines(report), f"Next: {command(*then)}")
    if not report.passed:
        raise SystemExit(3)


def lines(report: Any) -> list[str]:
    """One line a fact."""
    facts, checks = report.facts, report.checks
    size = f", {facts['modules']} modules" if "modules" in facts else ""
    size += f", rank {facts['rank']}" if facts.get("rank") else ""
    kind = f" ({report.base['kind']})" if "kind" in report.base else ""
    shown = [f"{report.directory}: {report.kind}{size}", f"base: {report.base['id']}{kind}"]
    if logits := checks.get("logits"):
        ours, alone, effect = (logits[f"{key}_logit"] for key in ("difference", "base_difference", "effect"))
        told = f"check: logits differ by at most {ours:.2g} (base alone {alone:.2g}), and the adapter "
        shown.append(f"{told}changes them by {effect:.3g}")
    divergences = ((told, checks[check]) for check, told in DIVERGENCES.items() if check in checks)
    shown += [f"{told}: KL {check['kl_nats_per_token']:.2g} nats a token" for told, check in divergences]
    if bf16 := checks.get("bf16"):
        noise = bf16["base_kl_nats_per_token"]
        shown.append(f"in bf16: KL {bf16['kl_nats_per_token']:.2g} nats a token (the base alone {noise:.2g})")
    if losses := checks.get("held_out_loss"):
        told = ", ".join(f"{name} {losses[name]:.3f}" for name in ("base", "adapter", "packed"))
        shown.append(f"held-out loss, nats a token: {told} ({losses['records']} records)")
    if "truncation" in checks:
        lost = facts["relative_error"].items()
        shown += [f"  {name}: {100 * error:.1f} % of the update lost" for name, error in lost]
    if survival := checks.get("survival"):
        shown.append(f"update kept by the stored weights: {100 * survival['surviving_share']:.1f} %")
    shown += [f"{program}: {words}" for program, words in report.commands.items()]
    return shown + [f"FAILED: {fault}" for fault in report.faults]


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
    from mlx_hybrid.publish.publication import plan
    from mlx_hybrid.run import find_run

    hub.check_repo(repo)
    token = None if how["dry_run"] else hub.find_token()
    folder = Path(directory) if Path(directory).is_dir() else find_run(directory).path
    publication = plan(folder, repo, run=find_run(run) if run else None)
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
