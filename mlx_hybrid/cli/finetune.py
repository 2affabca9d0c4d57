"""`finetune`: the whole job in one command."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import click
from click import option

from mlx_hybrid.cli.commands import answer, given_parameters, tell
from mlx_hybrid.cli.options import PATH, given_settings, listed, run_options, setting
from mlx_hybrid.config import Config, dump_config, load_config
from mlx_hybrid.config.explain import absurd
from mlx_hybrid.config.recipes import recipe_path, run_config
from mlx_hybrid.errors import INTERRUPTED, ConfigError, DataError
from mlx_hybrid.jobs.stopping import StopRequest

MAX_MINUTES = "train.max_minutes"
FIRST = "the first step, so that it can be gone on with"


@click.command()
@run_options
@option("-o", "--output", type=PATH, metavar="RUN", help="Folder of the run.")
@option("--from", "start", metavar="RUN", help="Go on from this run's or folder's adapter, as a new run.")
@option("--resume", is_flag=False, flag_value="last", metavar="[RUN]", help="Go on with an interrupted run.")
@setting(MAX_MINUTES, "--max-time", metavar="MINUTES", help="Stop training after so long; finish as usual.")
@setting("data.allow_changed", "--allow-changed-data")
@option(
    "--log", "trackers", multiple=True, callback=listed, help="Tell tensorboard, trackio or wandb as it goes."
)
@option("--force", is_flag=True, help="Start even where memory will probably not do.")
@option("--dry-run", is_flag=True, help="Check everything but the weights, show it, and stop.")
@option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def finetune(
    config: str | None,
    output: Path | None,
    overrides: tuple[str, ...],
    start: str | None,
    resume: str | None,
    trackers: tuple[str, ...],
    dry_run: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Govern the records, train an adapter, and measure it against the base.

    CONFIG is a YAML file or the name of a recipe. Without one, and without --data, the quickstart recipe runs on
    the bundled model and sample records. A run whose adapter does not beat its base on the validation records is kept,
    says so in its last line, and ends with exit code 3.

    \b
    Examples:
        mlx-hybrid finetune
        mlx-hybrid finetune --model mlx-community/Qwen3-0.6B-4bit --data folder --set train.epochs=2
        mlx-hybrid finetune --data pairs.csv --map question=prompt,answer=completion
        mlx-hybrid finetune --from last --data more.jsonl
        mlx-hybrid finetune --resume last --max-time 30
    """
    stop = click.get_current_context().with_resource(StopRequest(tell, "" if dry_run else FIRST))
    from mlx_hybrid.jobs import finetune as job
    from mlx_hybrid.training.distributed import join

    given, world, run = given_settings(options), join(), None
    if start:
        given |= continued(start, config, given, overrides)
    if resume:
        settings, run = resumed(resume, config, given, overrides, output)
    else:
        settings = run_config(config, overrides, given)
    if dry_run:
        planned = job.plan(settings, world=world, force=force)
        if world.first:
            show_plan(planned, settings, as_json)
    elif world.first:
        strict = not start and bool(config or resume or "data.paths" in given)
        how = {"output": output, "resume": run, "force": force, "world": world}
        show_job(settings, stop, as_json, trackers, strict=strict, **how)
    else:  # the other machines take their part in silence
        stop.tell = lambda text: None
        for _ in job.finetune(settings, stop=stop, resume=run, force=force, world=world):
            pass


def show_job(
    settings: Config, stop: StopRequest, as_json: bool, trackers: tuple[str, ...], *, strict: bool, **how: Any
) -> None:
    """Run the job and show what happens; a `strict` one ends with 3 where no adapter beats its base."""
    from mlx_hybrid.cli.display import Display
    from mlx_hybrid.jobs import finetune as job
    from mlx_hybrid.jobs.tracking import Tracking

    display = Display(as_json=as_json)
    stop.tell = display.note
    display.settings(settings)
    with Tracking(*trackers) as tracking:
        try:
            for event in job.finetune(settings, stop=stop, **how):
                display.show(event)
                tracking.follow(event)
                stop.follow(event)
        except KeyboardInterrupt:
            display.broken_off()
        finally:
            display.stop_bar()
    if as_json:
        answer(display.summary(), as_json)
    if display.interrupted:
        raise SystemExit(INTERRUPTED)
    if not as_json:
        display.next_commands()
    if strict and not display.beats_base:
        raise SystemExit(DataError.exit_code)


def continued(name: str, config: str | None, given: dict, overrides: tuple[str, ...]) -> dict:
    """Settings of a run that goes on from an adapter. Raises ConfigError for others that were asked for."""
    from mlx_hybrid.config import read_settings
    from mlx_hybrid.models.adapted import find_adapter
    from mlx_hybrid.training.setup import settings_of_adapter

    asked = {option.name.replace("__", "."): option.opts[-1] for option in given_parameters()}
    asked |= {key: f"--set {key}" for key in (o.partition("=")[0] for o in overrides)}
    asked |= {key: f"{config}: {key}" for key in (read_settings(recipe_path(config)) if config else {})}
    fixed = [told for key, told in asked.items() if key == "method" or key.split(".")[0] == "adapter"]
    if fixed:
        raise ConfigError(f"--from goes on with the adapter as it is; leave out {fixed[0]}.")
    folder, model = find_adapter(name)
    return settings_of_adapter(folder, name, given.get("model.name") or model)


def resumed(
    name: str, config: str | None, given: dict, overrides: tuple[str, ...], output: Path | None
) -> tuple:
    """The run to go on with, and its own configuration: another would not be the same run.

    A time limit may be given anew. Until the command ends it is in the folder the run was begun in, so that the names
    in its config mean what they did.
    """
    from mlx_hybrid.run import Run, find_run

    if config or given.keys() - {MAX_MINUTES} or overrides or output:
        raise ConfigError(
            "--resume goes on with the run's own settings; leave out CONFIG and the other options but --max-time."
        )
    run = find_run(name)
    if run.is_finished():
        raise ConfigError(f"{run.path}: is finished; there is nothing to resume.")
    if not run.checkpoints.is_dir():
        raise ConfigError(f"{run.path}: stopped before its first checkpoint; start a new run.")
    if run.folder() != Path.cwd():
        run = Run(run.path.resolve())
        click.get_current_context().with_resource(chdir(run.folder()))
    return load_config(run.path / "config.yaml", values=given), run


def show_plan(plan: dict, settings: Config, as_json: bool) -> None:
    records, tokens = plan["records"], plan["tokens"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in records["reasons"].items())
    too_long = f"; {tokens['too_long']} too long" if tokens["too_long"] else ""
    for warning in absurd(settings):
        tell(f"Warning: {warning}")
    answer(
        plan,
        as_json,
        f"{dump_config(settings)}# {plan['read_as']}",
        f"# records: {records['kept']} kept, {records['rejected']} rejected{reasons and f' ({reasons})'}",
        f"# split: {', '.join(f'{count} {part}' for part, count in plan['split'].items())}",
        f"# tokens: {tokens['train']} in training, the longest record {tokens['longest']}{too_long}",
    )
