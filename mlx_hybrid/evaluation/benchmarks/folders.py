"""A benchmark as the folder that `finetune --data` takes: train.jsonl, valid.jsonl, test.jsonl and task.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.evaluation.benchmarks.tasks import build_records, load_task
from mlx_hybrid.files import read_json, write_json, write_lines

FORMAT = 1
FILES = {"train": "train.jsonl", "dev": "valid.jsonl", "test": "test.jsonl"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which part of a benchmark; `shots` draws from the training split alone, `dev` from the development split."""

    languages: Sequence[str] = ()
    shots: int = 0
    dev: int = 0
    seed: int = 0
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"--from {self.folder}: no such folder.")

    def told(self, split: str) -> dict:
        """How a split is drawn."""
        shots = {"train": self.shots, "dev": self.dev}.get(split, 0)
        return {"shots": shots, "seed": self.seed}

    def records(self, name: str, split: str) -> list[dict]:
        """The records of a split of a task."""
        return build_records(name, split, self.languages, folder=self.folder, **self.told(split))


def write_task(name: str, directory: Path, choice: Choice, splits: Sequence[str] = ()) -> dict:
    """Write splits of a task, all of them for none, and return what task.json says of each. Nothing is replaced.

    Raises ConfigError on an unknown task, split or language, a missing source or a file that exists, DataError on rows
    that cannot be used.
    """
    task = load_task(name)
    for split in splits:
        if split not in task.splits:
            raise ConfigError(f'Task {name} has no split "{split}"; {nearest(split, task.splits)}')
    splits = [split for split in task.splits if split in (splits or task.splits)]
    for option, split, count in (("--shots", "train", choice.shots), ("--dev", "dev", choice.dev)):
        if count and split not in splits:
            raise ConfigError(
                f"{option} {count} draws from the {split} split; here there is only {', '.join(splits)}."
            )
    for split in splits:
        if (directory / FILES[split]).exists():
            raise ConfigError(f"{directory / FILES[split]}: exists already; choose another folder with -o.")
    parts = {split: choice.records(name, split) for split in splits}
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory}: cannot be made ({error.strerror}); choose another place with -o."
        ) from None
    path = directory / "task.json"
    told = read_json(path) if path.exists() else {"format": FORMAT, "splits": {}}
    for split, records in parts.items():
        write_lines(directory / FILES[split], records)
        own = {"task": task.name, "version": task.version, "file": FILES[split], "records": len(records)}
        own["languages"] = sorted({str(record["language"]) for record in records})
        told["splits"][split] = own | choice.told(split)
    write_json(path, told)
    return told
