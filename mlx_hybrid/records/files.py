"""From the names a person gives (files, folders, data sets of the Hub) to files of records, each by its use."""

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

from mlx_hybrid.config import DataConfig
from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.files import HUB_ID, hub_endpoint, hub_reason, is_offline
from mlx_hybrid.records.lines import PACKED_NAMES, File, Source, as_source
from mlx_hybrid.records.record import KEPT, Split, check_source, is_kept
from mlx_hybrid.records.shapes import TARGETS

SAMPLES = "samples"
SAMPLE_FOLDER = Path(__file__).parents[1] / "base" / "samples"
SAMPLE_FILES = ("topics.jsonl", "translation.jsonl", "dirty.jsonl")
PACKINGS = ("", *PACKED_NAMES)
SUFFIXES = (*(f"{name}{packed}" for name in (".jsonl", ".ndjson") for packed in PACKINGS), ".parquet")
"""What is read of a folder or a data set; a file that is named is read whatever it is called."""
TABLES = (*(f"{name}{packed}" for name in (".json", ".csv", ".tsv") for packed in PACKINGS), ".arrow")
"""What is read of one that has none of those: beside them such a file tells of the data, and is none."""
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "manifest.json")
SAVED = "state.json"  # beside the Arrow files of a set that `datasets` saved
FILES = (*SUFFIXES, *TABLES, ".txt", ".gz", ".zip", ".yaml", ".yml")
"""Endings of file names: one that is not there is a slip of the pen, and no business of the Hub."""
USES = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
"""What the first word of a file's name says of its use, as in train.jsonl or data/validation-00000-of-00001.parquet."""
DATA_SET = re.compile(rf"(?:hf:|hub:)?({HUB_ID.pattern})(?::([\w./*-]+))?")
"""A data set of the Hub, and the files of it that are meant: owner/name, or owner/name:data/*.parquet."""


def find_sources(config: DataConfig) -> Split:
    """Find the files that `data` names, those of a folder by their use; ConfigError for one that has no records."""
    if not config.paths:
        raise ConfigError("No data: give --data with files, a folder, or a Hub data set (or data.paths).")
    renames = read_renames(config.map, "data.map")
    found = [by_use(name) for name in config.paths]
    named = {use: [behind(name, f"data.{use}") for name in getattr(config, use)] for use in ("valid", "test")}
    parts = zip(Split(**{use: [*chain(*files)] for use, files in named.items()}), *found)
    return Split(*checked([[*chain(*part)] for part in parts], renames))


def find_files(names: Sequence[File], key: str = "PATH", renames: Sequence[str] = ()) -> tuple[Source, ...]:
    """Find the files behind names, whatever their use; raises ConfigError as `find_sources`, naming `key`."""
    if not names:
        raise ConfigError("no records named; give at least one file of records.")
    return checked([[file for name in names for file in behind(name, key)]], read_renames(renames))[0]


def checked(parts: Iterable[Sequence[Source]], renames: dict[str, str]) -> list[tuple[Source, ...]]:
    """The files of each part, with the names their keys are read under. Raises ConfigError for one that cannot be read,
    has no record of a known shape, or is named twice: its records would repeat, or be tested on what they taught."""
    found = [tuple(replace(file, renames=renames) if renames else file for file in part) for part in parts]
    seen: set[Path] = set()
    for file in chain(*found):
        if file.path.resolve() in seen:
            raise ConfigError(f"{file.name}: is named twice; name each file once, for one use.")
        seen.add(file.path.resolve())
        check_source(file)
    return found


def read_renames(pairs: Sequence[str], key: str = "--map") -> dict[str, str]:
    """`question=prompt,answer=completion` as their keys by ours. Raises ConfigError for a name that is not ours."""
    renames = {}
    for pair in (pair.strip() for item in pairs for pair in item.split(",") if pair.strip()):
        theirs, equals, ours = (part.strip() for part in pair.partition("="))
        if not equals or not theirs:
            raise ConfigError(f"{key} {pair}: write THEIRS=OURS, as in question=prompt,answer=completion.")
        if ours not in TARGETS:
            turned = f"turn it round: {ours}={theirs}." if theirs in TARGETS else nearest(ours, TARGETS)
            raise ConfigError(f'{key} {pair}: "{ours}" is no key that is read; {turned}')
        renames[theirs] = ours
    return renames


