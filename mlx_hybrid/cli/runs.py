"""`runs`: list runs, or show one."""

from contextlib import suppress
from itertools import product

import click

from mlx_hybrid.cli.options import json_option
from mlx_hybrid.cli.output import answer, command
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run, find_run, list_runs


@click.command()
@click.argument("name", required=False, metavar="[RUN]")
@json_option
def runs(name: str | None, as_json: bool) -> None:
    """List runs, newest last, or show one.

    \b
    Examples:
        mlx-hybrid runs
        mlx-hybrid runs last
    """
    if name:
        run = find_run(name)
        facts = run_facts(run)
        known = ((key, value) for key, value in facts.items() if value not in (None, ""))
        lines = [f"{key:<13}  {f'{own:.3f}' if isinstance(own, float) else own}" for key, own in known]
        answer(facts, as_json, *lines, f"Next: {next_command(run, facts['status'])}")
    else:
        found = [run_facts(run) for run in list_runs()]
        lines = [*run_table(found), "Next: mlx-hybrid runs last"]
        answer(found, as_json, *(lines if found else ["No runs yet. Next: mlx-hybrid finetune"]))


def run_facts(run: Run) -> dict:
    from mlx_hybrid.evaluation.results import ADAPTED, BASE, read_results

    info, results = run.info(), None
    with suppress(ConfigError):  # nothing was measured, or by an older version
        results = read_results(run.path / "evaluation" / "held-out.json")
    facts = {
        "run": run.name,
        "path": str(run.path),
        "status": run.status(),
        "method": info.get("method", ""),
        "base": info.get("base", {}).get("id", ""),
        "started": info.get("started", ""),
        "step": run.step(),
    }
    facts |= {key: info.get(key) for key in ("best_step", "seconds", "error")}
    for metric, (prefix, model) in product(("loss", "accuracy"), (("base_", BASE), ("", ADAPTED))):
        row = results and results.get(metric, model)
        facts[f"{prefix}{metric}"] = row and row.value
    return facts


def run_table(found: list[dict]) -> list[str]:
    """One line a run, within 80 columns for names up to 29 letters."""
    width = max([len("run"), *(len(facts["run"]) for facts in found)])
    lines = [f"{'run':<{width}}  {'status':<11}  {'method':<14}  {'loss':<9}  accuracy"]
    for facts in found:
        loss, accuracy = (
            f"{facts[f'base_{key}']:.2f}→{facts[key]:.2f}" if facts[key] is not None else ""
            for key in ("loss", "accuracy")
        )
        row = f"{facts['run']:<{width}}  {facts['status']:<11}  {facts['method']:<14}  {loss:<9}  {accuracy}"
        lines.append(row.rstrip())
    return lines


def next_command(run: Run, status: str) -> str:
    """What can be done with a run as it stands."""
    if status in ("finished", "running"):
        return command("chat" if status == "finished" else "runs", run.path)
    return command("finetune", *(["--resume", run.path] if run.checkpoints.is_dir() else []))
