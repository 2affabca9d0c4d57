"""Where records come from: JSONL as it is, Parquet and Hub data sets by way of a JSONL copy in a scratch folder."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import first_line, hub_endpoint
from mlx_hybrid.records.record import check_file

HUB_ID = re.compile(r"(?:hf:|hub:)?([\w.-]+/[\w.-]+)(?::([\w./*-]+))?")
KNOWN = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".parquet")


class Source(NamedTuple):
    """A file that can be read line by line, and the name by which its records are told."""

    name: str
    path: Path
    revision: str = ""
    """The commit, of a file of a Hub data set."""


def find_sources(paths: Sequence[str | Path], scratch: Path, *, offline: bool = False) -> list[Source]:
    """The files behind paths and Hub ids, Parquet turned into JSONL under `scratch`.

    Raises ConfigError for what is missing, a folder, a pipe, unreadable, or no known data set.
    """
    if not paths:
        raise ConfigError("no records named; give at least one JSONL or Parquet file.")
    sources: list[Source] = []
    for path in paths:
        match = None if Path(path).exists() else HUB_ID.fullmatch(str(path))
        if not match or (not match[2] and str(path).endswith(KNOWN)):
            check_file(Path(path))
            sources.append(as_lines(Source(str(path), Path(path)), scratch, len(sources)))
            continue
        for source in fetch_dataset(match[1], match[2] or "", offline):
            sources.append(as_lines(source, scratch, len(sources)))
    doubled = {source.name for source in sources if [other.name for other in sources].count(source.name) > 1}
    if doubled:
        raise ConfigError(f"{sorted(doubled)[0]}: named twice; every record of it would be a duplicate.")
    return sources


def as_lines(source: Source, scratch: Path, number: int) -> Source:
    if source.path.suffix != ".parquet":
        return source
    target = scratch / f"source-{number}.jsonl"
    write_parquet_rows(source.path, target)
    return source._replace(path=target)


def write_parquet_rows(path: Path, target: Path) -> None:
    """One JSON object a row, in order; `line` is then the row number from 1."""
    with target.open("wb") as file:
        for line in parquet_lines(path):
            file.write(line + b"\n")


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


def fetch_dataset(repo: str, pattern: str, offline: bool) -> list[Source]:
    """The JSONL and Parquet files of a Hub data set, all of one revision, from the cache or downloaded."""
    from fnmatch import fnmatch

    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    if offline:
        raise ConfigError(
            f"{repo}: no such file, and --offline forbids asking the Hub for a data set of that name."
        )
    endpoint = hub_endpoint()
    api, where = HfApi(endpoint=endpoint), {"repo_type": "dataset"}
    try:
        where["revision"] = api.dataset_info(repo).sha
        names = [name for name in sorted(api.list_repo_files(repo, **where)) if name.endswith(KNOWN)]
        wanted = [name for name in names if not pattern or fnmatch(name, pattern)]
        files = [(name, hf_hub_download(repo, name, endpoint=endpoint, **where)) for name in wanted]
    except (HTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{repo}: no such file, and no Hub data set that can be read ({first_line(error)})."
        ) from None
    if not names:
        raise ConfigError(f"{repo}: the data set holds no JSONL or Parquet files.")
    if not files:
        raise ConfigError(f"{repo}: none of its files is {pattern}; it has {', '.join(names[:5])}.")
    return [Source(f"{repo}:{name}", Path(path), where["revision"]) for name, path in files]
