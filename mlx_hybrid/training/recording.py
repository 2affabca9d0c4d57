"""What a run writes: how it began, metrics, the log, checkpoints and the best adapter as its events come, its end."""

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np

from mlx_hybrid.adapters.store import read_adapter_config, save_adapter
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.config import Config, dump_config
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.files import write_json, write_lines, write_text
from mlx_hybrid.records.files import Sources
from mlx_hybrid.run import FORMAT, Run, machine
from mlx_hybrid.training import events
from mlx_hybrid.training.checkpoint import save_checkpoint
from mlx_hybrid.training.loop import first_tenth, total_steps
from mlx_hybrid.training.progress import Progress
from mlx_hybrid.training.setup import Setup, data_identity


def begin_run(
    config: Config, run: Run, setup: Setup, sources: Sources, *, resume: bool, machines: int
) -> None:
    """Write run.json; a resumed run must have the config, but for its time limit, and the data it was begun with."""
    data_hash = data_identity((setup.train, setup.valid, setup.test), setup.base.tokenizer)
    if resume:
        go_on(config, run, data_hash)
        run.update(status="running", error=None, machines=machines)
        return
    run.update(
        status="running",
        started=time.strftime("%Y-%m-%dT%H:%M:%S"),
        method=config.method,
        seed=config.seed,
        base=setup.base.identity,
        data_identity=data_hash,
        template_date=setup.base.tokenizer.date.isoformat(),
        data=[file.path.name for file in (*sources.train, *sources.valid, *sources.test)],
        records={"train": len(setup.train), "valid": len(setup.valid), "test": len(setup.test)},
        machine=machine(),
        machines=machines,
    )
    if rows := [{"where": where, "why": why} for where, why in setup.aside]:
        write_lines(run.path / "set-aside.jsonl", rows)


def go_on(config: Config, run: Run, data_hash: str) -> None:
    """Raise ConfigError where a run would go on with other settings or data; its time limit may be another."""
    old, minutes = run.config(), config.train.max_minutes
    if dataclasses.replace(old, train=dataclasses.replace(old.train, max_minutes=minutes)) != config:
        told = "its config.yaml is not the configuration asked for; resume takes none of its own"
        raise ConfigError(f"{run.path}: {told}.")
    if run.info().get("data_identity") != data_hash:
        raise ConfigError(f"{run.path}: the data changed since the run began; start a new run.")
    run.drop_unfinished()
    if old != config:
        run.log(f"train.max_minutes is {minutes:g} from now on")
        write_text(run.path / "config.yaml", dump_config(config))


def handle(event: events.Event, config: Config, run: Run, setup: Setup, progress: Progress) -> None:
    """Write what an event calls for. Raises MlxHybridError where the disk does not take it."""
    try:
        write_event(event, config, run, setup, progress)
    except (OSError, RuntimeError, MlxHybridError) as error:  # RuntimeError is MLX's word for a failed write
        ours = isinstance(error, MlxHybridError)
        told = error if ours else f"{run.path}: cannot be written ({error})."
        raise MlxHybridError(
            f"{told} Step {progress.step} is not saved, earlier checkpoints are whole; make room, and go on with: "
            f"mlx-hybrid finetune --resume {run.path}"
        ) from error


def write_event(event: events.Event, config: Config, run: Run, setup: Setup, progress: Progress) -> None:
    if row := metrics_row(event):
        run.add_metrics(row)
    match event:
        case events.Validated():
            whole = "" if event.whole is None else f", {event.whole:.4f} on all records"
            run.log(f"step {event.step}: validation loss {event.loss:.4f}{whole}{event.standing}")
            if event.best:
                save_best(config, run, setup, progress)
        case events.Note():
            run.log(event.text)
        case events.NotFinite():
            run.log(f"step {event.step}: not a number; its batches are in {keep_batches(run, event).name}")
        case events.CheckpointDue():
            save_state(config, run, setup, progress)
        case events.Restarted():
            run.forget_after(0)
            run.update(rate_factor=event.factor)
            save_state(config, run, setup, progress)
        case events.Interrupted():
            run.log(f"stopped after step {event.step}, as asked")
            run.update(status="interrupted", step=event.step)
        case events.Finished():
            if not setup.valid:
                save_best(config, run, setup, progress)
            run.log(f"trained {event.step} steps in {event.seconds:.0f} s")
            run.update(
                step=event.step,
                seconds=round(event.seconds, 1),
                best_step=progress.best_step or event.step,
                best_form=progress.best_form,
                ended=progress.ended or "steps",
                beats_base=progress.beats_base,
            )


