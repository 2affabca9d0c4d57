"""The run directory: what a run writes, how it is found again, and who may write."""

import fcntl
import json
import os
import platform
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path

from mlx_hybrid import __version__
from mlx_hybrid.config import Config, dump_config, load_config
from mlx_hybrid.config.recipes import found_in
from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.files import read_json, write_json, write_lines, write_text

FORMAT = 1
PLACE = "place.json"
"""In a run directory: the folder that the relative names of its config.yaml start from. It is never published."""
LAST = "last"
SAMPLES = "samples.jsonl"


def runs_root() -> Path:
    """Where runs are kept: `MLX_HYBRID_RUNS`, else `runs` in the current folder."""
    return Path(os.environ.get("MLX_HYBRID_RUNS", "runs"))


@dataclass(frozen=True)
class Run:
    """A run directory (docs/formats.md)."""

    path: Path
    base: str | None = None
    """Where its base is, if that has moved."""

    name = property(lambda self: self.path.name)
    adapter = property(lambda self: self.path / "adapter")
    checkpoints = property(lambda self: self.path / "checkpoints")
    data = property(lambda self: self.path / "data")
    """The governed folder that it trained from: personal data as it came, which nothing publishes."""
    way_on = property(lambda self: shlex.join(["mlx-hybrid", "finetune", "--resume", str(self.path)]))

    @property
    def rejected(self) -> Path:
        """What governance set aside; older runs keep it beside their adapter."""
        old = self.path / "rejected.jsonl"
        return old if old.is_file() else self.data / "rejected.jsonl"

    def samples(self) -> list[dict]:
        """What base and adapter answered to a few prompts, some of them of held-out records."""
        return [json.loads(line) for line in self._lines(SAMPLES)]

    def metrics(self) -> list[dict]:
        """The rows so far; of a line that a kill cut off, nothing."""
        return [json.loads(line) for line in self._lines("metrics.jsonl") if line.endswith("\n")]

    def _lines(self, file: str) -> list[str]:
        path = self.path / file
        return path.read_text("utf-8").splitlines(keepends=True) if path.is_file() else []

    def saved_step(self) -> int | None:
        """The step of its newest checkpoint, if there is one."""
        saved = checkpoints(self.checkpoints)
        return int(saved[-1].name.removeprefix("step-")) if saved else None

    def step(self) -> int:
        """The step it ended at; of one that was killed, also after it was resumed, that of its newest checkpoint."""
        return max(self.info().get("step") or 0, self.saved_step() or 0)

    def check_adapter(self) -> None:
        """Raise ConfigError for a run that has no adapter yet, with the way on."""
        if not self.adapter.is_dir():
            way = f"; go on with --resume {shlex.quote(str(self.path))}" if self.checkpoints.is_dir() else ""
            raise ConfigError(f"{self.path}: the run has no adapter yet (status: {self.status()}){way}.")

    def config(self) -> Config:
        return load_config(self.path / "config.yaml")

    def folder(self) -> Path:
        """The folder the run was begun in; the current one where that is not known or gone."""
        place = self.path / PLACE
        begun_in = Path(read_json(place)["folder"]) if place.is_file() else Path.cwd()
        return begun_in if begun_in.is_dir() else Path.cwd()

    def config_here(self) -> Config:
        """The config with the model and the data as they are found from the current folder."""
        config, folder = self.config(), self.folder()
        config = config if folder == Path.cwd() else found_in(folder, config)
        return replace(config, model=replace(config.model, name=self.base or config.model.name))

    def status(self) -> str:
        """As run.json has it; `stopped` for a run whose process went without a word."""
        told = self.info().get("status") or "unknown"
        return "stopped" if told == "running" and not self.is_busy() else told

    def is_finished(self) -> bool:
        """Whether all is there that a run writes; its card comes last."""
        return self.info().get("status") == "finished" and (self.path / "README.md").is_file()

    def is_busy(self) -> bool:
        """Whether a process holds the run's lock."""
        with suppress(FileNotFoundError), (self.path / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def info(self) -> dict:
        return read_json(self.path / "run.json")

    def template_date(self) -> date | None:
        """The date that its chat template was told; it stays the run's, whatever day it is."""
        told = self.info().get("template_date")
        return date.fromisoformat(told) if told else None

    def update(self, **values: object) -> None:
        """Change keys of run.json, whole or not at all."""
        old = self.info() if (self.path / "run.json").exists() else {"format": FORMAT}
        write_json(self.path / "run.json", old | values)

    def log(self, text: str) -> None:
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def add_metrics(self, row: dict) -> None:
        """Append a row to metrics.jsonl, units in its keys."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps beyond `step`, which a resumed run will take again."""
        write_lines(self.path / "metrics.jsonl", [row for row in self.metrics() if row["step"] <= step])

    def drop_unfinished(self) -> None:
        """Remove the files that a kill left half written; folders go when they are written again."""
        for path in filter(Path.is_file, self.path.rglob(".*.tmp")):
            path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "progress.json").is_file())


