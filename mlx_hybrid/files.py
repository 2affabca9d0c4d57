"""Files that are whole or not there: written under a temporary name, synced, renamed; and where the Hub is."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError, MlxHybridError

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
"""The id of a model or data set on the Hub, as owner/name."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path`, or what it links to, by `content`, or leave it as it was; a device or pipe is written to."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, of UTF-8; half a surrogate pair is written as JSON escapes it."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """One row a line, as JSON; what JSON has no word for as text. The folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that grew until it was stopped; a last one that was cut short is taken out of it."""
    *lines, cut = path.read_text(encoding="utf-8").split("\n")
    if cut:
        write_text(path, "".join(line + "\n" for line in lines))
    return lines


def read_json(path: Path) -> Any:
    """The value in a JSON file; ConfigError where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}).") from None


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """What a safetensors file says of itself: its metadata, and the shape of each tensor, of which none is read. Raises
    ConfigError for a broken one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, shapes
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: not a safetensors file, or cut off ({error}).") from None


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, each read when used. Raises ConfigError for a broken one."""
    import mlx.core as mx

    try:
        return mx.load(str(path))
    except RuntimeError as error:
        raise ConfigError(f"{path}: cannot be read, perhaps cut off ({error}).") from None


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the place of `directory` when the block ends well, and goes when it does not.
    Raises ConfigError for a place that cannot be written, MlxHybridError when the disk takes no more."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written ({error.strerror}).") from None
    try:
        yield temporary
        replace_directory(temporary, directory)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = ", the disk is full; free some space" if full else f" ({error.strerror or error})"
        raise MlxHybridError(f"{directory}: cannot be written{why}.") from error
    except RuntimeError as error:
        if "Unable to write" not in str(error):  # all that mlx says of a full disk
            raise
        raise MlxHybridError(f"{directory}: cannot be written ({error}); is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_directory(temporary: Path, directory: Path) -> None:
    """Put a finished folder in the place of an older one: synced, then renamed."""
    for path in [*sorted(temporary.rglob("*")), temporary]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        os.replace(directory, old)
    os.replace(temporary, directory)
    shutil.rmtree(old, ignore_errors=True)


def render(template: Path, values: dict[str, Any], **filters: Callable) -> str:
    """A Jinja template filled in; what goes into HTML is escaped. It may include others of its folder."""
    environment = templates(template.parent, ".html" in template.name)
    environment.filters |= filters
    return environment.get_template(template.name).render(values)


@cache
def templates(folder: Path, escape: bool) -> Any:
    """The templates of a folder, each compiled once."""
    from jinja2 import Environment, FileSystemLoader

    how = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return Environment(loader=FileSystemLoader(folder), autoescape=escape, **how)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def hub_reason(error: Exception) -> str:
    """Why the Hub gave nothing, in a line; offline, the client's own advice would be to go online."""
    return "offline, and it is not on this machine" if is_offline() else first_line(error)


def hub_endpoint() -> str | None:
    """Where the Hub is, when `HF_ENDPOINT` says so: the client itself reads that only once."""
    return os.environ.get("HF_ENDPOINT") or None


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "") in ("1", "ON", "YES", "TRUE", "true")
