"""From a file to its lines, one JSON object each: JSONL, JSON arrays, CSV and TSV, Parquet and Arrow, packed or not.

What a file is, is told by its first bytes; of CSV and TSV alone, which have none of their own, by its name.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.records.arrow import ARROW_FILE, ARROW_STREAM, PARQUET, table_rows
from mlx_hybrid.records.fields import SCALARS

MAX_LINE_BYTES = 1 << 28  # a line beyond this is a file without line ends, not a record
BOM = b"\xef\xbb\xbf"
ZSTD = b"\x28\xb5\x2f\xfd"
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
PACKED_NAMES = (".gz", ".bz2", ".xz", ".zst")
NEEDS = {
    ZSTD: ("zstandard", "zstd"),
    **dict.fromkeys((PARQUET, ARROW_FILE, ARROW_STREAM), ("pyarrow", "parquet")),
}
"""The module that reads a file with these first bytes, and the extra it comes with."""
BETWEEN = re.compile(r"[\s,]*")


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
    renames: dict[str, str] = field(default_factory=dict, hash=False)
    """Keys of its records by the names they are read under."""


File = str | Path | Source
Lines = Iterator[tuple[int, bytes | Fault]]


def as_source(file: File, renames: dict[str, str] | None = None) -> Source:
    return file if isinstance(file, Source) else Source(str(file), Path(file), renames=renames or {})


def check_file(path: Path) -> None:
    """Raise ConfigError unless `path` is a regular file that can be opened, and that what is installed can read."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is a folder; name its files, as in {path}/*.jsonl.")
    if not stat.S_ISREG(mode):
        raise ConfigError(
            f"{path}: is a pipe or device, which cannot be read twice; save it to a file first."
        )
    try:
        head = first_bytes(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    if head.startswith(b"PK\x03\x04") or path.suffix.lower() in (".xlsx", ".ods"):
        raise ConfigError(f"{path}: is a zip archive or a spreadsheet; unpack it, or save it as CSV.")
    for magic, (module, extra) in NEEDS.items():
        if head.startswith(magic):
            try:
                __import__(module)
            except ImportError:
                raise ConfigError(
                    f"{path}: needs {module}: pip install 'mlx-hybrid[{extra}]' (or pip install {module})."
                ) from None


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def open_file(path: Path) -> io.BufferedReader:
    """The bytes of a file, unpacked where they are packed."""
    head = first_bytes(path)
    if head.startswith(ZSTD):
        import zstandard

        return io.BufferedReader(zstandard.open(path, "rb"))
    packed = next((opened for magic, opened in PACKED.items() if head.startswith(magic)), None)
    return io.BufferedReader(packed(path, "rb")) if packed else path.open("rb")


def read_lines(source: Source) -> Lines:
    """Numbered lines that are not blank, without their line ends; a Fault ends a file that cannot be read on.

    The rows of a table and the elements of a JSON array are lines, each as a JSON object. They are numbered from 1;
    those of CSV by the line they begin on, as in JSONL.
    """
    number, path = 0, source.path
    try:
        for number, raw in lines_of(source):
            yield number, raw
    except (EOFError, OSError, zlib.error, lzma.LZMAError, csv.Error, *zstd_errors()) as error:
        detail = f"the file breaks off here ({error})"
        yield number + 1, Fault(source.name, number + 1, "broken_file", detail, b"")
    except UnicodeDecodeError as error:
        detail = f"not UTF-8 at byte {error.start} of {path.name}"
        yield number + 1, Fault(source.name, number + 1, "bad_encoding", detail, b"")


def zstd_errors() -> tuple[type[Exception], ...]:
    module = sys.modules.get("zstandard")
    return (module.ZstdError,) if module else ()


def lines_of(source: Source) -> Lines:
    path = source.path
    if first_bytes(path).startswith((PARQUET, ARROW_FILE, ARROW_STREAM)):
        return enumerate(map(line_of, table_rows(path, first_bytes(path))), start=1)
    with open_file(path) as file:
        start = file.readline(1000)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        detail = f"UTF-16; convert it with: iconv -f utf-16 -t utf-8 {path}"
        return iter([(1, Fault(source.name, 1, "bad_encoding", detail, start))])
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in PACKED_NAMES]
    if endings[-1:] in ([".csv"], [".tsv"]):
        return cells_of(source, tabs=endings[-1] == ".tsv")
    return values_of(source) if is_one_value(path) else plain_lines(source)


