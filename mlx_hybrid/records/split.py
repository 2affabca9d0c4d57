"""From `data.paths` to files, and from records to training, validation and test sets."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_hybrid.config import DataConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.base import hub_endpoint, hub_reason, is_hub_id
from mlx_hybrid.records.record import Record

SAMPLES = "samples"
SAMPLE_FOLDER = Path(__file__).parents[1] / "base" / "samples"
SAMPLE_FILES = ("topics.jsonl", "translation.jsonl", "dirty.jsonl")
KEPT = "kept.jsonl"
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
FILES = (*SUFFIXES, ".json", ".ndjson", ".csv", ".tsv", ".txt", ".gz", ".zip", ".yaml", ".yml")
"""Endings of file names: one that is not there is a slip of the pen, and no business of the Hub."""
SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
"""What the first word of a file's name says of its use, as in train.jsonl or data/validation-00000-of-00001.parquet."""


@dataclass(frozen=True)
class Sources:
    """Files to train, validate and test on."""

    train: tuple[Path, ...]
    valid: tuple[Path, ...]
    test: tuple[Path, ...]


@dataclass(frozen=True)
class Split:
    """Records by their use."""

    train: list[Record]
    valid: list[Record]
    test: list[Record]


def find_sources(config: DataConfig) -> Sources:
    """The files that `data` names. Raises ConfigError for a path that is not there, or a folder without records."""
    if not config.paths:
        raise ConfigError(
            "No data: give --data with JSONL files, a folder, or a Hub data set (or data.paths)."
        )
    sources = Sources((), data_files(config.valid, "data.valid"), data_files(config.test, "data.test"))
    for name in config.paths:
        folder = fetch_data(name) if is_data_set(name) else Path(name).expanduser()
        found = (
            folder_split(folder, name)
            if folder.is_dir()
            else Sources(data_files((name,), "data.paths"), (), ())
        )
        sources = Sources(sources.train + found.train, sources.valid + found.valid, sources.test + found.test)
    refuse_twice((*sources.train, *sources.valid, *sources.test))
    return sources


def refuse_twice(files: tuple[Path, ...]) -> None:
    """A file read twice would repeat its records, or test on what was trained."""
    seen: set[Path] = set()
    for path in files:
        if path.resolve() in seen:
            raise ConfigError(f"{path}: is named twice among the files to train, validate and test on.")
        seen.add(path.resolve())


def folder_split(folder: Path, name: str) -> Sources:
    """Files of a folder by what their names say; all of them train where no name says anything.

    Raises ConfigError for a folder that validates or tests on files but has none to train on.
    """
    files = [path for path in folder_files(folder) if path.parent == folder and use_of(path)] or folder_files(
        folder
    )
    uses: dict[str, list[Path]] = {"train": [], "valid": [], "test": []}
    for path in files:
        if use := use_of(path):
            uses[use].append(path)
    if not uses["train"] and (held := uses["valid"] + uses["test"]):
        raise ConfigError(f"{name}: has {held[0].name} but no train file; name the files to train on.")
    return Sources(*(tuple(uses[use]) for use in uses)) if uses["train"] else Sources(tuple(files), (), ())


def use_of(path: Path) -> str | None:
    return SPLITS.get(re.split(r"[-_.]", path.name.lower())[0])


def is_data_set(name: str) -> bool:
    """Whether `name` can only be one on the Hub."""
    return is_hub_id(name) and not name.lower().endswith(FILES) and not Path(name).exists()


def data_files(names: tuple[str, ...], key: str) -> tuple[Path, ...]:
    files: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if name == SAMPLES and not path.exists():
            files += [SAMPLE_FOLDER / file for file in SAMPLE_FILES]
        elif path.is_dir():
            files += folder_files(path)
        elif path.exists():
            files.append(path)
        elif is_data_set(name):
            files += folder_files(fetch_data(name))
        else:
            raise ConfigError(f"{key}: {name} is not there.")
    return tuple(files)


def folder_files(folder: Path) -> list[Path]:
    """The records of a folder: of one that `govern` made, what it kept."""
    if (folder / "manifest.json").is_file() and (folder / KEPT).is_file():
        return [folder / KEPT]
    files = sorted(p for p in folder.rglob("*") if p.name.endswith(SUFFIXES) and p.is_file())
    if not files:
        raise ConfigError(f"{folder}: no .jsonl file in the folder.")
    return files


def fetch_data(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        return Path(
            snapshot_download(repo, repo_type="dataset", allow_patterns=patterns, endpoint=hub_endpoint())
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"{repo}: no such file or folder here, and no data set to be had from the Hub ({hub_reason(error)})."
        ) from None


def split_records(
    records: list[Record], valid: list[Record], test: list[Record], config: DataConfig, seed: int
) -> Split:
    """Hold back whole groups for validation and test where no files were named for them.

    Records that share a value under `data.group` (translations of a sentence, one premise) stay together, so that no
    held-back record has its twin in training. Raises DataError when nothing is left to train on.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(group_of(record, config.group), []).append(record)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    held_valid = [] if valid else take(order, groups, config.valid_share * len(records))
    held_test = [] if test else take(order, groups, config.test_share * len(records))
    train = restore_order(records, order, groups)
    if not train:
        raise DataError(
            f"No record is left to train on: all {len(records)} are held back; lower data.valid_share."
        )
    pick: Callable = lambda held: restore_order(records, held, groups)  # noqa: E731
    return Split(train, valid or pick(held_valid), test or pick(held_test))


def group_of(record: Record, key: str) -> str:
    """What is held back and resampled together: records of one value under `key`; one without a value is alone."""
    value = record.fields.get(key)
    return record.where if value is None else f"{key}={value}"


def group_key(records: Sequence[Record], key: str) -> str:
    """`data.group` where some record has a value under it, else `group`: benchmarks know no key of one's own."""
    return key if any(record.fields.get(key) is not None for record in records) else "group"


def take(order: list[str], groups: dict[str, list[Record]], wanted: float) -> list[str]:
    """Remove groups from the end of `order` until they hold `wanted` records, leaving at least one."""
    taken, count = [], 0
    while count < wanted and len(order) > 1:
        group = order.pop()
        taken.append(group)
        count += len(groups[group])
    return taken


def restore_order(records: list[Record], names: list[str], groups: dict[str, list[Record]]) -> list[Record]:
    chosen = {id(record) for name in names for record in groups[name]}
    return [record for record in records if id(record) in chosen]
