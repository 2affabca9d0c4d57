"""`runs`, `recipes` and `settings`: what there is to use."""

import shutil
from contextlib import suppress
from pathlib import Path
from textwrap import wrap

import click

from mlx_hybrid.cli.commands import answer, command
from mlx_hybrid.cli.options import PATH, json_option, option
from mlx_hybrid.config import explain
from mlx_hybrid.config import recipes as shipped
from mlx_hybrid.errors import ConfigError, nearest
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
        lines = [
            f"{key:<13}  {f'{value:.3f}' if isinstance(value, float) else value}" for key, value in known
        ]
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
    rows = {
        f"{prefix}{metric}": results and results.get(metric, model)
        for metric in ("loss", "accuracy")
        for prefix, model in (("base_", BASE), ("", ADAPTED))
    }
    facts = {"run": run.name, "path": str(run.path), "status": run.status(), "method": info.get("method", "")}
    facts |= {
        "base": info.get("base", {}).get("id", ""),
        "started": info.get("started", ""),
        "step": run.step(),
    }
    facts |= {key: info.get(key) for key in ("best_step", "seconds", "error")}
    return facts | {key: row and row.value for key, row in rows.items()}


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


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List the recipes that come with the package, show or copy one.

    \b
    Examples:
        mlx-hybrid recipes show quickstart > mine.yaml
        mlx-hybrid recipes copy support-chat
    """
    if ctx.invoked_subcommand is None:
        lines = [f"{name:<24} {shipped.summary(path)}" for name, path in shipped.recipes().items()]
        click.echo("\n".join([*lines, "Next: mlx-hybrid recipes show quickstart"]))


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe; save it, change it, and run it."""
    click.echo(shipped.recipe_path(name).read_text(encoding="utf-8"), nl=False)


@recipes.command()
@click.argument("name")
@option("-o --output", "Folder to copy to.  [default: here]", type=PATH, default=".", metavar="DIR")
def copy(name: str, output: Path) -> None:
    """Copy a recipe and the records that it brings along, to make it your own."""
    copies = {own: output / own.name for own in shipped.recipe_files(name)}
    if there := [new for new in copies.values() if new.exists()]:
        raise ConfigError(f"{there[0]}: exists already; name another folder with -o.")
    output.mkdir(parents=True, exist_ok=True)
    for own, new in copies.items():
        shutil.copyfile(own, new)
        click.echo(f"Copied {new}")
    click.echo(f"Next: {command('finetune', next(iter(copies.values())))}")


@click.command()
@click.argument("key", required=False, metavar="[KEY]")
@json_option
def settings(key: str | None, as_json: bool) -> None:
    """List every setting, those of a group, or say what one means.

    KEY is a setting, a group of them, or what another program calls one. Each is given as --set KEY=VALUE or in a YAML
    file; those used most have an option of `finetune` too.

    \b
    Examples:
        mlx-hybrid settings train
        mlx-hybrid settings lora_alpha
    """
    known = explain.settings()
    found = [one for name, one in known.items() if not key or f"{name}.".startswith(f"{key}.")]
    if not found:
        if not (near := explain.meant(key)):
            groups = {name.partition(".")[0] for name in known}
            raise ConfigError(f'No setting "{key}"; {nearest(key, groups)}')
        found = [known[near]]
    lines = [line for one in found for line in told(one, alone=len(found) == 1)]
    answer([one.facts() for one in found], as_json, *lines)


def told(one: explain.Setting, *, alone: bool) -> list[str]:
    """A setting in a list, its key and default and what it means below; or all there is to say of one `alone`."""
    meaning = wrap(one.meaning, 96, initial_indent="    ", subsequent_indent="    ")
    if not alone:
        return [f"{one.key} = {one.usual}", *meaning]
    before = " where the method sets none" if one.key.startswith("adapter.") else ""
    others = [f"    Others call it {', '.join(one.others)}."] if one.others else []
    takes = f"    Takes {one.takes}. Default{before}: {one.usual}."
    return [one.key, *meaning, takes, *others, f"Next: mlx-hybrid finetune --set {one.key}=VALUE"]
