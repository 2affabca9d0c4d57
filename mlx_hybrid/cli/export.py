"""`export`: an adapter for another library, checked there."""

from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.options import PATH, SOME, flag, json_option, option, together
from mlx_hybrid.cli.output import answer, command, tell

FORMS = ("peft", "merged", "lora", "mlx-lm", "gguf")
BASES, PART = click.Choice(["original", "dequantised"]), click.FloatRange(0, 1, min_open=True)
DIVERGENCES = {
    "rounding": "rounding to the stored dtype",
    "trained_base": "from the quantised base it was trained on",
    "truncation": "truncation",
}
REQUANTISE = "pack again as the base was; refused where the held-out loss shows the update lost."
written_options = together(
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
@written_options
def export(run: str, to: str, output: Path, as_json: bool, **options: Any) -> None:
    """Write RUN's adapter for another library, and check that it does the same there.

    \b
    peft       a LoRA where the adapter is exactly one, else OFT and LoRA side by side
    merged     a whole Hugging Face model in bf16; with --requantise a model for MLX
    lora       one LoRA of a rank that vLLM takes, truncated where it cannot be exact
    mlx-lm     an adapter that stock mlx-lm loads, else a fused model
    gguf       a LoRA that llama.cpp loads, where it is exact; with --merged a model for ollama and LM Studio

    RUN is a run's name or path, `last`, or an adapter's folder or Hub id. Exit code 3: the check failed.

    \b
    Examples:
        mlx-hybrid export last --to peft -o my-adapter
        mlx-hybrid export last --to merged --base-id Qwen/Qwen3-0.6B -o my-model
        mlx-hybrid export last --to gguf -o my-gguf
    """
    from mlx_hybrid import api

    show_report(api.export(run, to, output, **options), as_json, "push", output, "OWNER/NAME")


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
