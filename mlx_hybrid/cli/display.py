"""How a job's events look: a live bar on a terminal, plain lines elsewhere. Talk goes to stderr, results to stdout."""

import math
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mlx_hybrid.cli.output import command
from mlx_hybrid.config import Config
from mlx_hybrid.config.explain import absurd, chosen
from mlx_hybrid.jobs.events import AdapterReady, Answered, Evaluated, JobEvent, Prepared
from mlx_hybrid.report.result_tables import result_tables
from mlx_hybrid.report.tables import joined, one_line
from mlx_hybrid.training.events import Finished, Interrupted, Note, Started, Trained, Validated


class Display:
    """Shows events as they come, and remembers what the last line should say."""

    def __init__(self, *, as_json: bool = False) -> None:
        how = {"highlight": False, "markup": False}
        self.talk = Console(stderr=True, soft_wrap=not sys.stderr.isatty(), **how)
        self.out = self.talk if as_json else Console(soft_wrap=True, **how)
        self.note = self.talk.print
        self.bar = self.run = self.results = None
        self.interrupted = self.trained_to_the_end = False
        self.base_loss = math.inf

    def settings(self, config: Config) -> None:
        """What the run will do, before it does: the settings that decide most, and what is not usual."""
        told = chosen(config)
        width = max(map(len, told))
        self.note("Settings (all with --dry-run; change any with --set KEY=VALUE):")
        for key, value in told.items():
            self.note(f"{key:<{width}}  {value}")
        for warning in absurd(config):
            self.note(f"Warning: {warning}")

    def show(self, event: JobEvent) -> None:
        """Call what is named after the event; of others nothing is said."""
        getattr(self, f"on_{type(event).__name__.lower()}", lambda event: None)(event)

    def on_note(self, event: Note) -> None:
        self.note(event.text)

    def on_prepared(self, event: Prepared) -> None:
        self.run = event.run
        self.note(event.read_as)
        reasons = ", ".join(f"{reason} {count}" for reason, count in event.reasons.items())
        aside = f"; {event.rejected} set aside ({reasons})" if event.rejected else ""
        self.note(f"Records: {event.kept} kept{aside}.")
        if event.rejected and event.run.rejected.is_file():
            self.note(f"Set aside, each with its reason: {event.run.rejected}")
        self.note(f"Split: {event.train} to train, {event.valid} to validate, {event.test} held out.")

    def on_started(self, event: Started) -> None:
        where = f" from step {event.first_step}" if event.first_step else ""
        machines = f", by {event.machines} machines" if event.machines > 1 else ""
        what = f"{event.trainable:,} parameters on {event.modules} modules"
        self.note(f"Training {what}, {event.steps} steps over {event.records} records{where}{machines}.")
        if self.talk.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[facts]}")
            self.bar = Progress("train", *columns, console=self.talk)
            self.bar.add_task("", total=event.steps, completed=event.first_step, facts="")
            self.bar.start()

    def on_trained(self, event: Trained) -> None:
        speed, memory = f"{event.tokens_per_second:,.0f} tokens/s", f"peak {event.peak_memory_gb:.2f} GB"
        facts = f"loss {event.loss:.3f}  {speed}  {memory}"
        if self.bar:
            self.bar.update(self.bar.task_ids[0], completed=event.step, facts=facts)
        else:
            left = event.seconds / max(1, event.step) * (event.steps - event.step)
            self.note(f"step {event.step}/{event.steps}  {facts}  ETA {left:.0f} s")

    def on_validated(self, event: Validated) -> None:
        self.base_loss = self.base_loss if event.step else event.loss
        above = ", above the base's" if event.step and event.best and event.loss >= self.base_loss else ""
        standing = event.standing.replace(")", f"{above})")
        self.note(f"step {event.step}  validation loss {event.loss:.3f}{standing}")

    def on_interrupted(self, event: Interrupted) -> None:
        self.stop_bar()
        self.go_on(f"Stopped after step {event.step}; everything is saved. Go on with:")

    def on_finished(self, event: Finished) -> None:
        self.stop_bar()
        self.trained_to_the_end = True
        self.note(f"Trained {event.step} steps in {event.seconds:.0f} s.")

    def on_adapterready(self, event: AdapterReady) -> None:
        self.note(f"Adapter on {event.modules} modules; logits change by up to {event.change:.3g}.")

    def on_evaluated(self, event: Evaluated) -> None:
        self.results = event.results
        self.out.print(joined(result_tables(event.results)[:2]))

    def on_answered(self, event: Answered) -> None:
        self.out.print("Answers, base beside adapter:")
        for row in event.rows:
            prompt, base, adapted = (one_line(row[key]) for key in ("prompt", "base", "adapted"))
            self.out.print(f"{row['kind']}: {prompt}\n  base     {base}\n  adapter  {adapted}")

    def broken_off(self) -> None:
        """After a second Ctrl-C, or one before or after the steps."""
        self.interrupted = True
        if not self.info:
            nothing = "Stopped before the first checkpoint: nothing is kept."
            self.note(f"{nothing} Start again with the same command.")
        elif self.trained_to_the_end:
            self.go_on(f"Stopped while measuring; the adapter is trained, in {self.run.adapter}. Go on with:")
        else:
            self.go_on("Stopped at once. From the last checkpoint, go on with:")

    def go_on(self, text: str) -> None:
        self.interrupted = True
        self.note(text)
        self.out.print(command("finetune", "--resume", self.run.path))

    def stop_bar(self) -> None:
        if self.bar:
            self.bar.stop()

    def next_commands(self) -> None:
        """The last lines of a finished run."""
        self.out.print(f"Run saved in {self.run.path}. Next:\n  {command('chat', self.run.path)}")
        if not self.beats_base:
            self.out.print("No adapter of this run beats the model it began with on the validation records.")

    @property
    def info(self) -> dict:
        """What the run says of itself; nothing where nothing of it is kept."""
        return self.run.info() if self.run and self.run.path.is_dir() else {}

    @property
    def beats_base(self) -> bool:
        """Whether the adapter is better than none on the validation records; also where there were none."""
        return self.info.get("beats_base", True)

    def summary(self) -> dict:
        run, status = str(self.run.path) if self.info else None, self.info.get("status", "interrupted")
        return {"format": 1, "run": run, "status": status, "results": self.results and self.results.tree()}
