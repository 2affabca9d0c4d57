"""Language identification engines behind one method: texts in, a probability for each language out.

`py3langid` is embedded and the default. `fasttext` reads any fastText model, by path, preset or Hub id.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlx_hybrid.errors import ConfigError


class Engine(Protocol):
    """Texts to probabilities over `codes` (ISO 639-3)."""

    codes: list[str]

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (texts, codes), float32; a row of zeros where nothing can be said."""

    def knows(self, code: str, script: str) -> bool:
        """Whether the engine was trained on this language in this script."""

    def describe(self) -> dict[str, Any]:
        """Name, version, sha256 and licence, for the manifest."""


@lru_cache(2)
def load_engine(name: str = "py3langid") -> Engine:
    """`py3langid`, `fasttext:PATH`, `fasttext:PRESET` or `fasttext:OWNER/REPO[/FILE]`.

    Raises ConfigError for a name that is none of these, and for a model that cannot be found or read.
    """
    from mlx_hybrid.governance.checks.fasttext import FastText, fetch_model
    from mlx_hybrid.governance.checks.langid import Py3langid

    kind, _, model = name.partition(":")
    if name == "py3langid":
        return Py3langid()
    if kind != "fasttext" or not model:
        raise ConfigError(
            f'engine "{name}": write py3langid, or fasttext:MODEL with a path, a preset or a Hub id.'
        )
    if Path(model).is_file():
        return FastText(Path(model), {"licence": "not stated"})
    return FastText(*fetch_model(model))
