"""Rows of Parquet and Arrow files, without the nulls that Arrow pads them with."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import first_line

ARROW_FILE, ARROW_STREAM, PARQUET = b"ARROW1", b"\xff\xff\xff\xff", b"PAR1"


def table_rows(path: Path, head: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet or Arrow file, told by its first bytes, without its empty values, a batch at a time."""
    import pyarrow

    try:
        for batch in batches(path, head):
            types = {column.name: column.type for column in batch.schema}
            for row in batch.to_pylist():
                yield {k: without_padding(v, types[k]) for k, v in row.items() if v is not None}
    except (pyarrow.ArrowException, OSError) as error:
        kind = "Parquet" if head.startswith(PARQUET) else "Arrow"
        raise ConfigError(f"{path}: is no {kind} file that can be read ({first_line(error)}).") from None


def batches(path: Path, head: bytes) -> Iterator[Any]:
    import pyarrow

    if head.startswith(PARQUET):
        from pyarrow import parquet

        yield from parquet.ParquetFile(path).iter_batches(4096)
        return
    with pyarrow.memory_map(str(path)) as file:
        if head.startswith(ARROW_FILE):
            reader = pyarrow.ipc.open_file(file)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(file)


def without_padding(value: Any, kind: Any) -> Any:
    """A value without the nulls that Arrow writes for fields of other rows; one null in all rows has type `null`, and
    stays."""
    from pyarrow import types

    if value is None or not types.is_nested(kind):
        return value
    if types.is_struct(kind):
        return {
            item.name: without_padding(value[item.name], item.type)
            for item in kind
            if value[item.name] is not None or types.is_null(item.type)
        }
    if types.is_map(kind):
        return {str(key): without_padding(inner, kind.item_type) for key, inner in value}
    return [without_padding(inner, kind.value_type) for inner in value] if isinstance(value, list) else value
