"""What can go wrong, each with its exit code. A message is one sentence: what, where, why, and the way out."""

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

INTERRUPTED = 130
"""Exit code of what Ctrl-C stopped; what was written before is whole."""


class MlxHybridError(Exception):
    """The job failed."""

    exit_code = 1


class ConfigError(MlxHybridError):
    """A setting, option or path that cannot be used."""

    exit_code = 2


class DataError(MlxHybridError):
    """Records that cannot be used as they are."""

    exit_code = 3


class MemoryLimitError(MlxHybridError):
    """The job will not fit in this machine's memory."""

    exit_code = 4


def check_known(word: str, known: Iterable[str], told: str) -> None:
    """Raise ConfigError that names the nearest, unless a word is one of those known; `told` says of what."""
    if word not in known:
        raise ConfigError(f'{told} "{word}"; {nearest(word, known)}')


def nearest(word: str, known: Iterable[str], others: Mapping[str, str] = MappingProxyType({})) -> str:
    """`did you mean "x"?`, or the known words when none is near; `others` are words near to what they stand for."""
    known = sorted(known)
    meant = {**others, **{name: name for name in known}}
    close = difflib.get_close_matches(word, sorted(meant), n=1, cutoff=0.5)
    return f'did you mean "{meant[close[0]]}"?' if close else f"known: {', '.join(known)}."
