# ruff: noqa: F403, F405
"""mlx-hybrid: fine-tune multilingual language models on your own machine. The names of `__all__` are the Python API
(mlx_hybrid/api.py); it is loaded when one of them is first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_hybrid.api import *

__version__ = "0.1.0"
__all__ = ["HybridLinear", "MlxHybridError", "Run", "attach", "evaluate", "export", "find_run", "finetune"]
__all__ += ["generate", "govern", "load", "predict", "rescue"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlx_hybrid import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
