"""What can go wrong, each with the exit code the command line gives it.

Every message is one sentence for a person: what, where, why, and the way out.
"""

import difflib
from collections.abc import Iterable

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


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean "x"?`, or the known words when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}."
