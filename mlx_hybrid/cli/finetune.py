"""`finetune`: the whole job in one command."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli import options as shared
from mlx_hybrid.cli.options import PATH, flag, names, option, setting
from mlx_hybrid.cli.output import answer, given, tell
from mlx_hybrid.config import Config, dump_config, flat, load_config, override_tree, read_settings
from mlx_hybrid.config.explain import absurd
from mlx_hybrid.config.recipes import recipe_path, run_config
from mlx_hybrid.errors import INTERRUPTED, ConfigError, DataError
from mlx_hybrid.run import Run, find_run
from mlx_hybrid.training.stopping import StopRequest

MAX_MINUTES = "train.max_minutes"
FIRST = "the first step, so that it can be gone on with"


@click.command()
@shared.run_options
@option("-o --output", "Folder of the run.", type=PATH, metavar="RUN")
@option("--from start", "Go on from this run's or folder's adapter, as a new run.", metavar="RUN")
@option("--resume", "Go on with an interrupted run.", is_flag=False, flag_value="last", metavar="[RUN]")
@setting(MAX_MINUTES, "--max-time", "Stop training after so long; finish as usual.", metavar="MINUTES")
@setting("data.allow_changed", "--allow-changed-data")
@names("--log trackers", "Tell tensorboard, trackio or wandb as it goes.")
@flag("--force", "Start even where memory will probably not do.")
@flag("--dry-run", "Check everything but the weights, show it, and stop.")
@shared.json_option
def finetune(
    config: str | None, overrides: tuple[str, ...], dry_run: bool, force: bool, as_json: bool, **options: Any
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

    asked, world, run = shared.given_settings(options), join(), None
    if options["start"]:
        asked |= continued(options["start"], config, asked, overrides)
    if options["resume"]:
        settings, run = resumed(options["resume"], config, asked, overrides, options["output"])
    else:
        settings = run_config(config, overrides, asked)
    how = {"force": force, "world": world}
    if dry_run:
        planned = job.plan(settings, resume=run, **how)
        if world.first:
            show_plan(planned, settings, as_json)
        return
    how |= {"output": options["output"], "resume": run, "stop": stop}
    if world.first:
        must_gain = bool(options["start"] or config or run or "data.paths" in asked)
        show_job(settings, as_json, options["trackers"], must_gain, **how)
    else:  # the other machines take their part in silence
        stop.tell = lambda text: None
        for _ in job.finetune(settings, **how):
            pass


def show_job(settings: Config, as_json: bool, trackers: tuple[str, ...], must_gain: bool, **how: Any) -> None:
    """Run the job and show what happens; one that `must_gain` ends with 3 where no adapter beats its base."""
    from mlx_hybrid.cli.display import Display
    from mlx_hybrid.jobs import finetune as job
    from mlx_hybrid.jobs.events import Tracking

    display, stop = Display(as_json=as_json), how["stop"]
    stop.tell = display.note
    display.settings(settings)
    with Tracking(*trackers) as tracking:
        try:
            for event in job.finetune(settings, **how):
                display.show(event)
                tracking.follow(event)
                stop.follow(event)
        except KeyboardInterrupt:
            display.broken_off()
        finally:
            display.stop_bar()
    if as_json:
        answer(display.summary(), as_json)
    elif not display.interrupted:
        display.next_commands()
    if display.interrupted:
        raise SystemExit(INTERRUPTED)
    if must_gain and not display.beats_base:
        raise SystemExit(DataError.exit_code)


def continued(name: str, config: str | None, asked: dict, overrides: tuple[str, ...]) -> dict:
    """Settings of a run that goes on from an adapter. Raises ConfigError for others that were asked for."""
    from mlx_hybrid.models.adapted import find_adapter
    from mlx_hybrid.training.setup import settings_of_adapter

    told = {parameter.replace("__", "."): written for parameter, written in given().items()}
    told |= {key: f"--set {key}" for key in (o.partition("=")[0] for o in overrides)}
    told |= {key: f"{config}: {key}" for key in (read_settings(recipe_path(config)) if config else {})}
    if fixed := [word for key, word in told.items() if key.split(".")[0] in ("method", "adapter")]:
        raise ConfigError(f"--from goes on with the adapter as it is; leave out {fixed[0]}.")
    named = flat(override_tree(overrides)).get("model.name")
    folder, model = find_adapter(name, asked.get("model.name") or named)
    return settings_of_adapter(folder, name, model)


def resumed(
    name: str, config: str | None, asked: dict, overrides: tuple[str, ...], output: Path | None
) -> tuple[Config, Run]:
    """The run to go on with, and its own configuration, but for a time limit: another would not be the same run."""
    if config or asked.keys() - {MAX_MINUTES} or overrides or output:
        told = "leave out CONFIG and the other options but --max-time."
        raise ConfigError(f"--resume goes on with the run's own settings; {told}")
    run = find_run(name)
    if run.is_finished():
        raise ConfigError(f"{run.path}: is finished; there is nothing to resume.")
    if not run.checkpoints.is_dir():
        raise ConfigError(f"{run.path}: stopped before its first checkpoint; start a new run.")
    if run.folder() != Path.cwd():  # go there until the end, so that names in the config mean what they did
        run = Run(run.path.resolve())
        click.get_current_context().with_resource(chdir(run.folder()))
    path = run.path / "config.yaml"
    if "prompt_hold" not in read_settings(path).get("train", {}):
        raise ConfigError(
            f"{run.path}: was begun by a version that held prompts in another way; start a new run."
        )
    return load_config(path, values=asked), run


def show_plan(plan: dict, settings: Config, as_json: bool) -> None:
    records, tokens = plan["records"], plan["tokens"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in records["reasons"].items())
    too_long = f"; {tokens['too_long']} too long" if tokens["too_long"] else ""
    for warning in absurd(settings):
        tell(f"Warning: {warning}")
    lines = [
        f"{dump_config(settings)}# {plan['read_as']}",
        f"# records: {records['kept']} kept, {records['rejected']} rejected{reasons and f' ({reasons})'}",
        f"# split: {', '.join(f'{count} {part}' for part, count in plan['split'].items())}",
        f"# tokens: {tokens['train']} in training, the longest record {tokens['longest']}{too_long}",
    ]
    answer(plan, as_json, *lines)
