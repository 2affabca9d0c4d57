"""Which of the settings that most tests of commands share act under a method; others would be refused."""

from mlx_hybrid.config import load_config
from mlx_hybrid.config.idle import idle_settings


def acting(words: list[str], method: str) -> list[str]:
    """The `--set key=value` pairs among `words` that do something under `method`."""
    idle = idle_settings(load_config(None, (), {"method": method}))
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for pair in pairs if pair[1].partition("=")[0] not in idle for word in pair]
