"""Benchmarks as records (docs/evaluation.md): what a model is trained on and tested with."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlx_hybrid.errors import ConfigError, DataError, check_known, nearest
from mlx_hybrid.evaluation.benchmarks.rows import SOURCES, Row, read_rows
from mlx_hybrid.files import read_json, write_json, write_lines
from mlx_hybrid.records.languages import UnknownLanguage, parse_language

FILES = {"train": "train.jsonl", "dev": "valid.jsonl", "test": "test.jsonl"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One YAML file."""

    name: str
    version: int
    kind: str
    source: str
    pivot: str
    test_source: str = ""
    skip: int = 0
    labels: list[str] = field(default_factory=list)
    prompts: dict[str, dict] = field(default_factory=dict)
    prompt: str = ""
    names: dict[str, str] = field(default_factory=dict)

    @property
    def languages(self) -> list[str]:
        """Codes with a prompt or a name; empty means any that the source has."""
        return list(self.prompts or self.names)

    @property
    def splits(self) -> tuple[str, ...]:
        """In the order train, dev, test."""
        own = {*SOURCES[self.source].files, *(["test"] if self.test_source else [])}
        return tuple(split for split in ("train", "dev", "test") if split in own)

    def options(self, language: str) -> dict[str, str]:
        return dict(zip(self.labels, self.prompts[language]["options"], strict=True))


def task_files() -> dict[str, Path]:
    """Name → YAML file, of the repository or the installed package."""
    folders = [place / "recipes" / "tasks" for place in Path(__file__).resolve().parents[2:4]]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


@lru_cache
def load_task(name: str, splits: Sequence[str] = ()) -> Task:
    """Raises ConfigError on an unknown task, or one without some of `splits`."""
    files = task_files()
    check_known(name, files, "Unknown task")
    task = Task(**yaml.safe_load(files[name].read_text(encoding="utf-8")))
    for split in splits:
        check_known(split, task.splits, f"Task {name} has no split")
    return task


