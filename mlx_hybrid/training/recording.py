"""What a run writes: how it began, metrics, the log, checkpoints and the best adapter as its events come, its end."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.attach import dequantise, hybrid_layers
from mlx_hybrid.adapters.store import put_adapter, read_adapter_config, save_adapter
from mlx_hybrid.adapters.strength import at_strength, write_at_strength
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.config import Config, dump_config
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.files import new_directory, write_lines, write_text
from mlx_hybrid.models.base import BaseModel, fingerprints, load_base
from mlx_hybrid.records.record import Split
from mlx_hybrid.run import Run, machine
from mlx_hybrid.training import events
from mlx_hybrid.training.checkpoint import Progress, save_checkpoint
from mlx_hybrid.training.loop import total_steps
from mlx_hybrid.training.setup import Setup, data_identity
from mlx_hybrid.training.validation import least_strength, mean_loss, plan, summed_losses

STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # what `train.strength: auto` chooses from


def begin_run(config: Config, run: Run, setup: Setup, sources: Split, *, resume: bool, machines: int) -> None:
    """Write run.json; a resumed run must have the config, but for its time limit, the base and the data it had."""
    data_hash = data_identity((setup.train, setup.valid, setup.test), setup.base.tokenizer)
    if resume:
        go_on(config, run, setup.base, data_hash)
        run.update(status="running", error=None, machines=machines, base=setup.base.identity)
        return
    facts = {"status": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S"), "method": config.method}
    facts |= {"seed": config.seed, "base": setup.base.identity, "data_identity": data_hash}
    facts |= {"template_date": setup.base.tokenizer.date.isoformat()}
    facts |= {"data": [file.path.name for part in sources for file in part]}
    facts |= {"records": {use: len(getattr(setup, use)) for use in ("train", "valid", "test")}}
    run.update(**facts, machine=machine(), machines=machines)
    if rows := [{"where": where, "why": why} for where, why in setup.aside]:
        write_lines(run.path / "set-aside.jsonl", rows)


def go_on(config: Config, run: Run, base: BaseModel, data_hash: str) -> None:
    """Raise ConfigError where a run would go on with other settings, weights or data, but for its time limit."""
    old, minutes = run.config(), config.train.max_minutes
    if replace(old, train=replace(old.train, max_minutes=minutes)) != config:
        raise ConfigError(f"{run.path}: goes on with its own config.yaml alone; ask for no other settings.")
    begun, own = run.info().get("base", {}), base.identity["fingerprint"]
    known = begun.get("fingerprint", own)  # older runs noted none
    if known != own and known not in fingerprints(base.path):
        told = f"was begun on {begun.get('id')}, whose weights are not those of {base.path}"
        raise ConfigError(f"{run.path}: {told}; name the right base in its config.yaml, or start a new run.")
    if run.info().get("data_identity") != data_hash:
        raise ConfigError(f"{run.path}: the data changed since the run began; start a new run.")
    run.drop_unfinished()
    if old != config:
        run.log(f"train.max_minutes is {minutes:g} from now on")
        write_text(run.path / "config.yaml", dump_config(config))


@dataclass(frozen=True)
class Recorder:
    """Writes a run as its events come."""

    config: Config
    run: Run
    setup: Setup
    progress: Progress

    def handle(self, event: events.Event) -> None:
        """Write what an event calls for. Raises MlxHybridError where the disk does not take it."""
        try:
            self.write(event)
        except (OSError, RuntimeError, MlxHybridError) as error:  # MLX says RuntimeError
            ours = isinstance(error, MlxHybridError)
            told = error if ours else f"{self.run.path}: cannot be written ({error})."
            lost = f"Step {self.progress.step} is not saved, earlier checkpoints are whole"
            way = f"make room, and go on with: {self.run.way_on}"
            raise MlxHybridError(f"{told} {lost}; {way}") from error

    def write(self, event: events.Event) -> None:
        run, progress = self.run, self.progress
        if row := metrics_row(event):
            run.add_metrics(row)
        match event:
            case events.Validated():
                run.log(f"step {event.step}: validation loss {event.loss:.4f}{event.standing}")
                if event.best:
                    self.save_best()
            case events.Note():
                run.log(event.text)
            case events.CheckpointDue():
                if not event.step:
                    run.forget_after(0)
                given = (self.setup.base.model, self.setup.optimizer, progress)
                save_checkpoint(run.checkpoints, *given, self.config.train.keep_checkpoints)
            case events.Interrupted():
                run.log(f"stopped after step {event.step}, as asked")
                run.update(status="interrupted", step=event.step)
            case events.Finished():
                if not self.setup.valid:
                    self.save_best()
                run.log(f"trained {event.step} steps in {event.seconds:.0f} s")
                best = {"best_step": progress.best_step or event.step, "best_form": progress.best_form}
                ended = {"ended": progress.ended or "steps", "beats_base": progress.beats_base}
                ended |= {"rate_factor": 0.5**progress.halvings} if progress.halvings else {}
                run.update(step=event.step, seconds=round(event.seconds, 1), **best, **ended)

    def save_best(self) -> None:
        config, base = self.config, self.setup.base
        facts = {"method": config.method, "base": base.identity, "seed": config.seed}
        told = {"template": config.model.template, "system": config.model.system}
        extra = {"step": self.progress.step, **told, "chat_template": base.tokenizer.given}
        save_adapter(base.model, self.run.adapter, config=config.adapter, extra=extra, **facts)

    def keep_at_strength(self) -> Iterator[events.Note]:
        """Keep the run's best adapter at `train.strength`, and say what is kept where it is not the plain one."""
        run, train, model = self.run, self.config.train, self.setup.base.model
        info, wanted = read_adapter_config(run.adapter), train.strength
        chosen = info.extra.get("strength", 1.0)
        if wanted != 1 and "strength" not in info.extra:
            put_adapter(model, info, run.adapter)
            plain, chosen = self.values_before(), wanted
            if not wanted:
                steps = total_steps(train, len(self.setup.train))
                sample, _ = plan(self.setup.valid, self.setup.train, steps, train)
                sums = {}
                for t in STRENGTHS:
                    with at_strength(model, t, plain):
                        sums[t] = summed_losses(model, sample, batch_size=train.batch_size)
                chosen, told = least_strength(sums)
                run.update(strengths={f"{t:g}": round(mean_loss(own), 6) for t, own in sums.items()})
                yield events.Note(told)
            with new_directory(run.adapter) as folder:
                write_at_strength(run.adapter, folder, chosen, plain)
        kept = run.info().get("best_form", events.RAW)
        run.update(strength=chosen)
        if (kept, chosen) != (events.RAW, 1.0) or train.average != "none" or wanted != 1:
            form = "the raw weights" if kept == events.RAW else f"their average ({kept})"
            yield events.Note(f"Kept: {form} of step {run.info().get('best_step')}, at strength {chosen:g}.")

    def values_before(self) -> Callable[[str], mx.array]:
        """What a magnitude, or a weight of `full`, was before training, by its name."""
        if self.config.adapter.full:
            base = load_base(self.config.model.name, tokenizer=self.setup.base.tokenizer).model
            dequantise(base)
            return dict(tree_flatten(base.parameters())).__getitem__
        layers = hybrid_layers(self.setup.base.model)
        return lambda name: mx.sqrt(layers[name.rpartition(".")[0]]._squares)


