"""`runs`, `recipes`, `doctor`: look at what is there."""

import json
from pathlib import Path
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
    info = run.info()
    facts = {
        "run": run.name, "path": str(run.path), "status": run.status(), "method": info.get("method", ""),
        "base": info.get("base", {}).get("id", ""), "started": info.get("started", ""),
        "step": run.step(), "best_step": info.get("best_step"), "seconds": info.get("seconds"),
        "error": info.get("error"), "base_accuracy": None, "accuracy": None,
    }  # fmt: skip
    held_out = run.path / "evaluation" / "held-out.json"
    if held_out.is_file():
        accuracy = json.loads(held_out.read_text(encoding="utf-8")).get("accuracy")
        if accuracy:
            facts["base_accuracy"], facts["accuracy"] = (
                accuracy["base"]["value"],
                accuracy["adapted"]["value"],
            )
    return facts


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes that come with the package, or show one.

    \b
    Examples:
        mlx-hybrid recipes
        mlx-hybrid recipes show quickstart
    """
    from mlx_hybrid import recipes_folder

    if ctx.invoked_subcommand is None:
        for name, path in recipes_folder.recipes().items():
            click.echo(f"{name:<24} {recipes_folder.summary(path)}")
        click.echo("Next: mlx-hybrid recipes show quickstart")


@recipes.command("show")
@click.argument("name")
def show_recipe(name: str) -> None:
    """Print a recipe; save it, change it, and run it.

    \b
    Example:
        mlx-hybrid recipes show quickstart > mine.yaml
    """
    from mlx_hybrid.recipes_folder import recipe_path

    click.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine offers and whether everything needed is installed.

    \b
    Example:
        mlx-hybrid doctor
    """
    facts, problems = examine()
    if as_json:
        click.echo(json.dumps({"facts": facts, "problems": problems}, ensure_ascii=False))
    else:
        for key, value in facts.items():
            click.echo(f"{key:<16} {value}")
        for problem in problems:
            click.echo(f"Problem: {problem}")
        click.echo(
            "Next: mlx-hybrid finetune" if not problems else "Mend the problems, then: mlx-hybrid doctor"
        )
    if problems:
        raise SystemExit(3)


def examine() -> tuple[dict, list[str]]:
    """Facts and problems."""
    import shutil

    from mlx_hybrid.errors import ConfigError
    from mlx_hybrid.governance.checks.engines import fasttext_distribution
    from mlx_hybrid.models.base import BUNDLED_FOLDER, check_folder, is_offline
    from mlx_hybrid.models.blas import prefer_openblas
    from mlx_hybrid.run import machine, runs_root

    prefer_openblas()
    about = machine()
    facts = {key: about[key] for key in ("system", "machine", "python", "device", "cores")} | about[
        "versions"
    ]
    facts["memory_gb"] = round(memory_bytes() / 1e9, 1)
    facts["openblas"] = "yes" if openblas_loaded() else "no"
    facts["distributed"] = ", ".join(distributed_backends()) or "none"
    facts["fasttext"] = fasttext_distribution() or "none"
    facts["offline"] = "yes" if is_offline() else "no"
    facts["runs"] = str(runs_root())
    facts["free_disk_gb"] = round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)
    problems = []
    try:
        check_folder(BUNDLED_FOLDER, "the bundled base")
    except ConfigError as error:
        problems.append(str(error))
    if facts["system"] == "Darwin" and facts["device"] == "CPU":
        problems.append("MLX does not see the GPU; install mlx for Apple Silicon, with a native Python.")
    if facts["system"] == "Linux" and facts["device"] == "CPU" and facts["openblas"] == "no":
        facts["hint"] = "training is several times faster with OpenBLAS: apt install libopenblas0-pthread"
    return facts, problems


def distributed_backends() -> list[str]:
    """How several machines may train together here (docs/distributed.md)."""
    import mlx.core as mx

    return [name for name in ("ring", "jaccl", "mpi", "nccl") if mx.distributed.is_available(name)]


def memory_bytes() -> int:
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def openblas_loaded() -> bool:
    maps = Path("/proc/self/maps")
    return maps.exists() and "openblas" in maps.read_text()