def build_records(
    name: str,
    split: str,
    languages: Sequence[str] = (),
    *,
    folder: Path | None = None,
    shots: int = 0,
    seed: int = 0,
) -> list[dict]:
    """Records of one split of a task in `languages` (any spelling of a code; empty means all of the task).

    `shots` draws that many records a language, or a direction of translation, by whole groups; 64 hold the 32 of the
    same seed, whatever the other languages are. `folder` None fetches from the Hub.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--from {folder}: no such folder.")
    task = load_task(name, (split,))
    codes = languages_of(task, languages)
    source = task.test_source if split == "test" and task.test_source else task.source
    translates = task.kind == "translation"
    reading = list(dict.fromkeys([task.pivot, *codes])) if translates else codes
    rows = read_rows(source, split, reading, folder)
    for language, own in rows.items():
        if odd := next((row for row in own if task.labels and row.label not in task.labels), None):
            told = f'row {odd.key} has the unknown label "{odd.label}"'
            raise DataError(f"{name} {language}: {told}; {nearest(str(odd.label), task.labels)}")
    if split == "train":
        rows = {language: own[task.skip :] for language, own in rows.items()}
    if not translates:
        return [record_of(task, row, own) for own in codes for row in draw(rows[own], shots, seed, own)]
    if not (others := [code for code in rows if code != task.pivot]):
        raise ConfigError(f"Task {name} needs a language other than its pivot, {task.pivot}.")
    both = [pair for code in others for pair in ((task.pivot, code), (code, task.pivot))]
    targets = {code: {row.key: row.fields["text"] for row in own} for code, own in rows.items()}
    return [
        record_of(task, row, b, source=a, answer=targets[b][row.key])
        for a, b in both
        for row in draw(rows[a], shots, seed, f"{a}>{b}")
    ]


def languages_of(task: Task, languages: Sequence[str]) -> list[str]:
    """FLORES codes of any spelling, of all for none; ConfigError on one that the task does not have."""
    if not languages and not task.languages:
        raise ConfigError(f"Task {task.name} needs --languages: which ones is the question it asks.")
    try:
        codes = {str(parse_language(language)): language for language in languages or task.languages}
    except UnknownLanguage as error:
        raise ConfigError(str(error)) from None
    if odd := [code for code in codes if task.languages and code not in task.languages]:
        told = f"{codes[odd[0]]} ({odd[0]}); it has {', '.join(task.languages)}"
        raise ConfigError(f"{task.name} has no {told}.")
    return list(codes)


def draw(rows: Sequence[Row], shots: int, seed: int, stream: str) -> list[Row]:
    """`shots` rows by whole groups in an order that the seed and the language give; 0 is all, as they stand."""
    if not shots:
        return list(rows)
    if shots > len(rows):
        raise DataError(f"{shots} shots were asked of {stream}, which has {len(rows)} rows.")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    order = np.random.default_rng([seed, zlib.crc32(stream.encode())]).permutation(sorted(groups))
    return [row for name in order.tolist() for row in groups[name]][:shots]


def record_of(task: Task, row: Row, language: str, *, source: str = "", answer: str = "") -> dict:
    """A row as text, as a choice, or as the translation from `source` that `answer` is."""
    place = {"id": f"{row.key}-{f'{source}>' if source else ''}{language}", "group": row.group}
    place |= {"language": language, "task": task.name, "version": task.version}
    if task.kind == "text":
        return {"text": row.fields["text"], **place}
    told: dict = {"source_language": source}
    if task.kind == "classification":
        options = task.options(language)
        told, answer = {"label": row.label, "options": options}, options[row.label]
    prompt = fill_prompt(task, language, row.fields)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {**told, **place, "messages": turns, "fields": row.fields}


def fill_prompt(task: Task, language: str, fields: dict[str, str]) -> str:
    """The prompt of a record from its fields, in the words of a language."""
    if task.kind == "translation":
        return task.prompt.format(target=task.names[language], **fields)
    choices = ", ".join(task.options(language).values())
    return task.prompts[language]["prompt"].format(choices=choices, **fields)


def write_task(
    name: str,
    directory: Path,
    *,
    splits: Sequence[str] = (),
    shots: int = 0,
    dev: int = 0,
    seed: int = 0,
    **where: Any,
) -> dict:
    """Write splits of a task (all of them for none) as the folder that `finetune --data` takes, with the task.json that
    is returned. `shots` are of the training split, `dev` of the development split; `where` as for `build_records`."""
    task, drawn = load_task(name, tuple(splits)), {"train": shots, "dev": dev, "test": 0}
    splits = [split for split in task.splits if split in (splits or task.splits)]
    for option, split in (("--shots", "train"), ("--dev", "dev")):
        if drawn[split] and split not in splits:
            told = f"draws from the {split} split; here there is only {', '.join(splits)}"
            raise ConfigError(f"{option} {drawn[split]} {told}.")
    paths = {split: directory / FILES[split] for split in splits}
    if there := [path for path in paths.values() if path.exists()]:
        raise ConfigError(f"{there[0]}: exists already; choose another folder with -o.")
    parts = {split: build_records(name, split, shots=drawn[split], seed=seed, **where) for split in splits}
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"cannot be made ({error.strerror}); choose another place with -o"
        raise ConfigError(f"{directory}: {told}.") from None
    path = directory / "task.json"
    whole = read_json(path) if path.exists() else {"format": 1, "splits": {}}
    for split, records in parts.items():
        write_lines(paths[split], records)
        codes = sorted({str(record["language"]) for record in records})
        own = {"file": FILES[split], "records": len(records), "languages": codes, "shots": drawn[split]}
        whole["splits"][split] = {"task": task.name, "version": task.version, **own, "seed": seed}
    write_json(path, whole)
    return whole
