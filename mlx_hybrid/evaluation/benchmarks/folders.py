"""A benchmark as the folder that `finetune --data` takes: train.jsonl, valid.jsonl, test.jsonl and task.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.evaluation.benchmarks.rows import SPLITS
from mlx_hybrid.evaluation.benchmarks.tasks import Task, build_records, load_task
from mlx_hybrid.files import read_json, write_json, write_text

FORMAT = 1
FILES = {"train": "train.jsonl", "dev": "valid.jsonl", "test": "test.jsonl"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which part of a benchmark; `shots` draws from the training split alone, `dev` from the development split."""

    languages: tuple[str, ...] = ()
    shots: int = 0
    dev: int = 0
    seed: int = 0
    english_prompts: bool = False
    folder: Path | None = None


def choice(languages: Sequence[str], *, folder: Path | None, **more: Any) -> Choice:
    """A Choice from options of a command. Raises ConfigError where the local copy is no folder."""
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--from {folder}: no such folder.")
    return Choice(languages=tuple(languages), folder=folder, **more)


def splits_of(task: Task) -> tuple[str, ...]:
    """The splits that a task has, in the order train, dev, test."""
    own = {*SPLITS[task.source], *(("test",) if task.test_source else ())}
    return tuple(split for split in FILES if split in own)


def chosen_splits(task: Task, names: Sequence[str]) -> tuple[str, ...]:
    """Splits by name, all of the task's for none. Raises ConfigError on one that it does not have."""
    own = splits_of(task)
    for name in names:
        if name not in own:
            raise ConfigError(f'Task {task.name} has no split "{name}"; {nearest(name, own)}')
    return tuple(split for split in own if split in (names or own))


def split_records(name: str, split: str, choice: Choice) -> list[dict]:
    return build_records(
        name,
        split,
        choice.languages,
        folder=choice.folder,
        shots=shots_of(split, choice),
        seed=choice.seed,
        english_prompts=choice.english_prompts,
    )


def shots_of(split: str, choice: Choice) -> int:
    return {"train": choice.shots, "dev": choice.dev}.get(split, 0)


def write_task(name: str, directory: Path, choice: Choice, splits: Sequence[str] = ()) -> dict:
    """Write the splits of a task and return what task.json says of them. Nothing that is there is replaced.

    Raises ConfigError on an unknown task, split or language, a missing source or a file that exists, DataError on rows
    that cannot be used.
    """
    task = load_task(name)
    splits = chosen_splits(task, splits)
    for option, split, count in (("--shots", "train", choice.shots), ("--dev", "dev", choice.dev)):
        if count and split not in splits:
            raise ConfigError(
                f"{option} {count} draws from the {split} split; here there is only {', '.join(splits)}."
            )
    for split in splits:
        if (directory / FILES[split]).exists():
            raise ConfigError(f"{directory / FILES[split]}: exists already; choose another folder with -o.")
    parts = {split: split_records(name, split, choice) for split in splits}
    make_folder(directory)
    for split, records in parts.items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        write_text(directory / FILES[split], "".join(lines))
    return describe(task, directory, choice, parts)


def make_folder(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{directory}: cannot be made ({error.strerror}); choose another place with -o."
        ) from None


def describe(task: Task, directory: Path, choice: Choice, parts: dict[str, list[dict]]) -> dict:
    """Add these splits to the folder's task.json; sizes, seeds and languages are those of the last call for a split."""
    path = directory / "task.json"
    told = read_json(path) if path.exists() else {"format": FORMAT, "splits": {}}
    for split, records in parts.items():
        told["splits"][split] = {
            "task": task.name,
            "version": task.version,
            "file": FILES[split],
            "records": len(records),
            "languages": sorted({str(record["language"]) for record in records}),
            "shots": shots_of(split, choice),
            "seed": choice.seed,
            "english_prompts": choice.english_prompts,
        }
    write_json(path, told)
    return told