def plain_lines(source: Source) -> Lines:
    with open_file(source.path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
                raw = raw.removeprefix(BOM)
            if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
                detail = f"a line over {MAX_LINE_BYTES >> 20} MB; write one object a line"
                yield number, Fault(source.name, number, "line_too_long", detail, raw[:1000])
                return
            raw = raw.rstrip(b"\r\n")
            if raw.strip():
                yield number, raw


def is_one_value(path: Path) -> bool:
    """Whether a file is a JSON array, an object that holds one, or objects over several lines: no JSONL."""
    with open_file(path) as file:
        first = next((line for line in file if line.removeprefix(BOM).strip()), b"").removeprefix(BOM).strip()
        if first[:1] not in (b"[", b"{"):
            return False
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            return first[:1] == b"[" or first == b"{"
        alone = not any(line.strip() for line in file)
    return alone and (isinstance(value, list) or inside(value) is not None)


def values_of(source: Source) -> Lines:
    """The elements of an array, or the objects that stand in a file one after another."""
    with open_file(source.path) as file:
        text = file.read().decode("utf-8-sig")
    decoder, number = json.JSONDecoder(), 0
    at = BETWEEN.match(text).end()
    array = text.startswith("[", at)
    at = BETWEEN.match(text, at + array).end()
    while at < len(text) and not (array and text[at] == "]"):
        number += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            detail = f"not JSON from here on: {getattr(error, 'msg', error)}, line {text.count(chr(10), 0, at) + 1}"
            raw = text[at : at + 1000].encode("utf-8", "replace")
            yield number, Fault(source.name, number, "bad_json", detail, raw)
            return
        rows = None if array else inside(value)
        for place, row in enumerate([value] if rows is None else rows):
            yield number + place, line_of(row)
        number += len(rows or [0]) - 1
        at = BETWEEN.match(text, at).end()
    if array and at == len(text):
        yield number + 1, Fault(source.name, number + 1, "broken_file", "the array has no end", b"")


def inside(value: Any) -> list[dict] | None:
    """The records that an object such as {"data": […]} wraps; None where it is a record itself."""
    if not isinstance(value, dict) or not any(
        key in value for key in ("data", "train", "records", "rows", "examples")
    ):
        return None
    lists = [item for item in value.values() if isinstance(item, list) and item]
    return lists[0] if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]) else None


def cells_of(source: Source, *, tabs: bool) -> Lines:
    """The rows of CSV or TSV under their header."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with open_file(source.path) as file:
        head = file.peek(1 << 16).partition(b"\n")[0].decode("utf-8", "replace")
        delimiter = "\t" if tabs else max(",;\t|", key=head.count)
        rows = csv.reader(
            io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""), delimiter=delimiter
        )
        header = [name.strip() for name in next(rows, [])]
        begins = rows.line_num + 1
        for cells in rows:
            number, begins = begins, rows.line_num + 1
            row = {key: cell for key, cell in zip(header, cells) if key and (cell or key not in SCALARS)}
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(header):
                detail = f"a row of {len(cells)} cells under a header of {len(header)}"
                yield number, Fault(source.name, number, "bad_row", detail, line_of(cells))
            else:
                yield number, line_of(row)


def line_of(row: Any) -> bytes:
    """A row as one line of JSON; bytes of a table that are no UTF-8 stay what they are, to be found as such."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return json.dumps(row, default=str).encode()