def save_state(config: Config, run: Run, setup: Setup, progress: Progress) -> None:
    """Write a checkpoint; that of the start stays until the run can no longer begin again."""
    early = progress.step <= first_tenth(total_steps(config.train, len(setup.train)))
    kept = {"keep": config.train.keep_checkpoints, "keep_start": early}
    save_checkpoint(run.checkpoints, setup.base.model, setup.optimizer, progress, **kept)


def metrics_row(event: events.Event) -> dict | None:
    """What metrics.jsonl keeps of an event, units in the keys."""
    match event:
        case events.Trained():
            return {
                "step": event.step,
                "loss_nats_per_token": round(event.loss, 6),
                **event.rates,
                "gradient_norm": round(event.gradient_norm, 6),
                "tokens_per_second": round(event.tokens_per_second, 1),
                "trained_tokens": event.trained_tokens,
                "peak_memory_gb": round(event.peak_memory_gb, 4),
                "seconds": round(event.seconds, 3),
                "mixing": [round(share, 4) for share in event.mixing],
            }
        case events.Orthogonality():
            return {"step": event.step, "rotation_defect": event.defect}
        case events.Validated():
            key = (
                "valid_loss_nats_per_token"
                if event.form == events.RAW
                else "valid_loss_of_average_nats_per_token"
            )
            row = {"step": event.step, key: round(event.loss, 6), "best": event.best}
            if event.whole is not None:
                row["valid_loss_of_all_records_nats_per_token"] = round(event.whole, 6)
            if any(event.by_language):
                losses = {name or "undeclared": round(loss, 6) for name, loss in event.by_language.items()}
                row["valid_loss_nats_per_token_by_language"] = losses
            return row
    return None


def keep_batches(run: Run, event: events.NotFinite) -> Path:
    """Write the batches that gave no number to `not-finite.json`, to be looked at."""
    path = run.path / "not-finite.json"
    batches = [{"records": list(b.where), "tokens": b.tokens.tolist()} for b in event.batches]
    write_json(path, {"format": FORMAT, "step": event.step, "batches": batches})
    return path


def save_best(config: Config, run: Run, setup: Setup, progress: Progress) -> None:
    save_adapter(
        setup.base.model,
        run.adapter,
        config=config.adapter,
        method=config.method,
        base=setup.base.identity,
        seed=config.seed,
        extra={
            "step": progress.step,
            "template": config.model.template,
            "system": config.model.system,
            "chat_template": setup.base.tokenizer.given,
        },
    )


def note_end(run: Run, error: BaseException) -> None:
    """Write down how a run broke off: by a fault, or by a second Ctrl-C."""
    fault = {"error": str(error)} if isinstance(error, Exception) else {}
    with contextlib.suppress(OSError):  # the disk may be what failed
        run.update(status="failed" if fault else "interrupted", **fault)
        run.log(f"broke off: {error or type(error).__name__}")


def way_on(run: Run) -> str:
    """The step to go on from, and how, where there is one."""
    step = run.saved_step()
    return (
        f" Step {step} is saved; go on with: mlx-hybrid finetune --resume {run.path}"
        if step is not None
        else ""
    )


def mixing(run: Run) -> tuple[list[str], list[int], np.ndarray]:
    """Modules with both branches, the steps reported, and λ (modules, steps); empty where nothing is mixed."""
    info = read_adapter_config(run.adapter)
    config, rows = info.adapter, []
    modules = [name for name in info.modules if last_part(name) not in config.unitary]
    if config.mixing in ("gradient", "inverted") and config.rotation and config.low_rank:
        rows = [row for row in run.metrics() if len(row.get("mixing", [])) == len(modules)]
    if not rows:
        return [], [], np.empty((0, 0))
    return modules, [row["step"] for row in rows], np.array([row["mixing"] for row in rows]).T
