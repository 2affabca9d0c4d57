"""Records and the lines that are none: files in, `Record` or `Fault` out, each with its file and line.

Three kinds of record: `messages` (with `tools`), `prompt` + `completion`, `text`; shapes.py makes them of others. Any
of them may carry `language`, `label`, `id`, `group`, `source` and `licence`; other keys pass through untouched.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.records.fields import (
    NotARecord,
    check_fields,
    completion_of,
    content_of,
    kind_of,
    prompt_of,
    turns_of,
)
from mlx_hybrid.records.lines import Fault, File, Source, as_source, check_file, read_lines
from mlx_hybrid.records.shapes import as_record, describe_read, renamed

KEPT = "kept.jsonl"
NO_RENAMES: Mapping[str, str] = MappingProxyType({})
UNKNOWN = frozenset({"no_known_keys", "not_object", "preference", "bad_content"})
"""Reasons that, where they hold for every line of a file, say that the file is of another shape."""


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object that can be trained on, and where it stands."""

    fields: dict[str, Any]
    path: str
    line: int
    shape: str = ""
    """What it was written as: messages, sharegpt, prompt, alpaca or text."""

    @property
    def where(self) -> str:
        """`path:line`, the line counted from 1."""
        return f"{self.path}:{self.line}"

    @property
    def kind(self) -> str:
        """`messages`, `prompt` or `text`."""
        return kind_of(self.fields)

    @property
    def id(self) -> str:
        """The record's own `id`, else its place."""
        own = self.fields.get("id")
        return self.where if own is None else str(own)

    @property
    def language(self) -> str | None:
        """The declared language as it was written, or None."""
        return self.fields.get("language") or None

    @property
    def label(self) -> Any:
        """The class of a classification record, or None."""
        return self.fields.get("label")

    # What is said in a record is decided in fields.py.
    def turns(self) -> list[dict[str, Any]]:
        return turns_of(self.fields)

    def content(self) -> str:
        return content_of(self.fields)

    def prompt(self) -> str:
        return prompt_of(self.fields)

    def completion(self) -> str:
        return completion_of(self.fields)


def read_records(files: Iterable[File] | File) -> Iterator[Record | Fault]:
    """Stream files of records in order: of JSONL one line is in memory at a time, of a table a batch, of an array all.

    Raises ConfigError, before the first is given, for a path that is missing, a folder, a pipe or not readable, and for
    a file of which no line has a known shape.
    """
    sources = [as_source(file) for file in ([files] if isinstance(files, File) else files)]
    for source in sources:
        check_source(source)
    return (item for source in sources for item in read_file(source))


def load_records(paths: Iterable[File] | File) -> list[Record]:
    """Every record, or one DataError that counts the faults by kind and shows the first five with file and line."""
    records: list[Record] = []
    faults: list[Fault] = []
    for item in read_records(paths):
        (records if isinstance(item, Record) else faults).append(item)
    if faults:
        raise DataError(describe_faults(faults))
    return records


def describe_faults(faults: list[Fault]) -> str:
    counts: dict[str, int] = {}
    for fault in faults:
        counts[fault.reason] = counts.get(fault.reason, 0) + 1
    kinds = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    shown = "".join(f"\n  {fault.where}: {fault.detail} ({fault.reason})" for fault in faults[:5])
    more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
    lines = "1 line is no record" if len(faults) == 1 else f"{len(faults)} lines are no records"
    return f"{lines}: {kinds}.{shown}{more}\nMend them, or let `mlx-hybrid govern` set them aside."


def check_source(source: Source) -> None:
    """Raise ConfigError for a file that cannot be read, or of which no line has a known shape."""
    check_file(source.path)
    first = None
    for item in read_file(source):
        if isinstance(item, Record) or item.reason not in UNKNOWN:
            return
        first = first or item
    if first:
        raise ConfigError(f"{first.where}: {first.detail}.")


def shapes_of(records: Iterable[Record]) -> str:
    """What was read as what, in one sentence."""
    seen: dict[str, dict[str, int]] = {}
    for record in records:
        shapes = seen.setdefault(record.path, {})
        shapes[record.shape] = shapes.get(record.shape, 0) + 1
    return describe_read(seen.items())


def read_file(source: Source) -> Iterator[Record | Fault]:
    """The records and faults of one file; one of text holds no conversations, nor the other way round, but for a kept
    one."""
    kind, several = "", is_kept(source.path)
    for number, raw in read_lines(source):
        item = raw if isinstance(raw, Fault) else parse_line(raw, source.name, number, source.renames)
        if isinstance(item, Record) and not several:
            kind = kind or item.kind
            if other := another_kind(item.kind, kind):
                item = Fault(source.name, number, "mixed_kinds", other, raw)
        yield item


def is_kept(path: Path) -> bool:
    """Whether govern wrote the file: its records are of as many kinds as the files they came from."""
    return path.name == KEPT and path.with_name("manifest.json").is_file()


def another_kind(kind: str, first: str) -> str:
    """Why a record does not go with the first of its file; empty where they are of one kind."""
    if (kind == "text") == (first == "text"):
        return ""
    return f"a {kind} record in a file of {first} records; keep text and conversations in files of their own"


def parse_line(raw: bytes, path: str, line: int, renames: Mapping[str, str] = NO_RENAMES) -> Record | Fault:
    """One line as a Record, its keys renamed first, or the Fault that says why it is none."""
    shape = ""
    try:
        value = json.loads(raw.decode("utf-8"))
        if isinstance(value, dict):
            value, shape = as_record(renamed(value, renames))
        check_fields(value)
    except UnicodeDecodeError as error:
        return Fault(path, line, "bad_encoding", f"not UTF-8 at byte {error.start}", raw)
    except NotARecord as error:
        return Fault(path, line, error.reason, str(error), raw)
    except json.JSONDecodeError as error:
        several = raw.strip() in (b"[", b"{")
        detail = (
            "not one JSON object a line, but JSON over several lines"
            if several
            else f"not JSON: {error.msg} at column {error.colno}"
        )
        return Fault(path, line, "bad_json", detail, raw)
    except (ValueError, RecursionError) as error:
        return Fault(path, line, "bad_json", f"not JSON that can be read ({error})", raw)
    return Record(value, path, line, shape)
