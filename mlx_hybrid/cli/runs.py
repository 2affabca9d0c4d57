"""`runs`: list runs, or show one."""

import json
from typing import TYPE_CHECKING

import click

from mlx_hybrid.cli.commands import command

if TYPE_CHECKING:
    from mlx_hybrid.run import Run


@click.command()
@click.argument("name", required=False, metavar="[RUN]")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def runs(name: str | None, as_json: bool) -> None:
    """List runs, newest last, or show one.

    \b
    Examples:
        mlx-hybrid runs
        mlx-hybrid runs last
    """
    from mlx_hybrid.run import find_run, list_runs

    chosen = [find_run(name)] if name else list_runs()
    facts = [run_facts(run) for run in chosen]
    if as_json:
        click.echo(json.dumps(facts[0] if name else facts, ensure_ascii=False))
    elif name:
        for key, value in facts[0].items():
            if value not in (None, ""):
                click.echo(f"{key:<13}  {f'{value:.3f}' if isinstance(value, float) else value}")
        click.echo(f"Next: {next_command(chosen[0], facts[0]['status'])}")
    elif facts:
        for line in run_table(facts):
            click.echo(line)
        click.echo("Next: mlx-hybrid runs last")
    else:
        click.echo("No runs yet. Next: mlx-hybrid finetune")


def run_table(facts: list[dict]) -> list[str]:
    """One line a run, within 80 columns for names up to 29 letters."""
    width = max(len("run"), *(len(fact["run"]) for fact in facts))
    lines = [f"{'run':<{width}}  {'status':<11}  {'method':<14}  {'step':>5}  accuracy"]
    for fact in facts:
        known = fact["accuracy"] is not None
        accuracy = f"{fact['base_accuracy']:.3f} → {fact['accuracy']:.3f}" if known else ""
        row = f"{fact['run']:<{width}}  {fact['status']:<11}  {fact['method']:<14}  {fact['step']:>5}  {accuracy}"
        lines.append(row.rstrip())
    return lines


def next_command(run: "Run", status: str) -> str:
    """What can be done with a run as it stands."""
    if status == "finished":
        return command("chat", run.path)
    if status == "running":
        return command("runs", run.path)
    return command("finetune", *(["--resume", run.path] if run.checkpoints.is_dir() else []))


def run_facts(run: "Run") -> dict:
    from mlx_hybrid.evaluation.results import ADAPTED, BASE, read_results

    info = run.info()
    facts = {
        "run": run.name,
        "path": str(run.path),
        "status": run.status(),
        "method": info.get("method", ""),
        "base": info.get("base", {}).get("id", ""),
        "started": info.get("started", ""),
        "step": run.step(),
        "best_step": info.get("best_step"),
        "seconds": info.get("seconds"),
        "error": info.get("error"),
        "base_accuracy": None,
        "accuracy": None,
    }
    held_out = run.path / "evaluation" / "held-out.json"
    if held_out.is_file():
        results = read_results(held_out)
        for key, model in (("base_accuracy", BASE), ("accuracy", ADAPTED)):
            row = results.get("accuracy", model)
            facts[key] = row.value if row else None
    return facts