def create_run(config: Config, output: Path | None) -> Run:
    """A new run directory with its config. Raises ConfigError for a name that exists or an unwritable place."""
    path = output or run_place(config)
    if path.exists():
        begun = Run(path).saved_step() is not None and not Run(path).is_finished()
        way = f", or continue it with --resume {shlex.quote(str(path))}" if begun else ""
        raise ConfigError(f"{path}: exists already; choose another name{way}.")
    try:
        path.mkdir(parents=True)
        write_text(path / "config.yaml", dump_config(config))
        write_json(path / PLACE, {"format": FORMAT, "folder": str(Path.cwd())})
    except OSError as error:
        told = f"{path}: cannot be written ({error.strerror}); choose another place with -o."
        raise ConfigError(told) from None
    return Run(path)


def run_place(config: Config) -> Path:
    """Where a new run goes when nobody says: under the runs folder, by its name, or by method and time."""
    return runs_root() / (config.name or f"{config.method}-{time.strftime('%Y%m%d-%H%M%S')}")


def discard(made: list[Path]) -> None:
    """Take away a run that came to nothing, and the folders that were made for it and are empty."""
    shutil.rmtree(made[0], ignore_errors=True)
    for folder in made[1:]:
        with suppress(OSError):
            folder.rmdir()


def find_run(name: str, base: str | None = None) -> Run:
    """A run by path, by name under the runs folder, or `last`, with its base. Raises ConfigError naming the nearest."""
    if (Path(name) / "run.json").is_file():
        return Run(Path(name), base)
    runs = {run.name: run for run in list_runs()}
    if name == LAST and not runs:
        raise ConfigError(f"No run in {runs_root()} yet; `mlx-hybrid finetune` makes one.")
    name = list(runs)[-1] if name == LAST else name
    if name not in runs:
        known = nearest(name, runs) if runs else f"{runs_root()} holds no run."
        raise ConfigError(f'No run "{name}"; {known}')
    return Run(runs[name].path, base)


def list_runs() -> list[Run]:
    """Runs under the runs folder, oldest first."""
    found = [Run(path.parent) for path in runs_root().glob("*/run.json")]
    return sorted(found, key=lambda run: (run.info().get("started", ""), run.name))


def machine() -> dict:
    """What the run ran on; no host or user name."""
    import mlx.core as mx

    versions = {name: metadata.version(name) for name in ("mlx", "mlx-lm", "numpy")}
    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    facts = {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()}
    facts |= {"device": mx.device_info().get("device_name", "") if on_gpu else "CPU", "cores": os.cpu_count()}
    return facts | {"versions": {"mlx-hybrid": __version__} | versions}


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def writing(run: Run) -> Iterator[None]:
    """Hold the run's lock. Raises ConfigError when another process writes there."""
    with (run.path / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told = f"{run.path}: another process is writing there; wait for it, or use another name."
            raise ConfigError(told) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
