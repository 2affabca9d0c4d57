"""Benchmarks as records: what a model is trained on and tested with, in the words of recipes/tasks/*.yaml.

A record is chat JSONL with `id`, `group`, `language`, `task` and `fields` (the texts before they went into the
prompt); of a classification also `label` and `options` (label → answer), of a translation `source_language`. Records
of `adapt` hold `text`.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.evaluation.benchmarks.rows import SOURCES, Row, read_rows
from mlx_hybrid.records.languages import UnknownLanguage, parse_language

PACKAGE = Path(__file__).resolve().parents[2]


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
    folders = (PACKAGE / "recipes" / "tasks", PACKAGE.parent / "recipes" / "tasks")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


@lru_cache
def load_task(name: str) -> Task:
    """Raises ConfigError on an unknown task."""
    files = task_files()
    if name not in files:
        raise ConfigError(f'Unknown task "{name}"; {nearest(name, files)}')
    return Task(**yaml.safe_load(files[name].read_text(encoding="utf-8")))


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
    task = load_task(name)
    codes = resolve_languages(task, languages)
    source = task.test_source if split == "test" and task.test_source else task.source
    translates = task.kind == "translation"
    reading = list(dict.fromkeys([task.pivot, *codes])) if translates else codes
    rows = read_rows(source, split, reading, folder, task.labels, task.skip)
    if translates:
        return translations(task, rows, shots, seed)
    make = classification_record if task.kind == "classification" else text_record
    return [make(task, row, own) for own in codes for row in draw(rows[own], shots, seed, own)]


def translations(task: Task, rows: dict[str, list[Row]], shots: int, seed: int) -> list[dict]:
    """Records both ways between the pivot and each other language."""
    others = [code for code in rows if code != task.pivot]
    if not others:
        raise ConfigError(f"Task {task.name} needs a language other than its pivot, {task.pivot}.")
    records = []
    for a, b in (pair for code in others for pair in ((task.pivot, code), (code, task.pivot))):
        targets = {row.key: row.fields["text"] for row in rows[b]}
        records += [
            {"source_language": a, **asked(task, row, b, f"{a}>{b}", targets[row.key])}
            for row in draw(rows[a], shots, seed, f"{a}>{b}")
        ]
    return records


def resolve_languages(task: Task, languages: Sequence[str]) -> list[str]:
    """FLORES codes of any spelling; ConfigError on one that the task does not have."""
    if not languages and not task.languages:
        raise ConfigError(f"Task {task.name} needs --languages: which ones is the question it asks.")
    codes = []
    for language in languages or task.languages:
        try:
            code = str(parse_language(language))
        except UnknownLanguage as error:
            raise ConfigError(f"{str(error).rstrip('.')}{'' if str(error).endswith('?') else '.'}") from None
        if task.languages and code not in task.languages:
            raise ConfigError(f"{task.name} has no {language} ({code}); it has {', '.join(task.languages)}.")
        codes.append(code)
    return list(dict.fromkeys(codes))


def draw(rows: Sequence[Row], shots: int, seed: int, stream: str) -> list[Row]:
    """`shots` rows by whole groups in an order that the seed and the language give; 0 is all, as they stand."""
    if not shots:
        return list(rows)
    if shots > len(rows):
        raise DataError(f"{shots} shots were asked of {stream}, which has {len(rows)} rows.")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    names = sorted(groups)
    order = np.random.default_rng([seed, zlib.crc32(stream.encode())]).permutation(len(names))
    return [row for i in order for row in groups[names[i]]][:shots]


def classification_record(task: Task, row: Row, language: str) -> dict:
    options = task.options(language)
    return {
        "label": row.label,
        "options": options,
        **asked(task, row, language, language, options[row.label]),
    }


def text_record(task: Task, row: Row, language: str) -> dict:
    return {"text": row.fields["text"], **named(task, row, language, language)}


def named(task: Task, row: Row, language: str, end: str) -> dict:
    place = {"id": f"{row.key}-{end}", "group": row.group, "language": language}
    return {**place, "task": task.name, "version": task.version}


def asked(task: Task, row: Row, language: str, end: str, answer: str) -> dict:
    """A conversation in the words of a language, and the texts that it is made of."""
    prompt = {"role": "user", "content": fill_prompt(task, language, row.fields)}
    turns = [prompt, {"role": "assistant", "content": answer}]
    return {**named(task, row, language, end), "messages": turns, "fields": row.fields}


def fill_prompt(task: Task, language: str, fields: dict[str, str]) -> str:
    """The prompt of a record from its fields, in the words of a language."""
    if task.kind == "translation":
        return task.prompt.format(target=task.names[language], **fields)
    choices = ", ".join(task.options(language).values())
    return task.prompts[language]["prompt"].format(choices=choices, **fields)
