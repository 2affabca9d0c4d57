"""The records of a comparison: one training, development and test file for all of its cells."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.sets import EvaluationSet, evaluation_set, labelled
from mlx_hybrid.files import write_text
from mlx_hybrid.governance.folder.lines import load_kept
from mlx_hybrid.governance.govern import govern_files
from mlx_hybrid.records.files import Sources, find_sources
from mlx_hybrid.records.record import Record, Source, load_records, read_records
from mlx_hybrid.records.split import group_of, split_records
from mlx_hybrid.study.noise import plant_noise
from mlx_hybrid.training.data import check_manifests

FILES = ("train.jsonl", "valid.jsonl", "test.jsonl")


def freeze_data(
    config: Config, directory: Path, *, noise: float, begun: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Copy the config's records into `directory`, with planted faults in training; the config values that name the
    copies, and the sha256 of the manifest of every governed file copied from.

    A comparison that has begun goes on with the records it began with. Raises ConfigError where the source's are others
    by now, DataError for a governed file that changed since it was signed.
    """
    sources = find_sources(config.data)
    manifests = [] if config.data.allow_changed else check_manifests(sources)
    parts = read_parts(config, sources)
    if noise:
        parts[0] = plant_noise(parts[0], noise, seed=config.seed)
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(FILES, parts, strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = directory / name
        if begun and path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{path}: the data changed since the comparison began; use a new folder with -o."
            )
        write_text(path, text)
    train, valid, test = ([str(directory / name)] for name in FILES)
    return {"data.paths": train, "data.valid": valid, "data.test": test}, manifests


def read_parts(config: Config, sources: Sources) -> list[list[dict]]:
    """Training, development and test records.

    Where no files are named for the latter, whole groups are held back of what the config's governance keeps, so that
    no fault is measured on. The others train as they are, since every cell governs them its own way.
    """
    valid, test = load_records(sources.valid), load_records(sources.test)
    if valid and test:
        train = load_records(sources.train)
    else:
        records, kept, copies = governed(config, sources.train)
        split, key = split_records(kept, valid, test, config.data, config.seed), config.data.group
        held = [*([] if valid else split.valid), *([] if test else split.test)]
        groups, places = {group_of(record, key) for record in held}, {record.where for record in held}
        own = (r for r in records if group_of(r, key) not in groups)
        train = [record for record in own if original(record.where, copies) not in places]
        valid, test = split.valid, split.test
    if not valid or not test:
        raise DataError(
            "A comparison needs records to choose the learning rate by and others to measure on; give data.valid and "
            "data.test, or shares to hold back."
        )
    return [[record.fields for record in part] for part in (train, valid, test)]


def governed(config: Config, files: Sequence[Source]) -> tuple[list[Record], list[Record], dict[str, str]]:
    """All records, those that the config's governance keeps, and the places of copies with what each is a copy of.

    Lines that are no records are passed over where it governs at all.
    """
    if not config.governance.enabled:
        records = load_records(files)
        return records, records, {}
    records = [line for line in read_records(files) if isinstance(line, Record)]
    with TemporaryDirectory() as scratch:
        ledger = govern_files(files, Path(scratch), config.governance)
        kept = load_kept(Path(scratch) / "kept.jsonl")
    gone = [item for item in ledger.items if item.decision and item.decision.match]
    return records, kept, {item.where: item.decision.match for item in gone}


def original(where: str, copies: dict[str, str]) -> str:
    """The place of what a record is a copy of, perhaps by way of other copies; its own where it is none."""
    while where in copies:
        where = copies[where]
    return where


def evaluation_sets(directory: Path, group: str = "group") -> tuple[EvaluationSet, EvaluationSet | None]:
    """(test set, development set), grouped by `data.group`; the latter where the task is a choice between answers."""
    train, valid, test = (load_records([directory / name]) for name in FILES)
    known = labelled(train) if same_task(test, train) else []
    chosen = evaluation_set(test, known, group=group)
    choice = chosen.kind == "classification" and same_task(test, valid)
    dev = evaluation_set(valid, known, group=group) if choice else None
    return chosen, dev


def same_task(test: list[Record], others: list[Record]) -> bool:
    """A classification is scored on the answers seen in training only where training was on that task."""
    return {r.fields.get("task") for r in test} <= {r.fields.get("task") for r in others}
