"""Settings on the command line, and what a refused command says."""

from mlx_hybrid.config import load_config
from mlx_hybrid.config.idle import idle_settings


def sets(*settings: str) -> list[str]:
    """Each `key=value` as an option."""
    return [word for setting in settings for word in ("--set", setting)]


def acting(words: list[str], method: str) -> list[str]:
    """The `--set key=value` pairs among `words` that do something under `method`; others would be refused."""
    idle = idle_settings(load_config(None, (), {"method": method}))
    return sets(*(word for word in words[1::2] if word.partition("=")[0] not in idle))


def plain(words: list[str]) -> list[str]:
    """The `--set key=value` pairs among `words` that leave the adapter alone."""
    return sets(*(word for word in words[1::2] if not word.startswith("adapter.")))


def refused(done, code: int, *words: str) -> None:
    """Check that a command ended with `code` and said the words, in a sentence."""
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
