"""Records and the lines that are none: JSONL in, `Record` or `Fault` out, each with its file and line.

Three kinds of record: `messages` (with `tools`), `prompt` + `completion`, `text`. Any of them may carry `language`,
`label`, `id`, `group`, `source` and `licence`; other keys pass through untouched.
"""

import gzip
import json
import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.base import first_line
from mlx_hybrid.records.fields import (
    NotARecord,
    check_fields,
    completion_of,
    content_of,
    kind_of,
    prompt_of,
    turns_of,
)

MAX_LINE_BYTES = 1 << 28  # a line beyond this is a file without line ends, not a record
KEPT = "kept.jsonl"
TABLES = (".csv", ".tsv", ".xlsx", ".ods")


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object that can be trained on, and where it stands."""

    fields: dict[str, Any]
    path: str
    line: int

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


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is no record, untouched, and why."""

    path: str
    line: int
    reason: str
    detail: str
    raw: bytes

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of records, and the name by which its records are told."""

    name: str
    path: Path
    revision: str = ""
    """The commit, of a file of a Hub data set."""


File = str | Path | Source


def as_source(file: File) -> Source:
    return file if isinstance(file, Source) else Source(str(file), Path(file))


def read_records(files: Iterable[File] | File) -> Iterator[Record | Fault]:
    """Stream JSONL, gzipped JSONL or Parquet files in order, one line in memory at a time.

    Raises ConfigError, before anything is read, for a path that is missing, a folder, a pipe or not readable.
    """
    sources = [as_source(file) for file in ([files] if isinstance(files, File) else files)]
    for source in sources:
        check_file(source.path)
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


def check_file(path: Path) -> None:
    """Raise ConfigError unless `path` is a regular file that can be opened."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is a folder; name its files, as in {path}/*.jsonl.")
    if path.suffix.lower() in TABLES:
        raise ConfigError(
            f"{path}: is a table, which is not read; write one JSON object a line, or Parquet (docs/formats.md)."
        )
    if not stat.S_ISREG(mode):
        raise ConfigError(
            f"{path}: is a pipe or device, which cannot be read twice; save it to a file first."
        )
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None


def open_lines(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")


def read_file(source: Source) -> Iterator[Record | Fault]:
    """The records and faults of one file; all records of a file are of the kind of its first, but for kept ones."""
    kind, several = "", is_kept(source.path)
    for number, raw in read_lines(source):
        item = raw if isinstance(raw, Fault) else parse_line(raw, source.name, number)
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
    return "" if kind == first else f"a {kind} record in a file of {first} records; keep one kind in a file"


def read_lines(source: Source) -> Iterator[tuple[int, bytes | Fault]]:
    """Numbered lines that are not blank, without their line ends; a Fault ends a file that cannot be read on.

    The rows of a Parquet file are its lines, each as a JSON object.
    """
    path, name = source.path, source.name
    if path.suffix == ".parquet":
        yield from enumerate(parquet_lines(path), start=1)
        return
    number = 0
    try:
        with open_lines(path) as file:
            while raw := file.readline(MAX_LINE_BYTES):
                number += 1
                if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    detail = f"UTF-16; convert it with: iconv -f utf-16 -t utf-8 {path}"
                    yield number, Fault(name, number, "bad_encoding", detail, raw)
                    return
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    detail = f"a line over {MAX_LINE_BYTES >> 20} MB; write one object a line"
                    yield number, Fault(name, number, "line_too_long", detail, raw[:1000])
                    return
                raw = raw.rstrip(b"\r\n")
                if raw.strip():
                    yield number, raw
    except (EOFError, OSError, zlib.error) as error:
        detail = f"the file breaks off here ({error})"
        yield number + 1, Fault(name, number + 1, "broken_file", detail, b"")


def parquet_lines(path: Path) -> Iterator[bytes]:
    """Each row as a JSON object without its empty values, by row group."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{path}: Parquet needs pyarrow: pip install pyarrow.") from None
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(4096):
            for row in batch.to_pylist():
                fields = {key: value for key, value in row.items() if value is not None}
                yield json.dumps(fields, ensure_ascii=False, default=str).encode()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: is no Parquet file that can be read ({first_line(error)}).") from None


def parse_line(raw: bytes, path: str, line: int) -> Record | Fault:
    """One line as a Record, or the Fault that says why it is none."""
    try:
        value = json.loads(raw.decode("utf-8"))
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
    return Record(value, path, line)
