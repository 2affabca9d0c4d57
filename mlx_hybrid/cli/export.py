"""`export`: an adapter for another library, checked there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_hybrid.cli.commands import command

if TYPE_CHECKING:
    from mlx_hybrid.exports.checks import Report

FORMS = ("peft", "merged", "lora", "mlx-lm", "gguf-lora")
REQUANTISE = "pack again as the base was; refused if the update is lost."


def shared(function: Callable) -> Callable:
    """Options that `export`, `import` and `fuse` have alike."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
        click.option(
            "--force", is_flag=True, help="Write even where the check fails; the report still says so."
        ),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to create."
        ),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--to", type=click.Choice(FORMS), required=True, help="What to make.")
@click.option(
    "--base",
    type=click.Choice(["original", "dequantised"]),
    help="Which weights to export for, when the base is quantised.  [default: original where it is at hand]",
)
@click.option("--base-id", metavar="MODEL", help="The original 16-bit model: Hub id or folder.")
@click.option("--model", metavar="MODEL", help="The base it was trained on, where it has moved.")
@click.option(
    "--rank", type=click.IntRange(1), help="lora: rank; truncates if too low.  [default: exact, or else 64]"
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    help="lora: largest relative error of a layer, where it is truncated.  [default: 0.05]",
)
@click.option("--requantise", is_flag=True, help="merged: " + REQUANTISE)
@shared
def export(run: str, to: str, output: Path, as_json: bool, **options: Any) -> None:
    """Write RUN's adapter for another library, and check that it does the same there.

    \b
    peft       a LoRA where the adapter is exactly one, else OFT and LoRA side by side
    merged     a whole Hugging Face model in bf16; with --requantise a model for MLX
    lora       one LoRA of a rank that vLLM takes, truncated where it cannot be exact
    mlx-lm     an adapter that stock mlx-lm loads, else a fused model
    gguf-lora  a LoRA for llama.cpp's converter, where it is exact

    RUN is a run's name or path, `last`, or an adapter's folder or Hub id. Exit code 3: the check
    failed, nothing was written.

    \b
    Examples:
        mlx-hybrid export last --to peft -o my-adapter
        mlx-hybrid export last --to merged --base-id Qwen/Qwen3-0.6B -o my-model
        mlx-hybrid export last --to merged --requantise -o my-model-4bit
        mlx-hybrid export last --to lora --rank 64 -o my-lora
    """
    from mlx_hybrid import api

    report = api.export(run, to, output, **options)
    show(report, as_json, command("push", output, "OWNER/NAME"))


def show(report: "Report", as_json: bool, then: str) -> None:
    """Figures and the next command on stdout, remarks on stderr."""
    for note in report.notes:
        click.echo(note, err=True)
    if as_json:
        click.echo(json.dumps(report.tree(), ensure_ascii=False))
    else:
        for line in lines(report):
            click.echo(line)
        click.echo(f"Next: {then}")
    if not report.passed:
        raise SystemExit(3)


def lines(report: "Report") -> list[str]:
    """One line a fact."""
    facts, checks = report.facts, report.checks
    size = [f"{facts['modules']} modules"] if "modules" in facts else []
    size += [f"rank {facts['rank']}"] if facts.get("rank") else []
    shown = [f"{report.directory}: {report.kind}{', ' if size else ''}{', '.join(size)}"]
    shown.append(f"base: {report.base['id']}{kind_of(report.base)}")
    logits, survival = checks.get("logits"), checks.get("survival")
    if logits:
        shown.append(
            f"check: logits differ by at most {logits['difference_logit']:.2g} (base alone "
            f"{logits['base_difference_logit']:.2g}), and the adapter changes them by {logits['effect_logit']:.3g}"
        )
    if "truncation" in checks:
        shown.append(f"truncation: KL {checks['truncation']['kl_nats_per_token']:.2g} nats a token")
        shown += [
            f"  {name}: {100 * error:.1f} % of the update lost"
            for name, error in facts["relative_error"].items()
        ]
    if survival:
        shown.append(f"update kept by the stored weights: {100 * survival['surviving_share']:.1f} %")
    if "rounding" in checks:
        shown.append(
            f"rounding to the stored dtype: KL {checks['rounding']['kl_nats_per_token']:.2g} nats a token"
        )
    if "trained_base" in checks:
        kl = checks["trained_base"]["kl_nats_per_token"]
        shown.append(f"from the quantised base it was trained on: KL {kl:.2g} nats a token")
    return shown + [f"FAILED: {fault}" for fault in report.faults]


def kind_of(base: dict) -> str:
    return f" ({base['kind']})" if "kind" in base else ""
