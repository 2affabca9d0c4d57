"""Where a run stands, and its checkpoints: all that going on needs, so that a resumed run equals one never stopped."""

import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.store import adapter_state, set_state
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import new_directory, read_json, write_json
from mlx_hybrid.run import checkpoints
from mlx_hybrid.training.events import RAW, Note, Trained
from mlx_hybrid.training.optimizer import BranchOptimizer

FORMAT = 2
OF_OLDER = ("level",)  # what older versions kept of a run beside what is kept now
STATES = ("average", "start")  # of adapters, each a file of its own
PATIENCE, TIME = "patience", "time"  # why a run may end early


@dataclass
class Window:
    """Sums since the last report, and the gradient norm and λ of each layer that shares its step of the last one."""

    loss: float = 0.0
    weight: float = 0.0
    trained: int = 0
    tokens: int = 0
    norm: float = 0.0
    mixing: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Progress:
    """Steps done, the best validation so far, and what the guards have seen."""

    step: int = 0
    base_loss: float = math.inf  # the validation loss before the first step
    best_loss: float = math.inf
    best_step: int = 0
    seconds: float = 0.0
    stale: int = 0  # validations since the best one
    ended: str = ""  # why training ended before its last step
    best_form: str = RAW  # what the best validation was of: the raw weights or their average
    averaged: int = 0  # iterates in the average
    average: dict[str, mx.array] = field(default_factory=dict, repr=False, compare=False)
    start: dict[str, mx.array] = field(default_factory=dict, repr=False, compare=False)  # to begin again at
    halvings: int = 0  # times that it began again at half its rates
    window: Window = field(default_factory=Window)

    @property
    def beats_base(self) -> bool:
        """Whether the best adapter's validation loss is below its base's; also where nothing was validated."""
        return self.best_loss < self.base_loss or math.isinf(self.base_loss)

    def over(self, steps: int) -> bool:
        """Whether the last of `steps` is done, or a guard ended the run."""
        return self.step >= steps or bool(self.ended)

    def due(self, every: int, steps: int) -> bool:
        """Whether it is time for what comes every so many steps, and once more at the end."""
        return self.step % every == 0 or self.over(steps)

    def note(self, loss: float, form: str) -> bool:
        """Note a validation loss, the base's before the first step; whether it is the lowest since."""
        if not self.step:
            self.base_loss = loss
            return False
        if best := loss < self.best_loss:
            self.best_loss, self.best_step, self.best_form = loss, self.step, form
        if best and loss < self.base_loss:
            self.stale = 0
        elif form == RAW:
            self.stale += 1
        return best

    def begin_again(self) -> None:
        """Forget all but the base, the start, the time used and how often this happened."""
        kept = {"base_loss": self.base_loss, "start": self.start, "seconds": self.seconds}
        self.__dict__.update(vars(Progress(**kept, halvings=self.halvings + 1)))

    def report(self, steps: int, rates: dict[str, float]) -> Trained:
        """The event of the window that ends here; the next one begins."""
        window, self.window = self.window, Window()
        loss, speed = window.loss / max(1e-9, window.weight), window.tokens / max(1e-9, window.seconds)
        counts = {"tokens": window.tokens, "trained_tokens": window.trained, "tokens_per_second": speed}
        last = {"rates": rates, "gradient_norm": window.norm, "mixing": tuple(window.mixing)}
        so_far = {"peak_memory_gb": mx.get_peak_memory() / 1e9, "seconds": self.seconds}
        return Trained(self.step, steps, loss, **counts, **last, **so_far)

    def verdict(self) -> list[Note]:
        """Why training ended early, and that no adapter beat its base, each where it is so."""
        best, notes = f"{self.best_loss:.3f} at step {self.best_step}", []
        if self.ended:
            none_lower = f"{self.stale} validations without a lower loss than {best} (train.patience)"
            why = {TIME: "train.max_minutes is used up", PATIENCE: none_lower}[self.ended]
            notes.append(Note(f"Stopped at step {self.step}: {why}."))
        if not self.beats_base:
            told = "No adapter of this run beats the model it began with on the validation records: loss"
            way = "Lower the learning rates, or add records."
            notes.append(Note(f"{told} {best} against {self.base_loss:.3f}. {way}"))
        return notes


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: BranchOptimizer, progress: Progress, keep: int = 2
) -> None:
    """Write `folder/step-N` whole; all but the newest `keep` go, and of a run that begins again all others."""
    with new_directory(folder / f"step-{progress.step:07d}") as fresh:
        mx.save_safetensors(str(fresh / "adapter.safetensors"), adapter_state(model))
        state = {saved_name(name): value for name, value in tree_flatten(optimizer.state)}
        mx.save_safetensors(str(fresh / "optimizer.safetensors"), state)
        for name in STATES:
            if own := getattr(progress, name):
                mx.save_safetensors(str(fresh / f"{name}.safetensors"), own)
        told = asdict(replace(progress, **{name: {} for name in STATES}))
        write_json(fresh / "progress.json", {"format": FORMAT, **told})
    kept = checkpoints(folder)[-keep:] if progress.step else checkpoints(folder)[:1]
    for old in folder.glob("step-*"):
        if old not in kept:  # also what a kill left half removed
            shutil.rmtree(old, ignore_errors=True)


def saved_name(name: str) -> str:
    """A leaf's name as adapters.safetensors has it too: that of its layer and its own, without its branch."""
    return name.replace(".rotation.", ".").replace(".low_rank.", ".")


def load_checkpoint(folder: Path, model: nn.Module, optimizer: BranchOptimizer) -> Progress:
    """Restore the newest checkpoint that can be read. Raises ConfigError when there is none."""
    faults = []
    for directory in reversed(checkpoints(folder)):
        try:
            return restore(directory, model, optimizer)
        except (ConfigError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{directory.name} ({error})")
    found = f"none of its checkpoints can be read: {'; '.join(faults)}" if faults else "no checkpoint there"
    raise ConfigError(f"{folder.parent}: {found}.")


def restore(directory: Path, model: nn.Module, optimizer: BranchOptimizer) -> Progress:
    told = read_json(directory / "progress.json")
    saved = {key: value for key, value in told.items() if key not in OF_OLDER}
    if saved.pop("format", None) != FORMAT:
        raise ConfigError("another format")
    usual = vars(Progress()) | {"window": {}}
    if odd := [key for key, value in saved.items() if not isinstance(value, type(usual[key]) | int)]:
        raise ConfigError(f"its {odd[0]} is {saved[odd[0]]}")
    weights = mx.load(str(directory / "adapter.safetensors"))
    state = mx.load(str(directory / "optimizer.safetensors"))
    set_state(model, weights, str(directory / "adapter.safetensors"))
    names = {saved_name(name): name for name, _ in tree_flatten(optimizer.state)}
    if names.keys() != state.keys():
        raise ConfigError("its optimiser state belongs to another configuration")
    optimizer.put_state({names[name]: value for name, value in state.items()})
    progress = Progress(**(saved | {"window": Window(**saved.get("window", {}))}))
    for name in STATES:
        if (path := directory / f"{name}.safetensors").is_file():
            setattr(progress, name, mx.load(str(path)))
    return progress
