"""From a file to its lines, one JSON object each: JSONL, JSON arrays, CSV and TSV, Parquet and Arrow, packed or not.

What a file is, is told by its first bytes; of CSV and TSV alone, which have none of their own, by its name.
"""

import csv
import io
import json
import lzma
import stat
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import first_line
from mlx_hybrid.records.fields import SCALARS, NotARecord

MAX_LINE_BYTES = 1 << 28  # a line beyond this is a file without line ends, not a record
BOM = b"\xef\xbb\xbf"
ZSTD = b"\x28\xb5\x2f\xfd"
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma", ZSTD: "zstandard"}
"""First bytes of a packed file, and the module that opens it."""
PACKED_NAMES = (".gz", ".bz2", ".xz", ".zst")
ARROW_FILE, ARROW_STREAM, PARQUET = b"ARROW1", b"\xff\xff\xff\xff", b"PAR1"
TABLES = (PARQUET, ARROW_FILE, ARROW_STREAM)
NEEDS = ((ZSTD, "zstandard", "zstd"), (TABLES, "pyarrow", "parquet"))
"""First bytes of a file, the module that reads it, and the extra that the module comes with."""
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, csv.Error)


path_and_line = property(lambda line: f"{line.path}:{line.line}")
"""Where a line stands: `path:line`, the line counted from 1."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is no record, untouched, and why."""

    path: str
    line: int
    reason: str
    detail: str
    raw: bytes = b""

    where = path_and_line


@dataclass(frozen=True, slots=True)
class Source:
    """A file of records, and the name by which its records are told."""

    name: str
    path: Path
    revision: str = ""  # the commit, of a file of a Hub data set
    renames: dict[str, str] = field(default_factory=dict, hash=False)  # keys by the names they are read under


File = str | Path | Source
Lines = Iterator[tuple[int, bytes | Fault]]


def as_source(file: File, renames: dict[str, str] | None = None) -> Source:
    return file if isinstance(file, Source) else Source(str(file), Path(file), renames=renames or {})


