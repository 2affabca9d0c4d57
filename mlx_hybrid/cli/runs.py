"""`runs`: list runs, or show one."""

from contextlib import suppress

import click
from click import argument, option

from mlx_hybrid.cli.commands import answer, command
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run, find_run, list_runs


@click.command()
@argument("name", required=False, metavar="[RUN]")
@option("--json", "as_json", is_flag=True, help="Print as JSON.")
def runs(name: str | None, as_json: bool) -> None:
    """List runs, newest last, or show one.

    \b
    Examples:
        mlx-hybrid runs
        mlx-hybrid runs last
    """
    chosen = [find_run(name)] if name else list_runs()
    facts = [run_facts(run) for run in chosen]
    if not name:
        empty = ["No runs yet. Next: mlx-hybrid finetune"]
        answer(facts, as_json, *([*run_table(facts), "Next: mlx-hybrid runs last"] if facts else empty))
        return
    known = ((key, value) for key, value in facts[0].items() if value not in (None, ""))
    lines = [f"{key:<13}  {f'{value:.3f}' if isinstance(value, float) else value}" for key, value in known]
    answer(facts[0], as_json, *lines, f"Next: {next_command(chosen[0], facts[0]['status'])}")


def run_table(facts: list[dict]) -> list[str]:
    """One line a run, within 80 columns for names up to 29 letters."""
    width = max(len("run"), *(len(fact["run"]) for fact in facts))
    lines = [f"{'run':<{width}}  {'status':<11}  {'method':<14}  {'loss':<9}  accuracy"]
    for fact in facts:
        gains = (
            f"{fact[f'base_{key}']:.2f}→{fact[key]:.2f}" if fact[key] is not None else ""
            for key in ("loss", "accuracy")
        )
        loss, accuracy = gains
        row = f"{fact['run']:<{width}}  {fact['status']:<11}  {fact['method']:<14}  {loss:<9}  {accuracy}"
        lines.append(row.rstrip())
    return lines


def next_command(run: Run, status: str) -> str:
    """What can be done with a run as it stands."""
    if status in ("finished", "running"):
        return command("chat" if status == "finished" else "runs", run.path)
    return command("finetune", *(["--resume", run.path] if run.checkpoints.is_dir() else []))


def run_facts(run: Run) -> dict:
    from mlx_hybrid.evaluation.results import ADAPTED, BASE, read_results

    info, results = run.info(), None
    with suppress(ConfigError):  # nothing was measured, or by an older version
        results = read_results(run.path / "evaluation" / "held-out.json")
    rows = {
        f"{prefix}{metric}": results and results.get(metric, model)
        for metric in ("loss", "accuracy")
        for prefix, model in (("base_", BASE), ("", ADAPTED))
    }
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.status(),
        "method": info.get("method", ""),
        "base": info.get("base", {}).get("id", ""),
        "started": info.get("started", ""),
        "step": run.step(),
        **{key: info.get(key) for key in ("best_step", "seconds", "error")},
        **{key: row and row.value for key, row in rows.items()},
    }