def metrics_row(event: object) -> dict | None:
    """What metrics.jsonl keeps of an event, units in the keys."""
    match event:
        case events.Trained():
            row = {"step": event.step, "loss_nats_per_token": round(event.loss, 6), **event.rates}
            row |= {"gradient_norm": round(event.gradient_norm, 6)}
            row |= {"tokens_per_second": round(event.tokens_per_second, 1)}
            row |= {"trained_tokens": event.trained_tokens, "peak_memory_gb": round(event.peak_memory_gb, 4)}
            return row | {"seconds": round(event.seconds, 3), "mixing": [round(x, 4) for x in event.mixing]}
        case events.Orthogonality():
            return {"step": event.step, "rotation_defect": event.defect}
        case events.Validated():
            key = "valid_loss" if event.form == events.RAW else "valid_loss_of_average"
            row = {"step": event.step, f"{key}_nats_per_token": round(event.loss, 6), "best": event.best}
            if any(event.by_language):
                losses = {name or "undeclared": round(loss, 6) for name, loss in event.by_language.items()}
                row["valid_loss_nats_per_token_by_language"] = losses
            return row
    return None


def note_end(run: Run, error: BaseException) -> None:
    """Write down how a run broke off: by a fault, or by a second Ctrl-C."""
    fault = {"error": str(error)} if isinstance(error, Exception) else {}
    with contextlib.suppress(OSError):  # the disk may be what failed
        run.update(status="failed" if fault else "interrupted", **fault)
        run.log(f"broke off: {error or type(error).__name__}")


def way_on(run: Run) -> str:
    """The step to go on from, and how, where there is one."""
    return "" if (step := run.saved_step()) is None else f" Step {step} is saved; go on with: {run.way_on}"


def mixing(run: Run) -> tuple[list[str], list[int], np.ndarray]:
    """Modules with both branches, the steps reported, and λ (modules, steps); empty where nothing is mixed."""
    info = read_adapter_config(run.adapter)
    config, modules = info.adapter, [n for n in info.modules if last_part(n) not in info.adapter.unitary]
    rows = [row for row in run.metrics() if len(row.get("mixing", [])) == len(modules)]
    if not (rows and config.rotation and config.low_rank and config.mixing in ("gradient", "inverted")):
        return [], [], np.empty((0, 0))
    return modules, [row["step"] for row in rows], np.array([row["mixing"] for row in rows]).T
