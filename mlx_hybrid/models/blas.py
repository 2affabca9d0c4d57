"""On Linux, a fast BLAS for float32 products where there is one: about 15 times MLX's bundled one."""

import ctypes
import importlib.metadata
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path

WAY = "`apt install libopenblas0-pthread`, or `pip install 'mlx-hybrid[blas]'`"
loaded = ""  # the library that was loaded ahead of MLX's own


def prefer_openblas() -> bool:
    """Load OpenBLAS, else pip's MKL, ahead of MLX's own BLAS, before `mlx.core` is imported; whether one is there."""
    global loaded
    if "mlx.core" in sys.modules:
        return True
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two on two cores took 1.6 times as long a step
    os.environ.setdefault("MKL_THREADING_LAYER", "SEQUENTIAL")
    for name in ("libopenblas.so.0", *map(str, Path(sys.prefix, "lib").glob("libmkl_rt.so.*"))):
        with suppress(OSError):
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
            loaded = name
            return True
    return False


def slow_products() -> str:
    """What to say where MLX computes on a CPU without a fast BLAS; nothing elsewhere."""
    try:
        importlib.metadata.version("mlx-cpu")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return f"No fast BLAS is here, so a run takes several times as long: {WAY} brings one."


def warn_of_slow_products() -> None:
    """What the commands say in their first line, for the Python API: load a fast BLAS, or warn that there is none."""
    if "mlx.core" in sys.modules and not loaded and slow_products():
        told = "No fast BLAS is used, since mlx was imported first: import mlx_hybrid.api before it."
    else:
        told = "" if prefer_openblas() else slow_products()
    if told:
        warnings.warn(told, RuntimeWarning, stacklevel=3)
