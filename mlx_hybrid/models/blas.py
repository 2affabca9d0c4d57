"""On Linux, a fast BLAS for float32 products where there is one: about 15 times MLX's bundled one."""

import ctypes
import importlib.metadata
import os
import sys
from pathlib import Path

WAY = "`apt install libopenblas0-pthread`, or `pip install 'mlx-hybrid[blas]'`"


def prefer_openblas() -> bool:
    """Load OpenBLAS, else pip's MKL, ahead of MLX's own BLAS. False where there is neither; once `mlx.core` is imported
    it is too late to choose, and nothing is done."""
    if "mlx.core" in sys.modules:
        return True
    if sys.platform != "linux":
        return False
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # two threads on two cores took 1.6 times as long a step
    os.environ.setdefault("MKL_THREADING_LAYER", "SEQUENTIAL")
    for name in ("libopenblas.so.0", *map(str, Path(sys.prefix, "lib").glob("libmkl_rt.so.*"))):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


def slow_products() -> str:
    """What to say where MLX computes on a CPU without a fast BLAS; nothing elsewhere."""
    try:
        importlib.metadata.version("mlx-cpu")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return f"No fast BLAS is here, so a run takes several times as long: {WAY} brings one."


def answering_library() -> str:
    """The file of the library whose `cblas_sgemm` MLX calls: the first that was loaded for all, else its own."""
    import mlx.core

    class Symbol(ctypes.Structure):
        _fields_ = (("file", ctypes.c_char_p), ("rest", ctypes.c_void_p * 3))  # Dl_info of dladdr(3)

    found = Symbol()
    for library in (None, *Path(mlx.core.__file__).parent.glob("lib/libmlx.*")):
        try:
            address = ctypes.cast(ctypes.CDLL(library and str(library)).cblas_sgemm, ctypes.c_void_p)
        except (AttributeError, OSError):
            continue
        if ctypes.CDLL(None).dladdr(address, ctypes.byref(found)):
            return os.fsdecode(found.file)
    return "unknown"