def check_file(path: Path) -> None:
    """Raise ConfigError unless `path` is a regular file that can be opened, and that what is installed can read."""
    try:
        mode = path.stat().st_mode
        head = first_bytes(path) if stat.S_ISREG(mode) else b""
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is a folder; name its files, as in {path}/*.jsonl.")
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: is a pipe or device, which is not read twice; save it to a file.")
    if head.startswith(b"PK\x03\x04") or path.suffix.lower() in (".xlsx", ".ods"):
        raise ConfigError(f"{path}: is a zip archive or a spreadsheet; unpack it, or save it as CSV.")
    for magic, module, extra in NEEDS:
        if head.startswith(magic) and not find_spec(module):
            way = f"pip install 'mlx-hybrid[{extra}]' (or pip install {module})"
            raise ConfigError(f"{path}: needs {module}: {way}.")


def first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def open_file(path: Path) -> io.BufferedReader:
    """The bytes of a file, unpacked where they are packed."""
    head = first_bytes(path)
    module = next((name for magic, name in PACKED.items() if head.startswith(magic)), "io")
    return io.BufferedReader(import_module(module).open(path, "rb"), 1 << 16)


def read_lines(source: Source) -> Lines:
    """Lines that are not blank, numbered from 1, without their ends; a Fault ends a file that cannot be read on. Rows
    and elements of an array are lines, each as a JSON object; rows of CSV have the number of the line they begin on."""
    number = 0
    try:
        for number, raw in lines_of(source):
            if isinstance(raw, Fault) or raw.strip():
                yield number, raw
        return
    except NotARecord as error:
        reason, detail, raw = error.reason, str(error), error.raw
    except UnicodeDecodeError as error:
        reason, detail, raw = "bad_encoding", f"not UTF-8 at byte {error.start}; save it as UTF-8", b""
    except (*BROKEN, getattr(sys.modules.get("zstandard"), "ZstdError", EOFError)) as error:
        reason, detail, raw = "broken_file", f"the file breaks off here ({error})", b""
    yield number + 1, Fault(source.name, number + 1, reason, detail, raw)


def lines_of(source: Source) -> Lines:
    """The lines of a file, blank ones too. Raises NotARecord where it cannot be read on."""
    path, head = source.path, first_bytes(source.path)
    if head.startswith(TABLES):
        return enumerate(map(line_of, table_rows(path, head)), start=1)
    with open_file(path) as file:
        start = file.read(2)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise NotARecord("bad_encoding", f"UTF-16; convert it with: iconv -f utf-16 -t utf-8 {path}", start)
    endings = [ending.lower() for ending in path.suffixes if ending.lower() not in PACKED_NAMES]
    if endings[-1:] in ([".csv"], [".tsv"]):
        return cells_of(source, tabs=endings[-1] == ".tsv")
    return elements_of(path) if is_array(path) else plain_lines(path)


def plain_lines(path: Path) -> Lines:
    with open_file(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if len(raw) >= MAX_LINE_BYTES and not raw.endswith(b"\n"):
                detail = f"a line over {MAX_LINE_BYTES >> 20} MB; write one object a line"
                raise NotARecord("line_too_long", detail, raw[:1000])
            yield number, raw.removeprefix(BOM if number == 1 else b"").rstrip(b"\r\n")


def is_array(path: Path) -> bool:
    """Whether a file is one JSON array, and no JSONL of which each line is a list."""
    with open_file(path) as file:
        first = next((line for line in file if line.removeprefix(BOM).strip()), b"").removeprefix(BOM)
        if not first.lstrip().startswith(b"["):
            return False
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            return True
        return not any(line.strip() for line in file)


def elements_of(path: Path) -> Lines:
    """The elements of a JSON array, of none of it where it is not whole."""
    with open_file(path) as file:
        text = file.read().decode("utf-8-sig")
    try:
        yield from enumerate(map(line_of, json.loads(text)), start=1)
    except (ValueError, RecursionError) as error:
        raise NotARecord("bad_json", f"not one whole JSON array: {error}", text[:1000].encode()) from None


def cells_of(source: Source, *, tabs: bool) -> Lines:
    """The rows of CSV or TSV under their header."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with open_file(source.path) as file:
        head = file.peek(1 << 16).partition(b"\n")[0].decode("utf-8", "replace")
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        rows = csv.reader(text, delimiter="\t" if tabs else max(",;\t|", key=head.count))
        header = [name.strip() for name in next(rows, [])]
        begins = rows.line_num + 1
        for cells in rows:
            number, begins = begins, rows.line_num + 1
            if len(cells) > len(header) and any(cell.strip() for cell in cells):
                detail = f"a row of {len(cells)} cells under a header of {len(header)}"
                yield number, Fault(source.name, number, "bad_row", detail, line_of(cells))
            elif any(cell.strip() for cell in cells):
                own = {key: cell for key, cell in zip(header, cells) if key and (cell or key not in SCALARS)}
                yield number, line_of(own)


def line_of(row: Any) -> bytes:
    """A row as one line of JSON; bytes of a table that are no UTF-8 stay what they are, to be found as such."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return json.dumps(row, default=str).encode()


def table_rows(path: Path, head: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet or Arrow file, told by its first bytes, without its empty values, a batch at a time."""
    import pyarrow
    from pyarrow import ipc, parquet

    kind = "Parquet" if head.startswith(PARQUET) else "Arrow"
    try:
        if kind == "Parquet":
            batches = parquet.ParquetFile(path).iter_batches(4096)
        else:
            opened = ipc.open_file if head.startswith(ARROW_FILE) else ipc.open_stream
            batches = opened(pyarrow.memory_map(str(path))).read_all().to_batches()
        for batch in batches:
            types = {column.name: column.type for column in batch.schema}
            for row in batch.to_pylist():
                yield {k: without_padding(v, types[k]) for k, v in row.items() if v is not None}
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: is no {kind} file that can be read ({first_line(error)}).") from None


def without_padding(value: Any, kind: Any) -> Any:
    """A value without the nulls that Arrow writes for fields of other rows; one null in all rows stays."""
    from pyarrow import types

    if value is None or not types.is_nested(kind):
        return value
    if types.is_struct(kind):
        kept = [item for item in kind if value[item.name] is not None or types.is_null(item.type)]
        return {item.name: without_padding(value[item.name], item.type) for item in kept}
    if types.is_map(kind):
        return {str(key): without_padding(inner, kind.item_type) for key, inner in value}
    return [without_padding(inner, kind.value_type) for inner in value] if isinstance(value, list) else value