def behind(name: File, key: str) -> list[Source]:
    """The files that one name stands for: itself, the samples, those of a folder, or those of a data set."""
    if isinstance(name, Source):
        return [name]
    path = Path(name).expanduser()
    if path.is_dir():
        return [as_source(file) for file in folder_files(path)]
    if path.exists():
        return [as_source(path)]
    if str(name) == SAMPLES:
        return [as_source(SAMPLE_FOLDER / file) for file in SAMPLE_FILES]
    match = DATA_SET.fullmatch(str(name))
    if match and (match[2] or not str(name).lower().endswith(FILES)):
        return fetch_data(match[1], match[2] or "")
    raise ConfigError(f"{key}: {name} is not there.")


def by_use(name: str) -> Split:
    """The files behind a name; those of a folder or data set by what they are called, all training where none says."""
    files, path = behind(name, "data.paths"), Path(name).expanduser()
    told = {} if path.is_file() or name == SAMPLES else told_uses(files, path)
    if told and "train" not in told:
        first = next(iter(told.values()))[0].path.name
        raise ConfigError(f"{name}: has {first} but no train file; name the files to train on.")
    return Split(**(told or {"train": files}))


def in_folder(folder: Path) -> Split:
    """The files of a folder to evaluate on: those for test and validation, or a whole set that `datasets` saved."""
    files = behind(folder, "--on")
    told = told_uses(files, folder) or ({"test": files} if (folder / SAVED).is_file() else {})
    if "test" not in told:
        raise ConfigError(f"{folder}: no test file in the folder; name the file itself.")
    return Split(**told)


def told_uses(files: Sequence[Source], folder: Path) -> dict[str, list[Source]]:
    """The files whose name's first word says their use (of Arrow files in a folder of their own, its name's), by use;
    those at the top of the folder or data set, where there are any."""
    top: dict[str, list[Source]] = {}
    told: dict[str, list[Source]] = {}
    for file in files:
        parent = file.path.parent
        named = parent if file.path.suffix == ".arrow" and parent != folder else file.path
        if use := USES.get(re.split(r"[-_.]", named.name.lower())[0]):
            told.setdefault(use, []).append(file)
            if parent == folder or parent.name == file.revision:
                top.setdefault(use, []).append(file)
    return top or told


def folder_files(folder: Path) -> list[Path]:
    """The records of a folder: what `govern` kept, the Arrow files that `datasets` saved, or all that hold records."""
    if (folder / KEPT).is_file() and is_kept(folder / KEPT):
        return [folder / KEPT]
    files: list[Path] = []
    for state in sorted(folder.rglob(SAVED)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            listed = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
            files += [state.parent / file["filename"] for file in listed]
    files = files or records_among(sorted(path for path in folder.rglob("*") if path.is_file()))
    if not files:
        raise ConfigError(f"{folder}: no .jsonl file in the folder, nor another that holds records.")
    return files


def records_among(files: list[Any]) -> list[Any]:
    """Of paths or names those that hold records: JSONL and Parquet, else arrays and tables."""
    for endings in (SUFFIXES, TABLES):
        if found := [f for f in files if str(f).endswith(endings) and Path(f).name not in DESCRIPTIONS]:
            return found
    return []


def fetch_data(repo: str, pattern: str) -> list[Source]:
    """The files of a data set that match, all of one revision; offline those that were fetched before."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError

    where = {"repo_type": "dataset", "endpoint": hub_endpoint()}
    try:
        if is_offline():
            folder = Path(snapshot_download(repo, **where, local_files_only=True))
            names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        else:
            names = HfApi(endpoint=hub_endpoint()).list_repo_files(repo, repo_type="dataset")
        names = records_among(sorted(names))
        wanted = [name for name in names if not pattern or fnmatch(name, pattern)]
        if wanted and not is_offline():
            folder = Path(snapshot_download(repo, **where, allow_patterns=wanted))
    except (HTTPError, OSError, ValueError) as error:
        why = f"no such file or folder here, and no data set to be had from the Hub ({hub_reason(error)})"
        raise ConfigError(f"{repo}: {why}.") from None
    if not wanted:
        none = f"none of its files is {pattern}; it has {', '.join(names[:5])}"
        empty = "the data set holds no file of records (JSONL, Parquet, JSON, CSV)"
        raise ConfigError(f"{repo}: {none if names else empty}.")
    return [Source(f"{repo}:{name}", folder / name, folder.name) for name in wanted]
