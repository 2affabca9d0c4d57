"""A folder that appears whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_hybrid.errors import ConfigError, MlxHybridError


@contextmanager
def staged(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes it when the block ends well, and goes when it does not.

    Raises ConfigError when `target` is there already and may not be replaced; MlxHybridError when the disk is full.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        if not replace:
            raise ConfigError(f"{target}: is there already; name another folder, or add --replace.")
        if not (target / "manifest.json").is_file():
            raise ConfigError(
                f"{target}: was not made by govern, so it is not replaced; name another folder."
            )
    scratch = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for file in scratch.iterdir():
            sync(file)
        swap(scratch, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MlxHybridError(
                f"{target}: the disk is full; nothing was written. Free some space."
            ) from None
        raise MlxHybridError(f"{target}: cannot be written ({error.strerror or error}).") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def swap(scratch: Path, target: Path) -> None:
    old = target.parent / f".{target.name}.old-{os.getpid()}"
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    shutil.rmtree(old, ignore_errors=True)
